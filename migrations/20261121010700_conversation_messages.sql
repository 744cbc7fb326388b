-- 20261121010700_conversation_messages.sql
-- Every turn on every channel, and the claims under which inbound messages are answered.
-- Safe to run again. Locks only new tables. Undo: drop both tables.
create table if not exists public.conversation_turns (
  id uuid constraint conversation_turns_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint conversation_turns_client_id_fkey references public.clients (id),
  session_id uuid not null constraint conversation_turns_session_id_fkey references public.omnichannel_sessions (id) on delete cascade,
  profile_id uuid not null constraint conversation_turns_profile_id_fkey references public.profiles (id) on delete cascade,
  kind text not null,
  keyword text,
  status text not null default 'open',
  lease_token uuid not null,
  previous_lease_token uuid,
  lease_until timestamptz not null,
  attempt smallint not null default 1,
  claims integer not null default 1,
  possible_duplicate boolean not null default false,
  session_created boolean not null default false,
  sms_delivery_id uuid not null default gen_random_uuid(),
  whatsapp_delivery_id uuid not null default gen_random_uuid(),
  correlation_id text not null,
  next_attempt_at timestamptz,
  unknown_wait_seconds integer not null default 120,
  result jsonb,
  swept_at timestamptz,
  finished_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint conversation_turns_kind_is_known check (kind in ('conversation', 'keyword')),
  constraint conversation_turns_keyword_is_known check (keyword in ('stop', 'start', 'help')),
  constraint conversation_turns_keyword_belongs_to_its_kind check ((kind = 'keyword') = (keyword is not null)),
  constraint conversation_turns_status_is_known check (status in ('open', 'released', 'answered', 'suppressed', 'unknown', 'abandoned'))
);
do $$
begin
  perform private.require_columns('public.conversation_turns', '{
    "id": "uuid", "client_id": "uuid", "session_id": "uuid", "profile_id": "uuid", "kind": "text", "keyword": "text", "status": "text",
    "lease_token": "uuid", "previous_lease_token": "uuid", "lease_until": "timestamp with time zone", "attempt": "smallint",
    "claims": "integer", "possible_duplicate": "boolean", "session_created": "boolean", "sms_delivery_id": "uuid",
    "whatsapp_delivery_id": "uuid", "correlation_id": "text", "next_attempt_at": "timestamp with time zone",
    "unknown_wait_seconds": "integer", "result": "jsonb", "swept_at": "timestamp with time zone",
    "finished_at": "timestamp with time zone", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists conversation_turns_one_open
  on public.conversation_turns (session_id) where kind = 'conversation' and status in ('open', 'released');
create index if not exists idx_conversation_turns_open on public.conversation_turns (session_id) where status in ('open', 'released');
create index if not exists idx_conversation_turns_lease on public.conversation_turns (lease_until) where status = 'open';
create index if not exists idx_conversation_turns_released on public.conversation_turns (next_attempt_at) where status = 'released';
create index if not exists idx_conversation_turns_session on public.conversation_turns (session_id, created_at desc);
create index if not exists idx_conversation_turns_client on public.conversation_turns (client_id);
create index if not exists idx_conversation_turns_profile on public.conversation_turns (profile_id);
create index if not exists idx_conversation_turns_unknown_sms on public.conversation_turns (sms_delivery_id) where status = 'unknown';
create index if not exists idx_conversation_turns_unknown_whatsapp on public.conversation_turns (whatsapp_delivery_id) where status = 'unknown';
comment on table public.conversation_turns is 'The claim of one answer: all unanswered inbound messages of a session, or one keyword. One claim a session is open.';
comment on column public.conversation_turns.status is
  'open: somebody works under the lease; released: given back, nothing was sent; answered, suppressed: finished; unknown: crashed twice; abandoned: given back too often.';
comment on column public.conversation_turns.previous_lease_token is 'Holder before a re-claim: its late result is still recorded, for its messages may have gone out.';
comment on column public.conversation_turns.attempt is '2 after one crash under the lease; there is no third.';
comment on column public.conversation_turns.claims is 'How often it was claimed, releases included; bounds a turn that never ends.';
comment on column public.conversation_turns.unknown_wait_seconds is 'How long an unknown outcome waits for word of the provider.';
comment on column public.conversation_turns.sms_delivery_id is 'Id that the SMS of this turn will have; the provider gets it as clientCorrelatorId, so that a report finds it even after a crash.';
comment on column public.conversation_turns.result is 'What finish_sms_turn answered; a repeat answers the same.';
comment on column public.conversation_turns.keyword is 'Kind keyword: which one; such a turn never waits for the session.';
comment on column public.conversation_turns.lease_token is 'Who works on it, while status is open.';
comment on column public.conversation_turns.lease_until is 'End of the lease; after it, and the wait for word of a provider, another may claim once more.';
comment on column public.conversation_turns.next_attempt_at is 'Released: not to be claimed before, unless a new message comes.';
comment on column public.conversation_turns.possible_duplicate is 'Claimed again after a crash: what it sends may arrive twice.';
comment on column public.conversation_turns.session_created is 'Whether its message opened the session; told again to whoever asks again.';
comment on column public.conversation_turns.whatsapp_delivery_id is 'Id that the WhatsApp message of this turn will have; the provider gets it as biz_opaque_callback_data.';
comment on column public.conversation_turns.swept_at is 'When the sweeper last put it back into its queue.';
comment on column public.conversation_turns.kind is 'conversation: what is unanswered in a session; keyword: one STOP, START or HELP.';

create table if not exists public.conversation_messages (
  id uuid constraint conversation_messages_pkey primary key default gen_random_uuid(),
  seq bigint generated always as identity,
  client_id uuid not null constraint conversation_messages_client_id_fkey references public.clients (id),
  thread_id uuid not null constraint conversation_messages_thread_id_fkey references public.conversation_threads (id) on delete cascade,
  session_id uuid not null constraint conversation_messages_session_id_fkey references public.omnichannel_sessions (id) on delete cascade,
  profile_id uuid not null constraint conversation_messages_profile_id_fkey references public.profiles (id) on delete cascade,
  call_id uuid constraint conversation_messages_call_id_fkey references public.voice_calls (id) on delete set null,
  turn_id uuid constraint conversation_messages_turn_id_fkey references public.conversation_turns (id) on delete set null,
  direction text not null,
  role text not null,
  channel text not null,
  kind text not null default 'conversation',
  content text not null,
  language text,
  provider text,
  provider_message_id text,
  renditions jsonb,
  routing jsonb,
  source text,
  model text,
  usage jsonb,
  agent_id uuid constraint conversation_messages_agent_id_fkey references public.ai_agents (id) on delete set null,
  correlation_id text,
  occurred_at timestamptz not null default now(),
  handled_at timestamptz,
  handled_as text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint conversation_messages_direction_is_known check (direction in ('inbound', 'outbound')),
  constraint conversation_messages_role_is_known check (role in ('user', 'assistant')),
  constraint conversation_messages_channel_is_known check (channel in ('voice', 'whatsapp', 'sms')),
  constraint conversation_messages_kind_is_known check (kind in ('conversation', 'call_summary', 'keyword')),
  constraint conversation_messages_handled_as_is_known check (handled_as in
    ('answered', 'suppressed', 'opted_out', 'rate_limited', 'unknown', 'abandoned'))
);
do $$
begin
  perform private.require_columns('public.conversation_messages', '{
    "id": "uuid", "seq": "bigint", "client_id": "uuid", "thread_id": "uuid", "session_id": "uuid", "profile_id": "uuid", "call_id": "uuid",
    "turn_id": "uuid", "direction": "text", "role": "text", "channel": "text", "kind": "text", "content": "text", "language": "text",
    "provider": "text", "provider_message_id": "text", "renditions": "jsonb", "routing": "jsonb", "source": "text", "model": "text",
    "usage": "jsonb", "agent_id": "uuid", "correlation_id": "text", "occurred_at": "timestamp with time zone",
    "handled_at": "timestamp with time zone", "handled_as": "text", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists conversation_messages_inbound_once
  on public.conversation_messages (provider, provider_message_id) where direction = 'inbound';
create unique index if not exists conversation_messages_one_answer_per_turn
  on public.conversation_messages (turn_id) where direction = 'outbound' and turn_id is not null;
create index if not exists idx_conversation_messages_session on public.conversation_messages (session_id, seq desc);
create index if not exists idx_conversation_messages_unanswered
  on public.conversation_messages (session_id, seq) where direction = 'inbound' and handled_at is null;
create index if not exists idx_conversation_messages_waiting
  on public.conversation_messages (created_at) where direction = 'inbound' and handled_at is null;
create index if not exists idx_conversation_messages_turn on public.conversation_messages (turn_id) where turn_id is not null;
create index if not exists idx_conversation_messages_thread on public.conversation_messages (thread_id);
create index if not exists idx_conversation_messages_client on public.conversation_messages (client_id, created_at desc);
create index if not exists idx_conversation_messages_profile on public.conversation_messages (profile_id);
create index if not exists idx_conversation_messages_call on public.conversation_messages (call_id) where call_id is not null;
create index if not exists idx_conversation_messages_agent on public.conversation_messages (agent_id) where agent_id is not null;
comment on table public.conversation_messages is 'Every turn on every channel in the order it came to us.';
comment on column public.conversation_messages.seq is 'Order of arrival; clocks of providers disagree.';
comment on column public.conversation_messages.content is 'Outbound: the plain text, of which renditions are what each channel got.';
comment on column public.conversation_messages.renditions is 'Text or template a channel, also of channels that were not used: a fallback sends from here.';
comment on column public.conversation_messages.routing is 'Which channels were chosen, and why.';
comment on column public.conversation_messages.handled_at is 'Inbound: when nothing more is owed for it; null: unanswered.';
comment on column public.conversation_messages.occurred_at is 'Inbound: when the provider says it came; outbound: when it was finished.';
comment on column public.conversation_messages.usage is 'Tokens that the model reported.';
comment on column public.conversation_messages.kind is 'conversation; call_summary: we wrote after a call; keyword: STOP, START or HELP, or the answer to it.';
comment on column public.conversation_messages.handled_as is 'Inbound: why nothing more is owed for it.';
comment on column public.conversation_messages.source is 'Outbound: who wrote it: model, database, facts, fallback, keyword.';

drop trigger if exists conversation_turns_touch on public.conversation_turns;
create trigger conversation_turns_touch before update on public.conversation_turns for each row execute function private.touch_updated_at();
drop trigger if exists conversation_messages_touch on public.conversation_messages;
create trigger conversation_messages_touch before update on public.conversation_messages for each row execute function private.touch_updated_at();

alter table public.conversation_turns enable row level security;
alter table public.conversation_messages enable row level security;
drop policy if exists conversation_turns_select on public.conversation_turns;
create policy conversation_turns_select on public.conversation_turns for select to authenticated using (false);
drop policy if exists conversation_messages_select on public.conversation_messages;
create policy conversation_messages_select on public.conversation_messages for select to authenticated
  using (profile_id in (select private.my_profile_ids()) or client_id in (select private.my_client_ids()));
revoke all on public.conversation_turns, public.conversation_messages from public, anon, authenticated;
grant select on public.conversation_messages to authenticated;
grant select, insert, update, delete on public.conversation_turns, public.conversation_messages to service_role;
revoke all on sequence public.conversation_messages_seq_seq from public, anon, authenticated;
grant usage, select on sequence public.conversation_messages_seq_seq to service_role;
