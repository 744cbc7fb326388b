-- 20261121013150_calls_priced_once.sql
-- What a call costs is looked up again only where its length, its state or the model's cost changes: not when its conversation is deleted.
-- An SMS of ours whose provider's id another client has claimed is counted all the same, without the id.
-- Safe to run again. Locks voice_calls for a moment (triggers). Undo: drop trigger voice_calls_follow and its function, and apply 20261121013110 and
-- private.count_sms of 20261121013120.

create or replace function private.follow_voice_call() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_person text := case new.direction when 'outbound' then new.to_number else new.from_number end;
begin
  update public.agent_calls c
     set session_id = new.session_id, phone_number = coalesce(private.e164_of(v_person), v_person)
   where c.voice_call_id = new.id;
  return null;
end
$$;
comment on function private.follow_voice_call is 'Trigger: conversation and number of a call in agent_calls follow the call; its amounts stay.';

drop trigger if exists voice_calls_count on public.voice_calls;
create trigger voice_calls_count after update on public.voice_calls
  for each row when (new.ended_at is not null and (
    old.ended_at, old.answered_at, old.started_at, old.duration_seconds, old.status, old.cost, old.cost_currency)
    is distinct from (
    new.ended_at, new.answered_at, new.started_at, new.duration_seconds, new.status, new.cost, new.cost_currency))
  execute function private.mirror_voice_call();
drop trigger if exists voice_calls_follow on public.voice_calls;
create trigger voice_calls_follow after update of session_id, from_number, to_number on public.voice_calls
  for each row when (new.ended_at is not null and (old.session_id, old.from_number, old.to_number) is distinct from (new.session_id, new.from_number, new.to_number))
  execute function private.follow_voice_call();

create or replace function private.count_sms(p_log public.message_delivery_log) returns void
language plpgsql set search_path = '' as $$
declare
  v_phone text := private.e164_of(p_log.recipient);
  v_simple text := private.simple_sms_status(p_log.status);
  v_sid text := p_log.provider_message_id;
  v_other record;
begin
  -- Where somebody else has written the same message already, the row becomes ours.
  select s.id, s.client_id, s.delivery_id into v_other
    from public.agent_sms s where s.provider_message_sid = p_log.provider_message_id and s.provider = p_log.provider;
  if v_other.client_id = p_log.client_id and v_other.delivery_id is null then
    update public.agent_sms set delivery_id = p_log.id where id = v_other.id;
    perform private.follow_delivery(p_log);
    return;
  elsif v_other.id is not null then
    v_sid := null;
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
    p_log.status, v_sid, coalesce(p_log.sent_at, p_log.created_at),
    case when v_simple = 'delivered' then coalesce(p_log.delivered_at, p_log.read_at, p_log.status_at) end,
    case when v_simple = 'failed' then coalesce(p_log.failed_at, p_log.expired_at, p_log.status_at) end,
    case when v_simple = 'failed' then p_log.error_code end,
    p_log.cost, p_log.cost_currency, case when p_log.cost is not null then 'provider' end
    from public.clients c where c.id = p_log.client_id
  on conflict do nothing;
end
$$;

revoke execute on function private.follow_voice_call() from public, anon, authenticated;
grant execute on function private.follow_voice_call() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013150'::text $$;

notify pgrst, 'reload schema';
