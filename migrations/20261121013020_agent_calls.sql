-- 20261121013020_agent_calls.sql
-- Every ended call as clients count it: whose, of which deployment, how long, what it cost and what it sells for.
-- A table of this name that is there already is extended.
-- Safe to run again. Locks only this table. Undo: drop the columns added here, or the table.
create table if not exists public.agent_calls (
  id uuid constraint agent_calls_pkey primary key default gen_random_uuid()
);
alter table public.agent_calls add column if not exists client_id uuid;
alter table public.agent_calls add column if not exists deployment_id uuid;
alter table public.agent_calls add column if not exists voice_call_id uuid;
alter table public.agent_calls add column if not exists session_id uuid;
alter table public.agent_calls add column if not exists prospect_id uuid;
alter table public.agent_calls add column if not exists sequence_id uuid;
alter table public.agent_calls add column if not exists direction text not null default 'inbound';
alter table public.agent_calls add column if not exists phone_number text;
alter table public.agent_calls add column if not exists status text not null default 'completed';
alter table public.agent_calls add column if not exists started_at timestamptz not null default now();
alter table public.agent_calls add column if not exists answered_at timestamptz;
alter table public.agent_calls add column if not exists ended_at timestamptz;
alter table public.agent_calls add column if not exists duration_seconds integer;
alter table public.agent_calls add column if not exists cost numeric(12,6);
alter table public.agent_calls add column if not exists cost_currency char(3);
alter table public.agent_calls add column if not exists revenue numeric(12,6);
alter table public.agent_calls add column if not exists revenue_currency char(3);
alter table public.agent_calls add column if not exists fx_rate numeric(18,9);
alter table public.agent_calls add column if not exists fx_date date;
alter table public.agent_calls add column if not exists margin numeric(12,6) generated always as (
  case when cost_currency = revenue_currency then revenue - cost else revenue - round(cost * fx_rate, 6) end) stored;
alter table public.agent_calls add column if not exists metadata jsonb not null default '{}';
alter table public.agent_calls add column if not exists created_at timestamptz not null default now();
alter table public.agent_calls add column if not exists updated_at timestamptz not null default now();

do $$
declare
  v_rule record;
begin
  perform private.require_columns('public.agent_calls', '{
    "id": "uuid", "client_id": "uuid", "deployment_id": "uuid", "voice_call_id": "uuid", "session_id": "uuid", "prospect_id": "uuid",
    "sequence_id": "uuid", "direction": "text", "phone_number": "text", "status": "text", "started_at": "timestamp with time zone",
    "answered_at": "timestamp with time zone", "ended_at": "timestamp with time zone", "duration_seconds": "integer", "cost": "numeric(12,6)",
    "cost_currency": "character(3)", "revenue": "numeric(12,6)", "revenue_currency": "character(3)", "fx_rate": "numeric(18,9)", "fx_date": "date",
    "margin": "numeric(12,6)", "metadata": "jsonb", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  update public.agent_calls c set client_id = coalesce((select d.client_id from public.agent_deployments d where d.id = c.deployment_id), private.default_client_id())
   where c.client_id is null;
  update public.agent_calls c set deployment_id = private.deployment_of(c.client_id, 'voice', null, null) where c.deployment_id is null;
  alter table public.agent_calls alter column client_id set not null, alter column deployment_id set not null;
  for v_rule in
    select * from (values
      ('agent_calls_client_id_fkey', 'foreign key (client_id) references public.clients (id) not valid'),
      ('agent_calls_deployment_id_fkey', 'foreign key (deployment_id) references public.agent_deployments (id) not valid'),
      ('agent_calls_voice_call_id_fkey', 'foreign key (voice_call_id) references public.voice_calls (id) on delete set null not valid'),
      ('agent_calls_voice_call_id_key', 'unique (voice_call_id)'),
      ('agent_calls_session_id_fkey', 'foreign key (session_id) references public.omnichannel_sessions (id) on delete set null not valid'),
      ('agent_calls_prospect_id_fkey', 'foreign key (prospect_id) references public.prospects (id) on delete set null not valid'),
      ('agent_calls_sequence_id_fkey', 'foreign key (sequence_id) references public.sequences (id) on delete set null not valid'),
      ('agent_calls_direction_is_known', 'check (direction in (''inbound'', ''outbound'')) not valid'),
      ('agent_calls_duration_is_not_negative', 'check (duration_seconds >= 0) not valid'),
      ('agent_calls_cost_has_currency', 'check ((cost is null) = (cost_currency is null)) not valid'),
      ('agent_calls_revenue_has_currency', 'check ((revenue is null) = (revenue_currency is null)) not valid'),
      ('agent_calls_fx_rate_has_date', 'check ((fx_rate is null) = (fx_date is null)) not valid'),
      ('agent_calls_metadata_is_object', 'check (jsonb_typeof(metadata) = ''object'') not valid')
    ) x (name, rule)
  loop
    if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.agent_calls'::regclass and conname = v_rule.name) then
      execute format('alter table public.agent_calls add constraint %I %s', v_rule.name, v_rule.rule);
    end if;
    perform private.validate_where_kept('public.agent_calls', array[v_rule.name]);
  end loop;
end
$$;
create index if not exists idx_agent_calls_client_started on public.agent_calls (client_id, started_at desc);
create index if not exists idx_agent_calls_deployment_started on public.agent_calls (deployment_id, started_at desc);
create index if not exists idx_agent_calls_session on public.agent_calls (session_id) where session_id is not null;
create index if not exists idx_agent_calls_prospect on public.agent_calls (prospect_id) where prospect_id is not null;
create index if not exists idx_agent_calls_sequence on public.agent_calls (sequence_id) where sequence_id is not null;
comment on table public.agent_calls is 'Every ended call as clients count it: ours, written when voice_calls ends, and those that others write.';
comment on column public.agent_calls.deployment_id is 'Whom it counts for; of the same client.';
comment on column public.agent_calls.voice_call_id is 'The call of ours; null: somebody else''s.';
comment on column public.agent_calls.phone_number is 'Of the person, as the trunk gave it; null: unknown, or erased.';
comment on column public.agent_calls.status is 'completed (answered and ended), or how it failed: failed, no_answer, busy, canceled.';
comment on column public.agent_calls.cost is 'Of the trunk''s minutes and the model, in cost_currency; null: not known.';
comment on column public.agent_calls.revenue is 'What the client pays, in revenue_currency: begun minutes by the price list of the day; null: no list has a price.';
comment on column public.agent_calls.revenue_currency is 'ISO 4217; that of the margin too.';
comment on column public.agent_calls.fx_rate is 'What one unit of cost_currency was worth in revenue_currency; null: the same currency, or no rate known.';
comment on column public.agent_calls.fx_date is 'Since when that rate held.';
comment on column public.agent_calls.margin is 'revenue - cost, in revenue_currency; null until both are known, and a rate where the currencies differ.';
comment on column public.agent_calls.metadata is 'The writer''s own; nothing here reads it.';

drop trigger if exists agent_calls_touch on public.agent_calls;
create trigger agent_calls_touch before update on public.agent_calls for each row execute function private.touch_updated_at();
alter table public.agent_calls enable row level security;
drop policy if exists agent_calls_select on public.agent_calls;
create policy agent_calls_select on public.agent_calls for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
revoke all on public.agent_calls from public, anon, authenticated;
grant select on public.agent_calls to authenticated;
grant select, insert, update, delete on public.agent_calls to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013020'::text $$;

notify pgrst, 'reload schema';
