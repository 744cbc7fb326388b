-- 20261121010800_message_delivery_log.sql
-- One row a message and channel, with append-only attempts and status events beside it; the status is the fold of the events.
-- Safe to run again. Locks only new tables. Undo: drop the three tables.
create or replace function private.provider_message_key(p_id text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return (
    select case
      when k ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then replace(k, '-', '')
      when k ~ '^0[0-9a-f]+$' then regexp_replace(k, '^0+(?=.)', '')
      else k end
      from (select lower(btrim(p_id)) as k) x);
end
$$;
comment on function private.provider_message_key is
  'Normal form of a provider''s message id: carriers change its case, drop leading zeros, or print a UUID with and without dashes.';

create or replace function private.provider_message_keys(p_id text) returns text[]
language plpgsql immutable parallel safe set search_path = '' as $$
declare
  v_key text := private.provider_message_key(p_id);
  v_keys text[] := array[v_key];
begin
  -- Some gateways answer in hex and report in decimal, or the other way round. Short ids are left alone: they would meet by chance.
  if v_key ~ '^[0-9]{6,18}$' then
    v_keys := v_keys || to_hex(v_key::bigint);
  end if;
  if v_key ~ '^[0-9a-f]{5,15}$' then
    v_keys := v_keys || ('x' || lpad(v_key, 16, '0'))::bit(64)::bigint::text;
  end if;
  return v_keys;
end
$$;
comment on function private.provider_message_keys is 'All normal forms under which an id in a report may be stored, the likeliest first.';

create table if not exists public.message_delivery_log (
  id uuid constraint message_delivery_log_pkey primary key default gen_random_uuid(),
  client_id uuid not null default private.default_client_id() constraint message_delivery_log_client_id_fkey references public.clients (id),
  session_id uuid constraint message_delivery_log_session_id_fkey references public.omnichannel_sessions (id) on delete set null,
  profile_id uuid constraint message_delivery_log_profile_id_fkey references public.profiles (id) on delete set null,
  call_id uuid constraint message_delivery_log_call_id_fkey references public.voice_calls (id) on delete set null,
  message_id uuid constraint message_delivery_log_message_id_fkey references public.conversation_messages (id) on delete set null,
  turn_id uuid constraint message_delivery_log_turn_id_fkey references public.conversation_turns (id) on delete set null,
  direction text not null default 'outbound',
  channel text not null,
  purpose text not null default 'message',
  status text not null default 'queued',
  status_at timestamptz not null default now(),
  provider text,
  provider_message_id text,
  provider_message_key text generated always as (private.provider_message_key(provider_message_id)) stored,
  provider_request_id text,
  correlation_id text,
  recipient text,
  sender text,
  content text,
  payload jsonb,
  encoding text,
  segments smallint,
  cost numeric(12,6),
  cost_currency char(3),
  pricing jsonb,
  attempts smallint not null default 0,
  last_outcome text,
  next_attempt_at timestamptz,
  deadline_at timestamptz,
  unknown_wait_seconds integer not null default 120,
  lease_token uuid,
  lease_until timestamptz,
  possible_duplicate boolean not null default false,
  error_code text,
  error_class text,
  suppress_reason text,
  fallback_of uuid constraint message_delivery_log_fallback_of_fkey references public.message_delivery_log (id) on delete set null,
  idempotency_key text constraint message_delivery_log_idempotency_key_key unique,
  queued_at timestamptz,
  sending_at timestamptz,
  unknown_at timestamptz,
  sent_at timestamptz,
  delivered_at timestamptz,
  read_at timestamptz,
  failed_at timestamptz,
  expired_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint message_delivery_log_direction_is_known check (direction in ('inbound', 'outbound')),
  constraint message_delivery_log_channel_is_known check (channel in ('voice', 'whatsapp', 'sms')),
  constraint message_delivery_log_status_is_known check (status in
    ('queued', 'sending', 'sent', 'delivered', 'read', 'failed', 'undeliverable', 'expired', 'suppressed', 'unknown')),
  constraint message_delivery_log_error_class_is_known check (error_class in ('retryable', 'permanent', 'config', 'bug', 'unknown')),
  constraint message_delivery_log_segments_are_positive check (segments > 0),
  constraint message_delivery_log_cost_has_currency check ((cost is null) = (cost_currency is null))
);
do $$
begin
  perform private.require_columns('public.message_delivery_log', '{
    "id": "uuid", "client_id": "uuid", "session_id": "uuid", "profile_id": "uuid", "call_id": "uuid", "message_id": "uuid",
    "turn_id": "uuid", "direction": "text", "channel": "text", "purpose": "text", "status": "text",
    "status_at": "timestamp with time zone", "provider": "text", "provider_message_id": "text", "provider_message_key": "text",
    "provider_request_id": "text", "correlation_id": "text", "recipient": "text", "sender": "text", "content": "text", "payload": "jsonb",
    "encoding": "text", "segments": "smallint", "cost": "numeric(12,6)", "cost_currency": "character(3)", "pricing": "jsonb",
    "attempts": "smallint", "last_outcome": "text", "next_attempt_at": "timestamp with time zone",
    "deadline_at": "timestamp with time zone", "unknown_wait_seconds": "integer", "lease_token": "uuid",
    "lease_until": "timestamp with time zone", "possible_duplicate": "boolean", "error_code": "text", "error_class": "text",
    "suppress_reason": "text", "fallback_of": "uuid", "idempotency_key": "text", "queued_at": "timestamp with time zone",
    "sending_at": "timestamp with time zone", "unknown_at": "timestamp with time zone", "sent_at": "timestamp with time zone",
    "delivered_at": "timestamp with time zone", "read_at": "timestamp with time zone", "failed_at": "timestamp with time zone",
    "expired_at": "timestamp with time zone", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists message_delivery_log_provider_message_once
  on public.message_delivery_log (provider, direction, provider_message_id) where provider_message_id is not null;
create index if not exists idx_message_delivery_log_provider_key
  on public.message_delivery_log (provider, provider_message_key) where provider_message_id is not null;
create index if not exists idx_message_delivery_log_due on public.message_delivery_log (next_attempt_at) where next_attempt_at is not null;
create index if not exists idx_message_delivery_log_lease on public.message_delivery_log (lease_token) where lease_token is not null;
create unique index if not exists message_delivery_log_one_fallback on public.message_delivery_log (fallback_of) where fallback_of is not null;
create index if not exists idx_message_delivery_log_created on public.message_delivery_log (created_at);
create index if not exists idx_message_delivery_log_client on public.message_delivery_log (client_id, created_at desc);
create index if not exists idx_message_delivery_log_session on public.message_delivery_log (session_id) where session_id is not null;
create index if not exists idx_message_delivery_log_profile on public.message_delivery_log (profile_id) where profile_id is not null;
create index if not exists idx_message_delivery_log_call on public.message_delivery_log (call_id) where call_id is not null;
create index if not exists idx_message_delivery_log_message on public.message_delivery_log (message_id) where message_id is not null;
create index if not exists idx_message_delivery_log_turn on public.message_delivery_log (turn_id) where turn_id is not null;
create index if not exists idx_message_delivery_log_correlation on public.message_delivery_log (correlation_id) where correlation_id is not null;
comment on table public.message_delivery_log is 'One row an outbound message and channel, and one an inbound message: what became of it and what it cost.';
comment on column public.message_delivery_log.id is 'Also the id the provider gets from us: clientCorrelatorId, biz_opaque_callback_data.';
comment on column public.message_delivery_log.purpose is 'call_summary, reply, keyword, inbound, message.';
comment on column public.message_delivery_log.status is 'Fold of message_status_events (private.refold_delivery); never goes back.';
comment on column public.message_delivery_log.status_at is 'When that status happened, by the clock of whoever said it.';
comment on column public.message_delivery_log.provider_message_key is 'Normal form of provider_message_id, for reports that spell it differently.';
comment on column public.message_delivery_log.correlation_id is 'Of the request or inbound message that this work began with; the same in every log line.';
comment on column public.message_delivery_log.payload is 'What to send again, exactly; for a fallback the rendition it is sent from.';
comment on column public.message_delivery_log.segments is 'Billed SMS segments.';
comment on column public.message_delivery_log.cost is 'In cost_currency, as the provider reported it.';
comment on column public.message_delivery_log.pricing is 'Pricing object of the provider''s status, as received.';
comment on column public.message_delivery_log.attempts is 'Number of the newest attempt begun.';
comment on column public.message_delivery_log.last_outcome is 'Outcome of the newest attempt, deferred included.';
comment on column public.message_delivery_log.next_attempt_at is 'When somebody must look again: retry, unknown outcome, end of a lease. Null: nothing more to do.';
comment on column public.message_delivery_log.unknown_wait_seconds is 'How long an unknown outcome waits for word of the provider.';
comment on column public.message_delivery_log.possible_duplicate is 'Sent again although the first sending may have arrived.';
comment on column public.message_delivery_log.error_code is 'The provider''s code of the error that counts; never replaced by nothing.';
comment on column public.message_delivery_log.fallback_of is 'The message on the other channel that failed and that this one carries instead.';
comment on column public.message_delivery_log.idempotency_key is 'call:<id>:<channel>, turn:<id>:<channel>, fallback:<id>, or the caller''s own: one row a key.';
comment on column public.message_delivery_log.deadline_at is 'Not sent after it; then expired.';
comment on column public.message_delivery_log.encoding is 'Of an SMS: gsm7 or ucs2.';
comment on column public.message_delivery_log.lease_token is 'Who sends it now.';
comment on column public.message_delivery_log.lease_until is 'End of the lease; then the outcome is unknown.';
comment on column public.message_delivery_log.provider_request_id is 'The provider''s id of the request, for its support.';
comment on column public.message_delivery_log.suppress_reason is 'Status suppressed: why it was not sent, as code.';

create table if not exists public.message_delivery_attempts (
  id bigint generated always as identity constraint message_delivery_attempts_pkey primary key,
  delivery_id uuid not null constraint message_delivery_attempts_delivery_id_fkey references public.message_delivery_log (id) on delete cascade,
  attempt smallint not null,
  provider text not null,
  outcome text not null,
  error_class text,
  error_code text,
  error_reason text,
  http_status smallint,
  provider_message_id text,
  provider_request_id text,
  retry_after_s integer,
  next_attempt_at timestamptz,
  possible_duplicate boolean not null default false,
  counts boolean not null default true,
  started_at timestamptz,
  finished_at timestamptz,
  duration_ms integer,
  lease_token uuid,
  correlation_id text,
  created_at timestamptz not null default now(),
  constraint message_delivery_attempts_delivery_id_attempt_key unique (delivery_id, attempt),
  constraint message_delivery_attempts_outcome_is_known check (outcome in ('accepted', 'retryable', 'permanent', 'config', 'bug', 'unknown'))
);
do $$
begin
  perform private.require_columns('public.message_delivery_attempts', '{
    "id": "bigint", "delivery_id": "uuid", "attempt": "smallint", "provider": "text", "outcome": "text", "error_class": "text",
    "error_code": "text", "error_reason": "text", "http_status": "smallint", "provider_message_id": "text", "provider_request_id": "text",
    "retry_after_s": "integer", "next_attempt_at": "timestamp with time zone", "possible_duplicate": "boolean", "counts": "boolean",
    "started_at": "timestamp with time zone", "finished_at": "timestamp with time zone", "duration_ms": "integer", "lease_token": "uuid",
    "correlation_id": "text", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_message_delivery_attempts_provider on public.message_delivery_attempts (provider, created_at desc);
comment on table public.message_delivery_attempts is 'Every sending, append-only.';
comment on column public.message_delivery_attempts.error_reason is 'Short code-like reason; never text of a message.';
comment on column public.message_delivery_attempts.counts is 'Counts for the provider''s circuit breaker: accepted, and failures that are not about the recipient.';
comment on column public.message_delivery_attempts.outcome is 'accepted, or the class of what went wrong (docs/errors.md).';
comment on column public.message_delivery_attempts.next_attempt_at is 'When the function wanted to try again.';
comment on column public.message_delivery_attempts.possible_duplicate is 'The message may have arrived by an earlier attempt.';
comment on column public.message_delivery_attempts.retry_after_s is 'Pause that the provider asked for, in seconds.';
comment on column public.message_delivery_attempts.lease_token is 'Of the claim or lease that it was made under.';
comment on column public.message_delivery_attempts.provider_request_id is 'The provider''s id of the request, for its support.';

create table if not exists public.message_status_events (
  id bigint generated always as identity constraint message_status_events_pkey primary key,
  delivery_id uuid constraint message_status_events_delivery_id_fkey references public.message_delivery_log (id) on delete cascade,
  delivery_ref text,
  source text not null,
  provider text,
  provider_message_id text,
  provider_message_key text generated always as (private.provider_message_key(provider_message_id)) stored,
  status text not null,
  raw_status text,
  occurred_at timestamptz not null,
  error_code text,
  error_class text,
  evidence text,
  pricing jsonb,
  correlation_id text,
  dedupe_key text not null constraint message_status_events_dedupe_key_key unique,
  created_at timestamptz not null default now(),
  constraint message_status_events_source_is_known check (source in ('own', 'provider')),
  constraint message_status_events_status_is_known check (status in
    ('queued', 'sending', 'sent', 'delivered', 'read', 'failed', 'undeliverable', 'expired', 'suppressed', 'unknown'))
);
do $$
begin
  perform private.require_columns('public.message_status_events', '{
    "id": "bigint", "delivery_id": "uuid", "delivery_ref": "text", "source": "text", "provider": "text", "provider_message_id": "text",
    "provider_message_key": "text", "status": "text", "raw_status": "text", "occurred_at": "timestamp with time zone",
    "error_code": "text", "error_class": "text", "evidence": "text", "pricing": "jsonb", "correlation_id": "text", "dedupe_key": "text",
    "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_message_status_events_delivery on public.message_status_events (delivery_id) where delivery_id is not null;
create index if not exists idx_message_status_events_orphan_ref
  on public.message_status_events (delivery_ref) where delivery_id is null and delivery_ref is not null;
create index if not exists idx_message_status_events_orphan_key
  on public.message_status_events (provider, provider_message_key) where delivery_id is null and provider_message_id is not null;
create index if not exists idx_message_status_events_orphan_age on public.message_status_events (created_at) where delivery_id is null;
comment on table public.message_status_events is 'Every status anybody reported of a message, ours included; append-only. Without delivery_id: an orphan, came before its message.';
comment on column public.message_status_events.delivery_ref is 'The delivery id that the provider handed back, as text.';
comment on column public.message_status_events.dedupe_key is 'The same report twice has the same key.';
comment on column public.message_status_events.source is 'own: a transition that we know of ourselves; provider: a report.';
comment on column public.message_status_events.raw_status is 'The provider''s own word.';
comment on column public.message_status_events.evidence is 'What the event says about the recipient: not_on_whatsapp, opted_out, window_closed.';
comment on column public.message_status_events.pricing is 'As the provider reported it.';
comment on column public.message_status_events.provider_message_key is 'Normal form of provider_message_id, for reports that spell it differently.';

create or replace function private.only_join_orphan() returns trigger
language plpgsql set search_path = '' as $$
begin
  if old.delivery_id is null and new.delivery_id is not null
     -- A stored generated column is not computed yet in a before trigger, so it is left out of the comparison.
     and (to_jsonb(new) - '{delivery_id,provider_message_key}'::text[]) = (to_jsonb(old) - '{delivery_id,provider_message_key}'::text[]) then
    return new;
  end if;
  raise exception using errcode = 'PT409', message = 'message_status_events is append-only';
end
$$;
comment on function private.only_join_orphan is 'Trigger: the one allowed change of a status event is to give an orphan its delivery.';

drop trigger if exists message_status_events_append_only on public.message_status_events;
create trigger message_status_events_append_only before update on public.message_status_events
  for each row execute function private.only_join_orphan();
drop trigger if exists message_status_events_keep on public.message_status_events;
create trigger message_status_events_keep before delete on public.message_status_events
  for each row when (current_user in ('anon', 'authenticated', 'service_role')) execute function private.refuse_change();
drop trigger if exists message_delivery_attempts_append_only on public.message_delivery_attempts;
create trigger message_delivery_attempts_append_only before update on public.message_delivery_attempts
  for each row execute function private.refuse_change();
drop trigger if exists message_delivery_attempts_keep on public.message_delivery_attempts;
create trigger message_delivery_attempts_keep before delete on public.message_delivery_attempts
  for each row when (current_user in ('anon', 'authenticated', 'service_role')) execute function private.refuse_change();
drop trigger if exists message_delivery_log_touch on public.message_delivery_log;
create trigger message_delivery_log_touch before update on public.message_delivery_log for each row execute function private.touch_updated_at();

alter table public.message_delivery_log enable row level security;
alter table public.message_delivery_attempts enable row level security;
alter table public.message_status_events enable row level security;
drop policy if exists message_delivery_log_select on public.message_delivery_log;
create policy message_delivery_log_select on public.message_delivery_log for select to authenticated
  using (profile_id in (select private.my_profile_ids()) or client_id in (select private.my_client_ids()));
drop policy if exists message_delivery_attempts_select on public.message_delivery_attempts;
create policy message_delivery_attempts_select on public.message_delivery_attempts for select to authenticated
  using (exists (select from public.message_delivery_log l where l.id = message_delivery_attempts.delivery_id));
drop policy if exists message_status_events_select on public.message_status_events;
create policy message_status_events_select on public.message_status_events for select to authenticated
  using (exists (select from public.message_delivery_log l where l.id = message_status_events.delivery_id));

revoke all on public.message_delivery_log, public.message_delivery_attempts, public.message_status_events from public, anon, authenticated;
grant select on public.message_delivery_log, public.message_delivery_attempts, public.message_status_events to authenticated;
grant select, insert, update, delete on public.message_delivery_log to service_role;
grant select, insert on public.message_delivery_attempts to service_role;
grant select, insert, update (delivery_id) on public.message_status_events to service_role;
revoke all on sequence public.message_delivery_attempts_id_seq, public.message_status_events_id_seq from public, anon, authenticated;
grant usage, select on sequence public.message_delivery_attempts_id_seq, public.message_status_events_id_seq to service_role;
revoke execute on function private.provider_message_key(text), private.provider_message_keys(text), private.only_join_orphan()
  from public, anon, authenticated;
grant execute on function private.provider_message_key(text), private.provider_message_keys(text), private.only_join_orphan() to service_role;
