-- 20261121010400_voice_calls.sql
-- Calls, whichever trunk they came by. An existing table `voice_calls` is extended; its old provider id column is renamed.
-- Safe to run again. Locks voice_calls briefly. Undo: drop the columns added here.
create table if not exists public.voice_calls (
  id uuid constraint voice_calls_pkey primary key default gen_random_uuid()
);
do $$
begin
  if exists (select from pg_catalog.pg_attribute where attrelid = 'public.voice_calls'::regclass and attname = 'twilio_call_sid' and not attisdropped)
     and not exists (select from pg_catalog.pg_attribute where attrelid = 'public.voice_calls'::regclass and attname = 'mtn_call_sid' and not attisdropped) then
    alter table public.voice_calls rename column twilio_call_sid to mtn_call_sid;
  end if;
end
$$;
alter table public.voice_calls add column if not exists id uuid not null default gen_random_uuid();
alter table public.voice_calls add column if not exists client_id uuid not null default private.default_client_id();
alter table public.voice_calls add column if not exists profile_id uuid;
alter table public.voice_calls add column if not exists agent_id uuid;
alter table public.voice_calls add column if not exists origin text;
alter table public.voice_calls add column if not exists provider_call_id text;
alter table public.voice_calls add column if not exists mtn_call_sid text;
alter table public.voice_calls add column if not exists direction text not null default 'inbound';
alter table public.voice_calls add column if not exists from_number text;
alter table public.voice_calls add column if not exists to_number text;
alter table public.voice_calls add column if not exists locale text;
alter table public.voice_calls add column if not exists status text not null default 'in_progress';
alter table public.voice_calls add column if not exists started_at timestamptz;
alter table public.voice_calls add column if not exists answered_at timestamptz;
alter table public.voice_calls add column if not exists ended_at timestamptz;
alter table public.voice_calls add column if not exists duration_seconds integer;
alter table public.voice_calls add column if not exists end_reason text;
alter table public.voice_calls add column if not exists notify_requested_at timestamptz;
alter table public.voice_calls add column if not exists notified_at timestamptz;
alter table public.voice_calls add column if not exists metadata jsonb not null default '{}';
alter table public.voice_calls add column if not exists created_at timestamptz not null default now();
alter table public.voice_calls add column if not exists updated_at timestamptz not null default now();

do $$
begin
  perform private.require_columns('public.voice_calls', '{
    "id": "uuid", "client_id": "uuid", "profile_id": "uuid", "agent_id": "uuid", "origin": "text", "provider_call_id": "text",
    "mtn_call_sid": "text", "direction": "text", "from_number": "text", "to_number": "text", "locale": "text", "status": "text",
    "started_at": "timestamp with time zone", "answered_at": "timestamp with time zone", "ended_at": "timestamp with time zone",
    "duration_seconds": "integer", "end_reason": "text", "notify_requested_at": "timestamp with time zone", "notified_at": "timestamp with time zone", "metadata": "jsonb",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  alter table public.voice_calls alter column mtn_call_sid drop not null;  -- other trunks have none
  if not exists (
    select from pg_catalog.pg_constraint c
     where c.conrelid = 'public.voice_calls'::regclass and c.contype in ('p', 'u')
       and c.conkey = array[(select attnum from pg_catalog.pg_attribute where attrelid = c.conrelid and attname = 'id')]
  ) then
    alter table public.voice_calls add constraint voice_calls_id_key unique (id);
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_origin_provider_call_id_key') then
    alter table public.voice_calls add constraint voice_calls_origin_provider_call_id_key unique (origin, provider_call_id);
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_origin_is_known') then
    alter table public.voice_calls add constraint voice_calls_origin_is_known
      check (origin in ('mtn_sip', 'mtn_media', 'whatsapp', 'openai_sip')) not valid;
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_direction_is_known') then
    alter table public.voice_calls add constraint voice_calls_direction_is_known check (direction in ('inbound', 'outbound')) not valid;
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_client_id_fkey') then
    alter table public.voice_calls add constraint voice_calls_client_id_fkey foreign key (client_id) references public.clients (id);
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_profile_id_fkey') then
    alter table public.voice_calls add constraint voice_calls_profile_id_fkey
      foreign key (profile_id) references public.profiles (id) on delete set null not valid;
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_calls'::regclass and conname = 'voice_calls_agent_id_fkey') then
    alter table public.voice_calls add constraint voice_calls_agent_id_fkey
      foreign key (agent_id) references public.ai_agents (id) on delete set null not valid;
  end if;
  perform private.validate_where_kept('public.voice_calls', '{voice_calls_origin_is_known, voice_calls_direction_is_known,
    voice_calls_profile_id_fkey, voice_calls_agent_id_fkey}');
end
$$;
create unique index if not exists idx_voice_calls_mtn_sid on public.voice_calls (mtn_call_sid) where mtn_call_sid is not null;
create index if not exists idx_voice_calls_provider_call on public.voice_calls (provider_call_id) where provider_call_id is not null;
create index if not exists idx_voice_calls_client_started on public.voice_calls (client_id, started_at desc);
create index if not exists idx_voice_calls_profile on public.voice_calls (profile_id);
create index if not exists idx_voice_calls_agent on public.voice_calls (agent_id);
create index if not exists idx_voice_calls_not_notified on public.voice_calls (ended_at) where ended_at is not null and notified_at is null;

comment on table public.voice_calls is 'Every phone call, MTN SIP first; the only call table.';
comment on column public.voice_calls.origin is 'Trunk: mtn_sip, mtn_media, whatsapp, openai_sip; with provider_call_id it names the call.';
comment on column public.voice_calls.provider_call_id is 'The trunk''s own id of the call (callSid in requests).';
comment on column public.voice_calls.mtn_call_sid is 'MTN''s call id where MTN carried the call; unique where present.';
comment on column public.voice_calls.from_number is 'As the trunk gave it: E.164 mostly, but a caller may be anonymous.';
comment on column public.voice_calls.status is 'in_progress, completed (answered and ended), or how it failed: failed, no_answer, busy, canceled.';
comment on column public.voice_calls.notified_at is 'When the notification of this call was first claimed; null: nobody has begun it.';
comment on column public.voice_calls.notify_requested_at is 'When the sweeper last asked for the notification of this ended call.';
comment on column public.voice_calls.metadata is 'What the trunk or relay adds; nothing here reads it.';
comment on column public.voice_calls.end_reason is 'Why it ended, as the trunk says.';

create or replace function private.call_json(p_call public.voice_calls) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object(
    'id', p_call.id, 'origin', p_call.origin, 'provider_call_id', p_call.provider_call_id,
    'from_number', p_call.from_number, 'to_number', p_call.to_number, 'direction', p_call.direction,
    'started_at', p_call.started_at, 'ended_at', p_call.ended_at,
    'duration_seconds', coalesce(p_call.duration_seconds,
      extract(epoch from p_call.ended_at - coalesce(p_call.answered_at, p_call.started_at))::integer),
    'status', p_call.status, 'locale', p_call.locale);
end
$$;
comment on function private.call_json is 'A call as the claims show it.';

drop trigger if exists voice_calls_touch on public.voice_calls;
create trigger voice_calls_touch before update on public.voice_calls for each row execute function private.touch_updated_at();

alter table public.voice_calls enable row level security;
drop policy if exists voice_calls_select on public.voice_calls;
create policy voice_calls_select on public.voice_calls for select to authenticated
  using (profile_id in (select private.my_profile_ids()) or client_id in (select private.my_client_ids()));
revoke all on public.voice_calls from public, anon, authenticated;
grant select on public.voice_calls to authenticated;
grant select, insert, update, delete on public.voice_calls to service_role;
revoke execute on function private.call_json(public.voice_calls) from public, anon, authenticated;
grant execute on function private.call_json(public.voice_calls) to service_role;
