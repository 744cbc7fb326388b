-- 20261121012130_consents_threads_memories.sql
-- What a caller agreed to, which WhatsApp chat is theirs, and what an agent may remember of them.
-- Safe to run again. Locks only new tables. Undo: drop the three tables.
create table if not exists public.call_consents (
  id uuid constraint call_consents_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint call_consents_client_id_fkey references public.clients (id),
  call_id uuid not null constraint call_consents_call_id_fkey references public.voice_calls (id) on delete cascade,
  profile_id uuid constraint call_consents_profile_id_fkey references public.profiles (id) on delete set null,
  kind text not null,
  state text not null,
  method text not null,
  language text,
  occurred_at timestamptz not null,
  created_at timestamptz not null default now(),
  constraint call_consents_once unique (call_id, kind, state),
  constraint call_consents_kind_is_known check (kind in ('recording')),
  constraint call_consents_state_is_known check (state in ('announced', 'given', 'refused', 'withdrawn')),
  constraint call_consents_method_is_known check (method in ('announcement', 'dtmf', 'speech'))
);
do $$
begin
  perform private.require_columns('public.call_consents', '{
    "id": "uuid", "client_id": "uuid", "call_id": "uuid", "profile_id": "uuid", "kind": "text", "state": "text", "method": "text",
    "language": "text", "occurred_at": "timestamp with time zone", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_call_consents_client on public.call_consents (client_id);
create index if not exists idx_call_consents_profile on public.call_consents (profile_id);
comment on table public.call_consents is 'What a caller was told and agreed to; each state of a call once. No byte is recorded before `given`, or `announced` where that is enough.';
comment on column public.call_consents.kind is 'What it is about: recording.';
comment on column public.call_consents.state is 'announced: the announcement was played to its end; given, refused, withdrawn: what the caller then did.';
comment on column public.call_consents.method is 'How it was come by: announcement, dtmf (a key), speech.';
comment on column public.call_consents.language is 'Language of the announcement.';
comment on column public.call_consents.occurred_at is 'The relay''s clock.';

create table if not exists public.wa_threads (
  id uuid constraint wa_threads_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint wa_threads_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint wa_threads_profile_id_fkey references public.profiles (id) on delete cascade,
  session_id uuid constraint wa_threads_session_id_fkey references public.omnichannel_sessions (id) on delete set null,
  call_id uuid constraint wa_threads_call_id_fkey references public.voice_calls (id) on delete set null,
  wa_id text,
  last_inbound_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint wa_threads_client_id_profile_id_key unique (client_id, profile_id),
  constraint wa_threads_wa_id_is_digits check (wa_id ~ '^[0-9]{7,15}$')
);
do $$
begin
  perform private.require_columns('public.wa_threads', '{
    "id": "uuid", "client_id": "uuid", "profile_id": "uuid", "session_id": "uuid", "call_id": "uuid", "wa_id": "text",
    "last_inbound_at": "timestamp with time zone", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_wa_threads_profile on public.wa_threads (profile_id);
create index if not exists idx_wa_threads_session on public.wa_threads (session_id) where session_id is not null;
create index if not exists idx_wa_threads_call on public.wa_threads (call_id) where call_id is not null;
comment on table public.wa_threads is 'The WhatsApp chat of a person with a client, joined to the newest call and conversation that it is about.';
comment on column public.wa_threads.session_id is 'The newest conversation.';
comment on column public.wa_threads.wa_id is 'As WhatsApp writes the number: digits without plus; null: known by another id only.';
comment on column public.wa_threads.last_inbound_at is 'When the person last wrote or called over WhatsApp: opens the service window of 24 hours.';

create table if not exists public.voice_memories (
  id uuid constraint voice_memories_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint voice_memories_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint voice_memories_profile_id_fkey references public.profiles (id) on delete cascade,
  call_id uuid constraint voice_memories_call_id_fkey references public.voice_calls (id) on delete set null,
  key text not null,
  value text not null,
  expires_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint voice_memories_client_id_profile_id_key_key unique (client_id, profile_id, key),
  constraint voice_memories_key_is_a_name check (key ~ '^[a-z][a-z0-9_]{0,59}$'),
  constraint voice_memories_value_is_short check (length(value) between 1 and 500)
);
do $$
begin
  perform private.require_columns('public.voice_memories', '{
    "id": "uuid", "client_id": "uuid", "profile_id": "uuid", "call_id": "uuid", "key": "text", "value": "text",
    "expires_at": "timestamp with time zone", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_voice_memories_profile on public.voice_memories (profile_id);
create index if not exists idx_voice_memories_call on public.voice_memories (call_id) where call_id is not null;
comment on table public.voice_memories is 'What an agent was told to remember of a person for the next call: one value a key.';
comment on column public.voice_memories.call_id is 'The call in which it was last said.';
comment on column public.voice_memories.key is 'Such as preferred_area.';
comment on column public.voice_memories.value is 'In the person''s words, at most 500 characters.';
comment on column public.voice_memories.expires_at is 'Not told to an agent from then on; null: kept until the person is erased.';

drop trigger if exists wa_threads_touch on public.wa_threads;
create trigger wa_threads_touch before update on public.wa_threads for each row execute function private.touch_updated_at();
drop trigger if exists voice_memories_touch on public.voice_memories;
create trigger voice_memories_touch before update on public.voice_memories for each row execute function private.touch_updated_at();
alter table public.call_consents enable row level security;
alter table public.wa_threads enable row level security;
alter table public.voice_memories enable row level security;
drop policy if exists call_consents_select on public.call_consents;
create policy call_consents_select on public.call_consents for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists wa_threads_select on public.wa_threads;
create policy wa_threads_select on public.wa_threads for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists voice_memories_select on public.voice_memories;
create policy voice_memories_select on public.voice_memories for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
revoke all on public.call_consents, public.wa_threads, public.voice_memories from public, anon, authenticated;
grant select on public.call_consents, public.wa_threads, public.voice_memories to authenticated;
grant select, insert, update, delete on public.call_consents, public.wa_threads, public.voice_memories to service_role;
