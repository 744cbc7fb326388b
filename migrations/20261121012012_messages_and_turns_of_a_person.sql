-- 20261121012012_messages_and_turns_of_a_person.sql
-- What is told of a message and a turn: whose it is, what its provider's clock said, whether its person was erased.
-- Safe to run again. Adds columns without a default; builds six indexes, on large tables a while. Undo: drop the columns, build the
-- indexes of before.

-- A change of the trunk that stopped half-way left two columns for its id of the call: a call has it in the one or the other.
do $$
declare
  v_old name;
begin
  for v_old in select attname from pg_catalog.pg_attribute
                where attrelid = 'public.voice_calls'::regclass and attnum > 0 and not attisdropped
                  and attname like '%\_call\_sid' and attname <> 'mtn_call_sid' loop
    execute format('update public.voice_calls set mtn_call_sid = %1$I where mtn_call_sid is null and %1$I is not null', v_old);
    execute format('alter table public.voice_calls drop column %I', v_old);
  end loop;
end
$$;

alter table public.conversation_messages add column if not exists reported_at timestamptz, add column if not exists swept_at timestamptz;
alter table public.message_delivery_log add column if not exists erased_at timestamptz;
alter table public.message_status_events add column if not exists reported_at timestamptz;

-- Of one person the newest claim stays; what the others had is unanswered and is claimed again.
update public.conversation_turns t set status = 'abandoned'
 where t.kind = 'conversation' and t.status in ('open', 'released')
   and exists (select from public.conversation_turns n
                where n.client_id = t.client_id and n.profile_id = t.profile_id and n.kind = 'conversation'
                  and n.status in ('open', 'released') and (n.created_at, n.id) > (t.created_at, t.id));

drop index if exists public.conversation_turns_one_open;
create unique index if not exists conversation_turns_one_open
  on public.conversation_turns (client_id, profile_id) where kind = 'conversation' and status in ('open', 'released');
create index if not exists idx_conversation_turns_person on public.conversation_turns (profile_id, client_id) where status in ('open', 'released');
comment on table public.conversation_turns is 'The claim of one answer: all unanswered inbound messages of a session, or one keyword. Of one person with one client one is open, whichever session it is of.';
do $$
begin
  perform private.require_columns('public.conversation_messages', '{
    "id": "uuid", "seq": "bigint", "client_id": "uuid", "thread_id": "uuid", "session_id": "uuid", "profile_id": "uuid", "call_id": "uuid",
    "turn_id": "uuid", "direction": "text", "role": "text", "channel": "text", "kind": "text", "content": "text", "language": "text",
    "provider": "text", "provider_message_id": "text", "renditions": "jsonb", "routing": "jsonb", "source": "text", "model": "text",
    "usage": "jsonb", "agent_id": "uuid", "correlation_id": "text", "occurred_at": "timestamp with time zone",
    "reported_at": "timestamp with time zone", "swept_at": "timestamp with time zone", "handled_at": "timestamp with time zone", "handled_as": "text", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
drop index if exists public.conversation_messages_inbound_once;
create unique index if not exists conversation_messages_inbound_once
  on public.conversation_messages (provider, provider_message_id, profile_id) where direction = 'inbound';
create index if not exists idx_conversation_messages_owed
  on public.conversation_messages (profile_id, client_id) where direction = 'inbound' and handled_at is null;
comment on column public.conversation_messages.reported_at is 'Inbound: the provider''s own time, where it lay in the future and is not believed.';
comment on column public.conversation_messages.swept_at is 'Inbound: when the sweeper last put its session into the queue because of it.';
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
    "expired_at": "timestamp with time zone", "erased_at": "timestamp with time zone", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
drop index if exists public.message_delivery_log_provider_message_once;
-- What comes in is told apart by its sender as well: some gateways count for each of them, or start again from one.
create unique index if not exists message_delivery_log_provider_message_once
  on public.message_delivery_log (provider, direction, provider_message_id, (case direction when 'inbound' then coalesce(sender, '') else '' end))
  where provider_message_id is not null;
drop index if exists public.idx_message_delivery_log_created;
-- For ranges alone: in this order nobody sorts, so that "the newest of mine" is not looked for among everybody's.
create index if not exists idx_message_delivery_log_created on public.message_delivery_log (created_at desc nulls last);
comment on column public.message_delivery_log.pricing is 'What the provider''s status says about the price: {billable, pricing_model, type, category}.';
comment on column public.message_delivery_log.erased_at is 'When its person was erased: what is still reported of it is not kept.';
comment on column public.message_delivery_attempts.counts is 'Counts for the provider''s circuit breaker: accepted, and failures that are not about one recipient or template.';
do $$
begin
  perform private.require_columns('public.message_status_events', '{
    "id": "bigint", "delivery_id": "uuid", "delivery_ref": "text", "source": "text", "provider": "text", "provider_message_id": "text",
    "provider_message_key": "text", "status": "text", "raw_status": "text", "occurred_at": "timestamp with time zone",
    "reported_at": "timestamp with time zone", "error_code": "text", "error_class": "text", "evidence": "text", "pricing": "jsonb", "correlation_id": "text", "dedupe_key": "text",
    "created_at": "timestamp with time zone"}');
end
$$;
comment on column public.message_status_events.pricing is 'What the provider reported: {billable, pricing_model, type, category}.';
comment on column public.message_status_events.reported_at is 'The provider''s own time, where it lay in the future: occurred_at is then the time of arrival.';
comment on column public.alerts.kind is 'What happened, as code: dead_letter, provider_open, provider_config, delivery_bug, delivery_config, deliveries_expired, deliveries_overdue, ...';
comment on column public.dead_letters.message_id is 'The queue''s id of the message, the correlation id of a request, job:<id>, or call:<id> and turn:<id> for a claim; with #<md5 of the payload> where two have one id.';
comment on column public.dead_letters.payload is 'The envelope, or the ids of the claim; as one string where it is no JSON that Postgres takes.';
