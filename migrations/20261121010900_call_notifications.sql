-- 20261121010900_call_notifications.sql
-- The claim of a call's notification (one a call), and what became of each request for one.
-- Safe to run again. Locks only new tables. Undo: drop both tables.
create table if not exists public.call_notifications (
  id uuid constraint call_notifications_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint call_notifications_client_id_fkey references public.clients (id),
  call_id uuid not null constraint call_notifications_call_id_key unique constraint call_notifications_call_id_fkey references public.voice_calls (id) on delete cascade,
  profile_id uuid constraint call_notifications_profile_id_fkey references public.profiles (id) on delete cascade,
  session_id uuid constraint call_notifications_session_id_fkey references public.omnichannel_sessions (id) on delete cascade,
  message_id uuid constraint call_notifications_message_id_fkey references public.conversation_messages (id) on delete set null,
  phone_number text,
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
  constraint call_notifications_status_is_known check (status in ('open', 'released', 'done', 'no_recipient', 'unknown', 'abandoned')),
  constraint call_notifications_has_recipient check (status = 'no_recipient' or (profile_id is not null and session_id is not null))
);
do $$
begin
  perform private.require_columns('public.call_notifications', '{
    "id": "uuid", "client_id": "uuid", "call_id": "uuid", "profile_id": "uuid", "session_id": "uuid", "message_id": "uuid",
    "phone_number": "text", "status": "text", "lease_token": "uuid", "previous_lease_token": "uuid",
    "lease_until": "timestamp with time zone", "attempt": "smallint", "claims": "integer", "possible_duplicate": "boolean",
    "session_created": "boolean", "sms_delivery_id": "uuid", "whatsapp_delivery_id": "uuid", "correlation_id": "text",
    "next_attempt_at": "timestamp with time zone", "unknown_wait_seconds": "integer", "result": "jsonb",
    "swept_at": "timestamp with time zone", "finished_at": "timestamp with time zone", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_call_notifications_lease on public.call_notifications (lease_until) where status = 'open';
create index if not exists idx_call_notifications_released on public.call_notifications (next_attempt_at) where status = 'released';
create index if not exists idx_call_notifications_client on public.call_notifications (client_id, created_at desc);
create index if not exists idx_call_notifications_profile on public.call_notifications (profile_id) where profile_id is not null;
create index if not exists idx_call_notifications_session on public.call_notifications (session_id) where session_id is not null;
create index if not exists idx_call_notifications_message on public.call_notifications (message_id) where message_id is not null;
create index if not exists idx_call_notifications_unknown_sms on public.call_notifications (sms_delivery_id) where status = 'unknown';
create index if not exists idx_call_notifications_unknown_whatsapp on public.call_notifications (whatsapp_delivery_id) where status = 'unknown';
comment on table public.call_notifications is 'The claim of telling somebody about a call; one a call, whoever asked and how often.';
comment on column public.call_notifications.status is
  'open: somebody works under the lease; released: given back, nothing was sent; done; no_recipient: nobody to tell; unknown: crashed twice; abandoned: given back too often.';
comment on column public.call_notifications.phone_number is 'Number the summary is for, E.164.';
comment on column public.call_notifications.previous_lease_token is 'Holder before a re-claim: its late result is still recorded, for its messages may have gone out.';
comment on column public.call_notifications.attempt is '2 after one crash under the lease; there is no third.';
comment on column public.call_notifications.unknown_wait_seconds is 'How long an unknown outcome waits for word of the provider.';
comment on column public.call_notifications.sms_delivery_id is 'Id that the SMS will have; the provider gets it as clientCorrelatorId.';
comment on column public.call_notifications.result is 'What finish_call_notification answered; a repeat answers the same.';
comment on column public.call_notifications.claims is 'How often it was claimed, releases included; bounds a notification that never ends.';
comment on column public.call_notifications.lease_token is 'Who works on it, while status is open.';
comment on column public.call_notifications.lease_until is 'End of the lease; after it, and the wait for word of a provider, another may claim once more.';
comment on column public.call_notifications.next_attempt_at is 'Released: not to be claimed before.';
comment on column public.call_notifications.possible_duplicate is 'Claimed again after a crash: what it sends may arrive twice.';
comment on column public.call_notifications.session_created is 'Whether the first claim opened the session; told again to whoever asks again.';
comment on column public.call_notifications.whatsapp_delivery_id is 'Id that the WhatsApp message will have; the provider gets it as biz_opaque_callback_data.';
comment on column public.call_notifications.swept_at is 'When the sweeper last put it back into its queue.';

create table if not exists public.notification_requests (
  correlation_id text constraint notification_requests_pkey primary key,
  client_id uuid constraint notification_requests_client_id_fkey references public.clients (id),
  call_ref text,
  call_id uuid constraint notification_requests_call_id_fkey references public.voice_calls (id) on delete cascade,
  notification_id uuid constraint notification_requests_notification_id_fkey references public.call_notifications (id) on delete cascade,
  status text not null,
  error text,
  requested_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint notification_requests_status_is_known check (status in ('call_not_found', 'working', 'duplicate', 'failed'))
);
do $$
begin
  perform private.require_columns('public.notification_requests', '{
    "correlation_id": "text", "client_id": "uuid", "call_ref": "text", "call_id": "uuid", "notification_id": "uuid", "status": "text",
    "error": "text", "requested_at": "timestamp with time zone", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_notification_requests_call on public.notification_requests (call_id) where call_id is not null;
create index if not exists idx_notification_requests_notification on public.notification_requests (notification_id) where notification_id is not null;
create index if not exists idx_notification_requests_client on public.notification_requests (client_id) where client_id is not null;
comment on table public.notification_requests is 'What became of each request for a notification, by correlation id.';
comment on column public.notification_requests.call_ref is 'What the request named as the call.';
comment on column public.notification_requests.error is 'Why it failed, without personal data.';
comment on column public.notification_requests.status is 'call_not_found: looked for again; working: see the notification; duplicate: of another request''s; failed: given up.';

drop trigger if exists call_notifications_touch on public.call_notifications;
create trigger call_notifications_touch before update on public.call_notifications for each row execute function private.touch_updated_at();
drop trigger if exists notification_requests_touch on public.notification_requests;
create trigger notification_requests_touch before update on public.notification_requests for each row execute function private.touch_updated_at();

alter table public.call_notifications enable row level security;
alter table public.notification_requests enable row level security;
drop policy if exists call_notifications_select on public.call_notifications;
create policy call_notifications_select on public.call_notifications for select to authenticated using (false);
drop policy if exists notification_requests_select on public.notification_requests;
create policy notification_requests_select on public.notification_requests for select to authenticated using (false);
revoke all on public.call_notifications, public.notification_requests from public, anon, authenticated;
grant select, insert, update, delete on public.call_notifications, public.notification_requests to service_role;
