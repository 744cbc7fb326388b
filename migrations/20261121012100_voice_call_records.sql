-- 20261121012100_voice_call_records.sql
-- What a call leaves behind beside its row of before: why it ended as one of a few words, what it used and what that cost.
-- Safe to run again. Locks voice_calls briefly. Undo: drop the columns added here.
alter table public.voice_calls add column if not exists trunk text;
alter table public.voice_calls add column if not exists session_id uuid;
alter table public.voice_calls add column if not exists correlation_id text;
alter table public.voice_calls add column if not exists end_cause text;
alter table public.voice_calls add column if not exists usage jsonb;
alter table public.voice_calls add column if not exists cost numeric(12,6);
alter table public.voice_calls add column if not exists cost_currency char(3);
alter table public.voice_calls add column if not exists erased_at timestamptz;

do $$
declare
  v_old record;
begin
  perform private.require_columns('public.voice_calls', '{
    "trunk": "text", "session_id": "uuid", "correlation_id": "text", "end_cause": "text", "usage": "jsonb", "cost": "numeric(12,6)",
    "cost_currency": "character(3)", "erased_at": "timestamp with time zone"}');
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_end_cause_is_known') then
    alter table public.voice_calls add constraint voice_calls_end_cause_is_known check (end_cause in
      ('caller_hangup', 'agent_hangup', 'transferred', 'max_duration', 'silence', 'media_lost', 'model_unavailable', 'consent_refused', 'shutdown',
       'relay_restarted', 'no_answer', 'busy', 'canceled', 'rejected', 'setup_failed', 'unknown')) not valid;
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_cost_has_currency') then
    alter table public.voice_calls add constraint voice_calls_cost_has_currency check ((cost is null) = (cost_currency is null)) not valid;
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_session_id_fkey') then
    alter table public.voice_calls add constraint voice_calls_session_id_fkey
      foreign key (session_id) references public.omnichannel_sessions (id) on delete set null not valid;
  end if;
  perform private.validate_where_kept('public.voice_calls', '{voice_calls_end_cause_is_known, voice_calls_cost_has_currency, voice_calls_session_id_fkey}');

  -- A table of before may have indexes and a constraint of its own on the trunk's id, named after another provider: ours does their work.
  for v_old in
    select c.conname from pg_catalog.pg_constraint c
     where c.conrelid = 'public.voice_calls'::regclass and c.contype = 'u'
       and c.conkey = array[(select attnum from pg_catalog.pg_attribute where attrelid = c.conrelid and attname = 'mtn_call_sid')]
  loop
    execute format('alter table public.voice_calls drop constraint %I', v_old.conname);
  end loop;
  for v_old in
    select i.indexrelid::regclass as index from pg_catalog.pg_index i
      join pg_catalog.pg_class c on c.oid = i.indexrelid
     where i.indrelid = 'public.voice_calls'::regclass and c.relname <> 'idx_voice_calls_mtn_sid' and i.indnkeyatts = 1
       and i.indkey[0] = (select attnum from pg_catalog.pg_attribute where attrelid = i.indrelid and attname = 'mtn_call_sid')
  loop
    execute format('drop index %s', v_old.index);
  end loop;
end
$$;
create index if not exists idx_voice_calls_session on public.voice_calls (session_id) where session_id is not null;
create index if not exists idx_voice_calls_running on public.voice_calls (started_at) where ended_at is null;
comment on column public.voice_calls.trunk is 'Name of the trunk in the relay''s configuration; null: not told.';
comment on column public.voice_calls.session_id is 'The conversation that the call belongs to; null: an anonymous caller.';
comment on column public.voice_calls.correlation_id is 'Of the request that opened the call; runs from INVITE to the reply''s turn.';
comment on column public.voice_calls.end_cause is
  'Why it ended: caller_hangup, agent_hangup, transferred, max_duration, silence, media_lost, model_unavailable, consent_refused, shutdown, relay_restarted; '
  'never answered: no_answer, busy, canceled, rejected, setup_failed; unknown: nobody said.';
comment on column public.voice_calls.end_reason is 'Why it ended, in the trunk''s or relay''s words.';
comment on column public.voice_calls.usage is 'Tokens by kind, summed over the model''s responses.';
comment on column public.voice_calls.cost is 'Of the model, in cost_currency, by realtime_prices; null: no usage was told, or the model has no price.';
comment on column public.voice_calls.erased_at is 'When erase_person took the person out; what is reported of the call later is not kept.';

create or replace function private.status_of_cause(p_cause text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case p_cause when 'no_answer' then 'no_answer' when 'busy' then 'busy' when 'canceled' then 'canceled'
                      when 'rejected' then 'failed' when 'setup_failed' then 'failed' else 'completed' end;
end
$$;
comment on function private.status_of_cause is 'Status of a call that ended for this cause: completed where it was answered.';
revoke execute on function private.status_of_cause(text) from public, anon, authenticated;
grant execute on function private.status_of_cause(text) to service_role;
