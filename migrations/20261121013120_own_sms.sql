-- 20261121013120_own_sms.sql
-- Every SMS that we send is in agent_sms, in the transaction that writes its delivery, and follows it: the same text, segments, status, times, cost.
-- Messages of before are taken over.
-- Safe to run again. Locks message_delivery_log for a moment (triggers). Undo: drop the two triggers and the functions.

create or replace function private.count_sms(p_log public.message_delivery_log) returns void
language plpgsql set search_path = '' as $$
declare
  v_phone text := private.e164_of(p_log.recipient);
  v_simple text := private.simple_sms_status(p_log.status);
  -- Where somebody else has written the same message already, the row becomes ours.
  v_id uuid := (select s.id from public.agent_sms s
                 where s.provider_message_sid = p_log.provider_message_id and s.provider = p_log.provider and s.delivery_id is null);
begin
  if v_id is not null then
    update public.agent_sms set delivery_id = p_log.id where id = v_id and client_id = p_log.client_id;
    if found then
      perform private.follow_delivery(p_log);
    end if;
    return;
  end if;
  insert into public.agent_sms
    (client_id, deployment_id, call_id, prospect_id, session_id, delivery_id, phone_number, message_content, encoding, segments, status, provider,
     provider_status, provider_message_sid, sent_at, delivered_at, failed_at, failure_reason, cost, cost_currency, cost_source)
  select
    p_log.client_id,
    private.own_deployment(p_log.client_id, 'sms', coalesce(p_log.sender, c.sms_sender_id),
      (select o.last_agent_id from public.omnichannel_sessions o where o.id = p_log.session_id)),
    (select a.id from public.agent_calls a where a.voice_call_id = p_log.call_id),
    (select r.id from public.prospects r where r.client_id = p_log.client_id and r.phone_number = v_phone),
    p_log.session_id, p_log.id, v_phone, p_log.content, p_log.encoding, p_log.segments, v_simple,
    -- The carrier that would take it, where none has been asked yet.
    coalesce(p_log.provider, c.settings ->> 'sms_provider', 'mtn'),
    p_log.status, p_log.provider_message_id, coalesce(p_log.sent_at, p_log.created_at),
    case when v_simple = 'delivered' then coalesce(p_log.delivered_at, p_log.read_at, p_log.status_at) end,
    case when v_simple = 'failed' then coalesce(p_log.failed_at, p_log.expired_at, p_log.status_at) end,
    case when v_simple = 'failed' then p_log.error_code end,
    p_log.cost, p_log.cost_currency, case when p_log.cost is not null then 'provider' end
    from public.clients c where c.id = p_log.client_id
  on conflict do nothing;
end
$$;
comment on function private.count_sms is 'Writes an SMS of ours into agent_sms, or makes the row ours that somebody else wrote of it.';

create or replace function private.follow_delivery(p_log public.message_delivery_log) returns void
language plpgsql set search_path = '' as $$
declare
  v_simple text := private.simple_sms_status(p_log.status);
begin
  update public.agent_sms s
     set status = v_simple, provider_status = p_log.status, provider = coalesce(p_log.provider, s.provider),
         -- Two rows with one id of a provider: the first keeps it.
         provider_message_sid = case
           when s.provider_message_sid is not distinct from p_log.provider_message_id then p_log.provider_message_id
           when not exists (select from public.agent_sms o where o.provider_message_sid = p_log.provider_message_id
                               and o.provider = coalesce(p_log.provider, s.provider) and o.id <> s.id) then p_log.provider_message_id end,
         phone_number = private.e164_of(p_log.recipient), message_content = p_log.content,
         encoding = coalesce(p_log.encoding, s.encoding), segments = coalesce(p_log.segments, s.segments), session_id = p_log.session_id,
         sent_at = coalesce(p_log.sent_at, s.sent_at),
         delivered_at = case when v_simple = 'delivered' then coalesce(p_log.delivered_at, p_log.read_at, p_log.status_at) end,
         failed_at = case when v_simple = 'failed' then coalesce(p_log.failed_at, p_log.expired_at, p_log.status_at) end,
         failure_reason = case when v_simple = 'failed' then p_log.error_code end,
         cost = coalesce(p_log.cost, s.cost), cost_currency = coalesce(p_log.cost_currency, s.cost_currency),
         cost_source = case when p_log.cost is not null then 'provider' else s.cost_source end
   where s.delivery_id = p_log.id;
end
$$;
comment on function private.follow_delivery is 'Brings the row of agent_sms up to date with its delivery.';

create or replace function private.mirror_delivery() returns trigger
language plpgsql set search_path = '' as $$
begin
  if tg_op = 'INSERT' then
    perform private.count_sms(new);
  else
    perform private.follow_delivery(new);
  end if;
  return null;
end
$$;
comment on function private.mirror_delivery is 'Trigger: agent_sms holds every SMS of ours and follows its delivery, in the same transaction.';

drop trigger if exists message_delivery_log_count_sms on public.message_delivery_log;
create trigger message_delivery_log_count_sms after insert on public.message_delivery_log
  for each row when (new.channel = 'sms' and new.direction = 'outbound') execute function private.mirror_delivery();
drop trigger if exists message_delivery_log_follow_sms on public.message_delivery_log;
create trigger message_delivery_log_follow_sms
  after update of status, provider, provider_message_id, recipient, content, encoding, segments, session_id, sent_at, delivered_at, failed_at, expired_at,
    cost, cost_currency, error_code on public.message_delivery_log
  for each row when (new.channel = 'sms' and new.direction = 'outbound' and (
    old.status, old.provider, old.provider_message_id, old.recipient, old.content, old.encoding, old.segments, old.session_id, old.sent_at,
    old.delivered_at, old.failed_at, old.expired_at, old.cost, old.cost_currency, old.error_code)
    is distinct from (
    new.status, new.provider, new.provider_message_id, new.recipient, new.content, new.encoding, new.segments, new.session_id, new.sent_at,
    new.delivered_at, new.failed_at, new.expired_at, new.cost, new.cost_currency, new.error_code))
  execute function private.mirror_delivery();

-- Messages of before, oldest first: what they cost is the list's word for their day.
do $$
declare
  v_log public.message_delivery_log;
begin
  for v_log in
    select l.* from public.message_delivery_log l
     where l.channel = 'sms' and l.direction = 'outbound' and not exists (select from public.agent_sms s where s.delivery_id = l.id)
     order by l.created_at, l.id
  loop
    perform private.count_sms(v_log);
  end loop;
end
$$;

revoke execute on function private.count_sms(public.message_delivery_log), private.follow_delivery(public.message_delivery_log),
  private.mirror_delivery() from public, anon, authenticated;
grant execute on function private.count_sms(public.message_delivery_log), private.follow_delivery(public.message_delivery_log),
  private.mirror_delivery() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013120'::text $$;

notify pgrst, 'reload schema';
