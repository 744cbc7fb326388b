-- 20261121010600_omnichannel_sessions.sql
-- One conversation across voice, WhatsApp and SMS; at most one open a client and person.
-- Safe to run again. Locks only a new table (and voice_calls' and profiles' policies). Undo: drop table public.omnichannel_sessions.
create table if not exists public.omnichannel_sessions (
  id uuid constraint omnichannel_sessions_pkey primary key default gen_random_uuid(),
  client_id uuid not null default private.default_client_id() constraint omnichannel_sessions_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint omnichannel_sessions_profile_id_fkey references public.profiles (id) on delete cascade,
  primary_channel text not null,
  active_channels text[] not null default '{}',
  status text not null default 'active',
  last_agent_id uuid constraint omnichannel_sessions_last_agent_id_fkey references public.ai_agents (id) on delete set null,
  last_intent text,
  context jsonb not null default '{}',
  call_id uuid constraint omnichannel_sessions_call_id_fkey references public.voice_calls (id) on delete set null,
  previous_session_id uuid constraint omnichannel_sessions_previous_session_id_fkey references public.omnichannel_sessions (id) on delete set null,
  last_activity_at timestamptz not null default now(),
  ended_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint omnichannel_sessions_status_is_known check (status in ('active', 'follow_up', 'closed', 'expired')),
  constraint omnichannel_sessions_primary_channel_is_known check (primary_channel in ('voice', 'whatsapp', 'sms')),
  constraint omnichannel_sessions_active_channels_are_known check (active_channels <@ array['voice', 'whatsapp', 'sms']),
  constraint omnichannel_sessions_context_is_object check (jsonb_typeof(context) = 'object')
);
do $$
begin
  perform private.require_columns('public.omnichannel_sessions', '{
    "id": "uuid", "client_id": "uuid", "profile_id": "uuid", "primary_channel": "text", "active_channels": "text[]", "status": "text",
    "last_agent_id": "uuid", "last_intent": "text", "context": "jsonb", "call_id": "uuid", "previous_session_id": "uuid",
    "last_activity_at": "timestamp with time zone", "ended_at": "timestamp with time zone", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists omnichannel_sessions_one_open
  on public.omnichannel_sessions (client_id, profile_id) where status in ('active', 'follow_up');
create index if not exists idx_omnichannel_sessions_profile on public.omnichannel_sessions (profile_id, created_at desc);
create index if not exists idx_omnichannel_sessions_client on public.omnichannel_sessions (client_id, updated_at desc);
create index if not exists idx_omnichannel_sessions_call on public.omnichannel_sessions (call_id) where call_id is not null;
create index if not exists idx_omnichannel_sessions_previous on public.omnichannel_sessions (previous_session_id) where previous_session_id is not null;
create index if not exists idx_omnichannel_sessions_last_agent on public.omnichannel_sessions (last_agent_id) where last_agent_id is not null;
create index if not exists idx_omnichannel_sessions_idle on public.omnichannel_sessions (last_activity_at) where status in ('active', 'follow_up');
comment on table public.omnichannel_sessions is 'One conversation of one person with one client over all channels. Open: active or follow_up; at most one open.';
comment on column public.omnichannel_sessions.status is 'active: somebody talks; follow_up: we wrote after a call; closed: by a tool or an operator; expired: idle too long.';
comment on column public.omnichannel_sessions.primary_channel is 'The channel it began on.';
comment on column public.omnichannel_sessions.active_channels is 'Every channel used in it, in order of first use.';
comment on column public.omnichannel_sessions.call_id is 'The newest call of the session; its summary is context for replies.';
comment on column public.omnichannel_sessions.previous_session_id is 'The session of the same person before this one.';
comment on column public.omnichannel_sessions.context is 'What agents noted for later turns: {note}.';
comment on column public.omnichannel_sessions.last_intent is 'What the person wants, in a word or two, as last understood.';

create table if not exists public.conversation_threads (
  id uuid constraint conversation_threads_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint conversation_threads_client_id_fkey references public.clients (id),
  session_id uuid not null constraint conversation_threads_session_id_key unique
    constraint conversation_threads_session_id_fkey references public.omnichannel_sessions (id) on delete cascade,
  profile_id uuid not null constraint conversation_threads_profile_id_fkey references public.profiles (id) on delete cascade,
  call_id uuid constraint conversation_threads_call_id_fkey references public.voice_calls (id) on delete set null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
do $$
begin
  perform private.require_columns('public.conversation_threads', '{
    "id": "uuid", "client_id": "uuid", "session_id": "uuid", "profile_id": "uuid", "call_id": "uuid",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_conversation_threads_client on public.conversation_threads (client_id);
create index if not exists idx_conversation_threads_profile on public.conversation_threads (profile_id);
create index if not exists idx_conversation_threads_call on public.conversation_threads (call_id) where call_id is not null;
comment on table public.conversation_threads is 'Joins the messages of a session, on every channel, to the call it is about.';

create or replace function private.open_session(
  p_client_id uuid, p_profile_id uuid, p_channel text, p_call_id uuid, p_idle interval, p_now timestamptz,
  out session_id uuid, out created boolean
) language plpgsql set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_previous uuid;
begin
  for i in 1 .. 10 loop
    select * into v_session from public.omnichannel_sessions s
     where s.client_id = p_client_id and s.profile_id = p_profile_id and s.status in ('active', 'follow_up')
       for no key update;
    if found then
      if v_session.last_activity_at >= p_now - p_idle then
        session_id := v_session.id;
        created := false;
        return;
      end if;
      update public.omnichannel_sessions set status = 'expired', ended_at = p_now where id = v_session.id;
    end if;
    select s.id into v_previous from public.omnichannel_sessions s
     where s.profile_id = p_profile_id and s.client_id = p_client_id
     order by s.created_at desc limit 1;
    -- Insert first: of many at once one wins, the others wait here, find nothing inserted and take the winner's row above.
    insert into public.omnichannel_sessions as s
      (client_id, profile_id, primary_channel, active_channels, call_id, previous_session_id, last_activity_at)
    values (p_client_id, p_profile_id, p_channel, array[p_channel], p_call_id, v_previous, p_now)
    on conflict (client_id, profile_id) where status in ('active', 'follow_up') do nothing
    returning s.id into session_id;
    if session_id is not null then
      insert into public.conversation_threads (client_id, session_id, profile_id, call_id)
      values (p_client_id, session_id, p_profile_id, p_call_id);
      created := true;
      return;
    end if;
  end loop;
  raise exception using errcode = 'PT503', message = 'the session changes too often';
end
$$;
comment on function private.open_session is
  'The open session of a client and person, row locked; one idle too long is expired and a new one linked to it is opened.';

create or replace function private.touch_session(
  p_session_id uuid, p_status text, p_channels text[], p_now timestamptz,
  p_intent text default null, p_agent_id uuid default null, p_call_id uuid default null
) returns void language plpgsql set search_path = '' as $$
begin
  update public.omnichannel_sessions s
     set status = coalesce(p_status, s.status),
         active_channels = s.active_channels || array(select c from unnest(p_channels) c where c <> all (s.active_channels)),
         last_intent = coalesce(p_intent, s.last_intent),
         last_agent_id = coalesce(p_agent_id, s.last_agent_id),
         call_id = coalesce(p_call_id, s.call_id),
         last_activity_at = greatest(s.last_activity_at, p_now)
   where s.id = p_session_id and s.status in ('active', 'follow_up');
end
$$;
comment on function private.touch_session is 'Notes activity in an open session; a closed or expired one is left alone.';

create or replace function private.session_json(p_session_id uuid, p_created boolean) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'id', s.id, 'status', s.status, 'created', coalesce(p_created, false), 'primary_channel', s.primary_channel,
      'active_channels', s.active_channels, 'last_intent', s.last_intent, 'call_id', s.call_id,
      'last_activity_at', s.last_activity_at, 'context', s.context)
      from public.omnichannel_sessions s where s.id = p_session_id);
end
$$;
comment on function private.session_json is 'A session as the claims show it.';

create or replace function private.client_json(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'id', c.id, 'slug', c.slug, 'brand', c.brand, 'sms_sender_id', c.sms_sender_id, 'sms_service_code', c.sms_service_code,
      'contact_number', c.contact_number,
      'default_locale', c.default_locale, 'default_policy', c.default_policy, 'mirror_replies', c.mirror_replies, 'settings', c.settings)
      from public.clients c where c.id = p_client_id);
end
$$;
comment on function private.client_json is 'A client as the claims show it.';

create or replace function private.profile_json(p_profile_id uuid, p_phone text, p_now timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'id', p.id, 'phone_number', coalesce(p_phone, p.phone_number),
      'wa_id', coalesce(
        (select i.value from public.profile_identities i where i.profile_id = p.id and i.kind = 'whatsapp_phone' order by i.created_at desc limit 1),
        nullif(split_part(p.whatsapp_jid, '@', 1), '')),
      'display_name', p.display_name,
      'whatsapp', private.whatsapp_evidence(p.has_whatsapp, p.has_whatsapp_source, p.has_whatsapp_at, p_now),
      'allows_sms', p.allows_sms, 'locale', p.locale, 'last_whatsapp_inbound_at', p.last_whatsapp_inbound_at,
      'preferences', p.notification_preferences)
      from public.profiles p where p.id = p_profile_id);
end
$$;
comment on function private.profile_json is 'A person as the claims show them; p_phone is the number this work is for, where it is not the profile''s own.';

drop trigger if exists omnichannel_sessions_touch on public.omnichannel_sessions;
create trigger omnichannel_sessions_touch before update on public.omnichannel_sessions for each row execute function private.touch_updated_at();
drop trigger if exists conversation_threads_touch on public.conversation_threads;
create trigger conversation_threads_touch before update on public.conversation_threads for each row execute function private.touch_updated_at();

alter table public.omnichannel_sessions enable row level security;
alter table public.conversation_threads enable row level security;
drop policy if exists omnichannel_sessions_select on public.omnichannel_sessions;
create policy omnichannel_sessions_select on public.omnichannel_sessions for select to authenticated
  using (profile_id in (select private.my_profile_ids()) or client_id in (select private.my_client_ids()));
drop policy if exists conversation_threads_select on public.conversation_threads;
create policy conversation_threads_select on public.conversation_threads for select to authenticated
  using (profile_id in (select private.my_profile_ids()) or client_id in (select private.my_client_ids()));
-- A client's member sees the people that this client has talked with.
drop policy if exists profiles_select on public.profiles;
create policy profiles_select on public.profiles for select to authenticated
  using (user_id = (select auth.uid())
    or exists (select from public.omnichannel_sessions s
                where s.profile_id = profiles.id and s.client_id in (select private.my_client_ids())));

revoke all on public.omnichannel_sessions, public.conversation_threads from public, anon, authenticated;
grant select on public.omnichannel_sessions, public.conversation_threads to authenticated;
grant select, insert, update, delete on public.omnichannel_sessions, public.conversation_threads to service_role;
revoke execute on function private.open_session(uuid, uuid, text, uuid, interval, timestamptz),
  private.touch_session(uuid, text, text[], timestamptz, text, uuid, uuid), private.session_json(uuid, boolean),
  private.client_json(uuid), private.profile_json(uuid, text, timestamptz) from public, anon, authenticated;
grant execute on function private.open_session(uuid, uuid, text, uuid, interval, timestamptz),
  private.touch_session(uuid, text, text[], timestamptz, text, uuid, uuid), private.session_json(uuid, boolean),
  private.client_json(uuid), private.profile_json(uuid, text, timestamptz) to service_role;
