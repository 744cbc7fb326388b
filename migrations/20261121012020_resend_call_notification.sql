-- 20261121012020_resend_call_notification.sql
-- An operator has a call's summary sent once more: new messages, the old ones stay, and who wanted it, and why, is kept.
-- Safe to run again. Locks only a new table. Undo: drop the function and the table.
create table if not exists public.call_notification_resends (
  id uuid constraint call_notification_resends_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint call_notification_resends_client_id_fkey references public.clients (id),
  call_id uuid not null constraint call_notification_resends_call_id_fkey references public.voice_calls (id) on delete cascade,
  reason text not null,
  requested_by text not null,
  correlation_id text not null,
  previous jsonb not null,
  created_at timestamptz not null default now(),
  constraint call_notification_resends_reason_is_given check (btrim(reason) <> '')
);
do $$
begin
  perform private.require_columns('public.call_notification_resends', '{
    "id": "uuid", "client_id": "uuid", "call_id": "uuid", "reason": "text", "requested_by": "text", "correlation_id": "text",
    "previous": "jsonb", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_call_notification_resends_client on public.call_notification_resends (client_id, created_at desc);
create index if not exists idx_call_notification_resends_call on public.call_notification_resends (call_id);
comment on table public.call_notification_resends is 'Each time that an operator had a call''s summary sent once more; append-only.';
comment on column public.call_notification_resends.reason is 'In the operator''s words.';
comment on column public.call_notification_resends.requested_by is 'The user of the token, else the role of the connection.';
comment on column public.call_notification_resends.correlation_id is 'Of the new sending.';
comment on column public.call_notification_resends.previous is 'The claim as it was: its status, correlation id, message and the ids of its deliveries.';

drop trigger if exists call_notification_resends_append_only on public.call_notification_resends;
create trigger call_notification_resends_append_only before update on public.call_notification_resends
  for each row execute function private.refuse_change();
drop trigger if exists call_notification_resends_keep on public.call_notification_resends;
create trigger call_notification_resends_keep before delete on public.call_notification_resends
  for each row when (current_user in ('anon', 'authenticated', 'service_role')) execute function private.refuse_change();
alter table public.call_notification_resends enable row level security;
drop policy if exists call_notification_resends_select on public.call_notification_resends;
create policy call_notification_resends_select on public.call_notification_resends for select to authenticated using (false);
revoke all on public.call_notification_resends from public, anon, authenticated;
grant select, insert on public.call_notification_resends to service_role;

create or replace function public.resend_call_notification(p_call_id uuid, p_reason text, p_now timestamptz default null, p_idle_hours integer default 72) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := coalesce(p_now, clock_timestamp());
  v_resend_id uuid := gen_random_uuid();
  v_correlation text := gen_random_uuid()::text;
  v_call public.voice_calls;
  v_claim public.call_notifications;
  v_to record;
  v_session_id uuid;
  v_created boolean;
  v_may_have_arrived boolean;
begin
  if nullif(btrim(p_reason), '') is null then
    raise exception using errcode = 'PT400', message = 'field reason is missing';
  end if;
  select * into v_call from public.voice_calls where id = p_call_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'call not found';
  end if;
  select * into v_claim from public.call_notifications where call_id = p_call_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'notification not found',
      hint = 'Nobody was told about this call yet: ask post-call-notify for it.';
  end if;
  if v_claim.profile_id is null then
    select * into v_to from private.recipient_of_call(v_call, null, v_claim.phone_number);
    if v_to.profile_id is null then
      raise exception using errcode = 'PT409', message = 'no_recipient', hint = 'The call has no number that can be written to.';
    end if;
    v_claim.profile_id := v_to.profile_id;
    v_claim.phone_number := v_to.phone;
  end if;
  -- Locks in the order of begin_call_notification: the session, then the claim.
  select o.session_id, o.created into v_session_id, v_created
    from private.open_session(v_claim.client_id, v_claim.profile_id, 'voice', p_call_id, make_interval(hours => p_idle_hours), v_now) o;
  perform from public.call_notifications n where n.id = v_claim.id and n.status in ('done', 'no_recipient', 'unknown', 'abandoned') for no key update;
  if not found then
    raise exception using errcode = 'PT409', message = 'notification_in_work', hint = 'It is being sent, or will be. Ask again when it is done.';
  end if;
  if exists (select from public.message_delivery_log l
              where l.call_id = p_call_id and l.direction = 'outbound' and l.purpose = 'call_summary' and l.next_attempt_at is not null) then
    raise exception using errcode = 'PT409', message = 'delivery_pending',
      hint = 'A message about this call is still due: it would come twice. See next_attempt_at in message_delivery_log.';
  end if;

  insert into public.call_notification_resends (id, client_id, call_id, reason, requested_by, correlation_id, previous)
  select v_resend_id, n.client_id, n.call_id, btrim(p_reason),
         coalesce(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', session_user::text), v_correlation,
         jsonb_build_object('status', n.status, 'correlation_id', n.correlation_id, 'message_id', n.message_id, 'phone_number', n.phone_number,
           'sms_delivery_id', n.sms_delivery_id, 'whatsapp_delivery_id', n.whatsapp_delivery_id, 'finished_at', n.finished_at)
    from public.call_notifications n where n.id = v_claim.id;

  v_may_have_arrived := v_claim.status = 'unknown' or exists (
    select from public.message_delivery_log l
     where l.call_id = p_call_id and l.direction = 'outbound' and l.purpose = 'call_summary'
       and l.status in ('sent', 'delivered', 'read', 'unknown'));
  -- One row a key: the old messages keep theirs under a name of the past, so that the new ones can be written down.
  update public.message_delivery_log l set idempotency_key = l.idempotency_key || ':until:' || v_resend_id
   where l.idempotency_key in ('call:' || p_call_id || ':sms', 'call:' || p_call_id || ':whatsapp');
  -- And a second giving up is to be a letter and an alert of its own.
  update public.dead_letters d set message_id = d.message_id || ':until:' || v_resend_id, replayed_at = coalesce(d.replayed_at, v_now)
   where d.queue = 'post-call-notify' and d.message_id = 'call:' || p_call_id;

  update public.call_notifications
     set status = 'released', profile_id = v_claim.profile_id, phone_number = v_claim.phone_number, session_id = v_session_id,
         session_created = v_created, message_id = null, result = null, finished_at = null, swept_at = null, next_attempt_at = v_now,
         lease_token = gen_random_uuid(), previous_lease_token = null, lease_until = v_now, attempt = 1, claims = 0,
         possible_duplicate = v_may_have_arrived, sms_delivery_id = gen_random_uuid(), whatsapp_delivery_id = gen_random_uuid(),
         correlation_id = v_correlation
   where id = v_claim.id;
  perform private.note_request(jsonb_build_object('correlation_id', v_correlation, 'call_ref', p_call_id), p_call_id, v_claim.id, 'working', v_now);
  return jsonb_build_object('resend_id', v_resend_id, 'correlation_id', v_correlation, 'possible_duplicate', v_may_have_arrived);
end
$$;
comment on function public.resend_call_notification is
  'For operators: the summary of a call is sent once more, by the next sweep, as new messages; the old rows stay. Refused while one is due. p_idle_hours is SESSION_IDLE_HOURS.';
revoke execute on function public.resend_call_notification(uuid, text, timestamptz, integer) from public, anon, authenticated;
grant execute on function public.resend_call_notification(uuid, text, timestamptz, integer) to service_role;
