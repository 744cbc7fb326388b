-- 20261121012210_whatsapp_calls.sql
-- Calls over WhatsApp as Meta's webhooks tell of them: late, twice, and the end before the beginning. And what a STOP there stops.
-- Safe to run again. Keeps nobody from reading or writing. Undo: drop the function, apply claim_delivery and create_fallback of before.

-- The checks of 20261121012200, in a transaction of their own: nobody waits while all rows are looked at.
alter table public.conversation_messages validate constraint conversation_messages_handled_as_is_known;
alter table public.conversation_turns validate constraint conversation_turns_keyword_is_known;

-- STOP on WhatsApp stops what waits for WhatsApp as well: the functions looked at SMS alone.
create or replace function private.claim_delivery(
  p_id uuid, p_token uuid, p_lease interval, p_wait interval, p_gate text, p_open_until timestamptz, p_now timestamptz
) returns boolean language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_resend boolean := false;
begin
  select * into strict v_row from public.message_delivery_log where id = p_id;
  if v_row.lease_token is not null then
    -- Its holder is gone between sending and recording: the outcome is unknown from the end of the lease on.
    perform private.add_own_event(p_id, 'unknown', v_row.lease_until, v_row.correlation_id, 'lease_expired', 'unknown');
    update public.message_delivery_log
       set lease_token = null, lease_until = null, last_outcome = 'unknown',
           next_attempt_at = case when not v_row.possible_duplicate then v_row.lease_until + p_wait end
     where id = p_id;
    perform private.refold_delivery(p_id);
    select * into strict v_row from public.message_delivery_log where id = p_id;
    if v_row.next_attempt_at is null or v_row.next_attempt_at > p_now then
      return false;
    end if;
  end if;
  if v_row.deadline_at <= p_now then
    if v_row.status = 'unknown' then
      update public.message_delivery_log set next_attempt_at = null where id = p_id;
    else
      perform private.add_own_event(p_id, 'expired', p_now, v_row.correlation_id, coalesce(v_row.error_code, 'deadline'), v_row.error_class);
      perform private.refold_delivery(p_id);
    end if;
    return false;
  end if;
  -- STOP came after the message was decided: only the answer to a keyword may still go out.
  if v_row.purpose is distinct from 'keyword' and v_row.profile_id is not null and not private.may_answer(v_row.profile_id, v_row.channel) then
    perform private.add_own_event(p_id, 'suppressed', p_now, v_row.correlation_id);
    update public.message_delivery_log set next_attempt_at = null, suppress_reason = 'opted_out' where id = p_id;
    perform private.refold_delivery(p_id);
    return false;
  end if;
  if v_row.status = 'unknown' and coalesce(v_row.last_outcome, 'unknown') = 'unknown' then
    if v_row.possible_duplicate
       or private.is_carried(p_id, v_row.message_id)
       or private.create_fallback(p_id, p_now) is not null then
      update public.message_delivery_log set next_attempt_at = null where id = p_id;
      return false;
    end if;
    v_resend := true;
  elsif v_row.status = 'unknown' and private.is_carried(p_id, v_row.message_id) then
    -- The resend was refused. An earlier sending may have arrived, and the other channel has the message as well.
    update public.message_delivery_log set next_attempt_at = null where id = p_id;
    return false;
  end if;
  if p_gate = 'open' then
    update public.message_delivery_log
       set next_attempt_at = greatest(p_open_until, p_now) + random() * interval '15 seconds' where id = p_id;
    return false;
  end if;
  update public.message_delivery_log
     set lease_token = p_token, lease_until = p_now + p_lease, next_attempt_at = p_now + p_lease, attempts = attempts + 1,
         possible_duplicate = possible_duplicate or v_resend
   where id = p_id;
  perform private.add_own_event(p_id, 'sending', p_now, v_row.correlation_id);
  if v_row.status = 'queued' then
    perform private.refold_delivery(p_id);
  end if;
  return true;
end
$$;

create or replace function private.create_fallback(p_id uuid, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_profile public.profiles;
  v_rendition jsonb;
  v_phone text;
  v_other text;
  v_id uuid;
  v_status text;
begin
  select * into v_row from public.message_delivery_log where id = p_id;
  select id, status into v_id, v_status from public.message_delivery_log where fallback_of = p_id;
  if found then
    return case when v_status = 'queued' then jsonb_build_object('id', v_id, 'channel', case v_row.channel when 'sms' then 'whatsapp' else 'sms' end,
      'correlation_id', v_row.correlation_id) end;
  end if;
  v_other := case v_row.channel when 'whatsapp' then 'sms' when 'sms' then 'whatsapp' end;
  if v_other is null or v_row.direction <> 'outbound' or v_row.message_id is null or v_row.purpose = 'keyword'
     or v_row.deadline_at <= p_now then
    return null;
  end if;
  -- The other channel was tried, or something of the same message still carries it.
  if exists (
    select from public.message_delivery_log s
     where s.message_id = v_row.message_id and s.id <> p_id
       and (s.channel = v_other or s.status in ('sent', 'delivered', 'read', 'sending', 'queued', 'unknown'))
  ) then
    return null;
  end if;
  select m.renditions -> v_other into v_rendition from public.conversation_messages m where m.id = v_row.message_id;
  select * into v_profile from public.profiles where id = v_row.profile_id;
  if not found or v_rendition is null or jsonb_typeof(v_rendition) <> 'object' then
    return null;
  end if;
  -- The number this work was for, which need not be the profile's first.
  v_phone := case when private.is_e164(v_row.recipient) then v_row.recipient else v_profile.phone_number end;
  if not private.may_answer(v_row.profile_id, v_other) or v_other = 'sms' and v_phone is null then
    return null;
  end if;
  if v_other = 'whatsapp'
     and private.whatsapp_evidence(v_profile.has_whatsapp, v_profile.has_whatsapp_source, v_profile.has_whatsapp_at, p_now) = 'no' then
    return null;
  end if;
  insert into public.message_delivery_log
    (client_id, session_id, profile_id, call_id, message_id, turn_id, direction, channel, purpose, status, status_at, provider, correlation_id,
     recipient, sender, content, payload, encoding, segments, next_attempt_at, deadline_at, unknown_wait_seconds, fallback_of,
     idempotency_key, queued_at)
  select v_row.client_id, v_row.session_id, v_row.profile_id, v_row.call_id, v_row.message_id, v_row.turn_id, 'outbound', v_other, v_row.purpose,
         'queued', p_now, case v_other when 'sms' then coalesce(c.settings ->> 'sms_provider', 'mtn') else 'whatsapp' end, v_row.correlation_id,
         coalesce(v_phone, v_row.recipient), case v_other when 'sms' then c.sms_sender_id end,
         coalesce(v_rendition ->> 'text', v_row.content), v_rendition, v_rendition ->> 'encoding', (v_rendition ->> 'segments')::smallint,
         p_now, v_row.deadline_at, v_row.unknown_wait_seconds, p_id, 'fallback:' || p_id, p_now
    from public.clients c where c.id = v_row.client_id
  on conflict (idempotency_key) do nothing
  returning id into v_id;
  if v_id is null then
    return null;
  end if;
  perform private.add_own_event(v_id, 'queued', p_now, v_row.correlation_id);
  return jsonb_build_object('id', v_id, 'channel', v_other, 'correlation_id', v_row.correlation_id);
end
$$;

create or replace function public.record_whatsapp_calls(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_event jsonb;
  v_at timestamptz;
  v_answered timestamptz;
  v_duration integer;
  v_inbound boolean;
  v_cause text;
  v_client_id uuid;
  v_profile_id uuid;
  v_session_id uuid;
  v_call public.voice_calls;
  v_calls jsonb := '[]';
  v_notify jsonb := '[]';
begin
  -- In one order whoever comes: two batches about the same people wait for each other once.
  for v_event in
    select e.value from jsonb_array_elements(coalesce(nullif(p -> 'calls', 'null'), '[]')) with ordinality as e (value, n)
     order by coalesce(e.value ->> 'phone', e.value ->> 'user_id'), e.value ->> 'call_sid', e.n
  loop
    v_at := least(coalesce((v_event ->> 'occurred_at')::timestamptz, v_now), v_now);
    v_answered := least((v_event ->> 'answered_at')::timestamptz, v_at);
    v_duration := coalesce((v_event ->> 'duration_seconds')::integer, 0);
    v_inbound := v_event ->> 'direction' is distinct from 'outbound';
    v_client_id := private.client_of_address('whatsapp', v_event ->> 'phone_number_id');
    select * into v_call from public.voice_calls c where c.origin = 'whatsapp' and c.provider_call_id = private.required(v_event, 'call_sid');
    if not found then
      v_profile_id := private.ensure_whatsapp_profile(v_event ->> 'phone', v_event ->> 'user_id');
      insert into public.voice_calls
        (client_id, origin, provider_call_id, direction, from_number, to_number, status, started_at, profile_id, correlation_id)
      values
        (v_client_id, 'whatsapp', v_event ->> 'call_sid', case when v_inbound then 'inbound' else 'outbound' end,
         case when v_inbound then coalesce(v_event ->> 'phone', v_event ->> 'user_id') else v_event ->> 'phone_number_id' end,
         case when v_inbound then v_event ->> 'phone_number_id' else coalesce(v_event ->> 'phone', v_event ->> 'user_id') end,
         'in_progress', coalesce(v_answered, v_at), v_profile_id, coalesce(v_event ->> 'correlation_id', p ->> 'correlation_id'))
      on conflict (origin, provider_call_id) do nothing;
      select * into strict v_call from public.voice_calls c where c.origin = 'whatsapp' and c.provider_call_id = v_event ->> 'call_sid';
    end if;
    if v_call.ended_at is null and v_call.erased_at is null and v_call.profile_id is not null then
      perform private.lock_person(v_call.client_id, v_call.profile_id);
      perform private.name_whatsapp_sender(v_call.profile_id, v_event ->> 'phone', v_event ->> 'user_id', v_event ->> 'display_name');
      select o.session_id into v_session_id from private.open_session(v_call.client_id, v_call.profile_id, 'voice', v_call.id, v_idle, v_now) o;
      select * into strict v_call from public.voice_calls c where c.id = v_call.id for no key update;
    end if;
    if v_call.ended_at is null and v_call.erased_at is null and v_call.profile_id is not null then
      perform private.touch_session(v_session_id, 'active', array['voice'], v_now, null, null, v_call.id);
      update public.conversation_threads t set call_id = v_call.id where t.session_id = v_session_id and t.call_id is distinct from v_call.id;
      if v_inbound then
        -- The person's own call opens the service window, answered or not.
        perform private.note_whatsapp_inbound(v_call.client_id, v_call.profile_id, v_session_id, v_event ->> 'phone', v_at);
        update public.profiles pr set last_active_channel = 'voice' where pr.id = v_call.profile_id and pr.last_active_channel is distinct from 'voice';
      end if;
      if v_event ->> 'event' = 'terminate' then
        v_cause := case when v_duration > 0 then 'unknown' when coalesce((v_event ->> 'failed')::boolean, false) then 'setup_failed' else 'no_answer' end;
        update public.voice_calls c
           set session_id = v_session_id, answered_at = v_answered, started_at = least(c.started_at, coalesce(v_answered, v_at)),
               ended_at = greatest(v_at, c.started_at), duration_seconds = v_duration, end_cause = v_cause, status = private.status_of_cause(v_cause)
         where c.id = v_call.id
        returning * into v_call;
      else
        update public.voice_calls c set session_id = v_session_id, started_at = least(c.started_at, v_at) where c.id = v_call.id returning * into v_call;
      end if;
    end if;
    v_calls := v_calls || jsonb_build_object('call_id', v_call.id, 'status', v_call.status);
    -- Asked for again for as long as nobody has begun it: a request may have been lost on its way to the queue.
    if v_call.ended_at is not null and v_call.notified_at is null and v_call.erased_at is null
       and (v_call.direction = 'inbound' or v_call.status = 'completed') then
      v_notify := v_notify || jsonb_build_object('call_id', v_call.id, 'profile_id', v_call.profile_id,
        'phone_number', v_event ->> 'phone', 'correlation_id', v_call.correlation_id);
    end if;
  end loop;
  return jsonb_build_object('calls', v_calls, 'notify', v_notify);
end
$$;
comment on function public.record_whatsapp_calls is
  'RPC: records what Meta tells of calls over WhatsApp, in any order and any number of times; the first end counts. `notify`: ended calls whose message is still to be asked for.';
revoke execute on function public.record_whatsapp_calls(jsonb) from public, anon, authenticated;
grant execute on function public.record_whatsapp_calls(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012210'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
