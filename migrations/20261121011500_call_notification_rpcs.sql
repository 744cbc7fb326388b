-- 20261121011500_call_notification_rpcs.sql
-- The two calls around the notification of an ended call: claim with all context, record all results.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function private.find_call(p_ref text) returns uuid
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(
      (select s.call_id from public.call_summaries s where s.id = private.uuid_or_null(p_ref)),
      (select c.id from public.voice_calls c where c.id = private.uuid_or_null(p_ref)),
      (select c.id from public.voice_calls c where c.provider_call_id = p_ref order by c.created_at desc limit 1),
      (select c.id from public.voice_calls c where c.mtn_call_sid = p_ref)));
end
$$;
comment on function private.find_call is 'The call that a request names: by summary, by id, by the trunk''s id, by MTN''s id.';

create or replace function private.recipient_of_call(
  p_call public.voice_calls, p_profile_ref text, p_phone text, out profile_id uuid, out phone text
) language plpgsql set search_path = '' as $$
declare
  v_ref uuid := private.uuid_or_null(p_profile_ref);
  v_own text;
  v_caller text := case p_call.direction when 'outbound' then p_call.to_number else p_call.from_number end;
begin
  phone := case when private.is_e164(p_phone) then p_phone end;
  if v_ref is not null then
    select p.id, p.phone_number into profile_id, v_own from public.profiles p where p.id = v_ref
    union all
    select p.id, p.phone_number from public.profiles p where p.user_id = v_ref
    limit 1;
  end if;
  if profile_id is null and phone is null then
    select p.id, p.phone_number into profile_id, v_own from public.profiles p where p.id = p_call.profile_id;
    phone := case when private.is_e164(v_caller) then v_caller end;
  end if;
  if profile_id is not null and phone is null then
    phone := v_own;
  end if;
  if phone is null then
    -- Without any number somebody may still be reached on WhatsApp.
    if not exists (select from public.profile_identities i where i.profile_id = recipient_of_call.profile_id and i.kind like 'whatsapp%') then
      profile_id := null;
    end if;
    return;
  end if;
  -- Whoever owns the number is who is told: an opt-out belongs to the number.
  if profile_id is null or private.profile_of_phone(phone) is not null then
    profile_id := private.ensure_profile(phone);
  else
    update public.profiles set phone_number = phone where id = profile_id and phone_number is null;
    insert into public.profile_identities (profile_id, kind, value) values (recipient_of_call.profile_id, 'phone', phone)
    on conflict (kind, value) do nothing;
  end if;
end
$$;
comment on function private.recipient_of_call is
  'Who is told about a call, and at which number: the number asked for, else the profile''s, else the caller''s. Nulls: nobody.';

create or replace function private.notification_answer(p_id uuid, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_claim public.call_notifications;
  v_call public.voice_calls;
  v_summary jsonb;
  v_profile jsonb;
  v_wanted text[] := array['mtn'];
begin
  select * into strict v_claim from public.call_notifications where id = p_id;
  select * into strict v_call from public.voice_calls where id = v_claim.call_id;
  select jsonb_build_object('id', s.id, 'language', s.language, 'headline', s.headline, 'points', s.points, 'next_step', s.next_step,
                            'intent', s.intent, 'source', s.source)
    into v_summary
    from public.call_summaries s where s.call_id = v_claim.call_id;
  v_profile := private.profile_json(v_claim.profile_id, v_claim.phone_number, p_now);
  if v_profile ->> 'whatsapp' <> 'no' then
    v_wanted := v_wanted || 'whatsapp'::text;
  end if;
  if v_summary is null then
    v_wanted := v_wanted || 'openai'::text;
  end if;
  return jsonb_build_object(
    'decision', 'go',
    'notification_id', v_claim.id,
    'resumed', v_claim.claims > 1,
    'possible_duplicate', v_claim.possible_duplicate,
    'correlation_id', v_claim.correlation_id,
    'already_sent', to_jsonb(private.sent_channels(v_claim.sms_delivery_id, v_claim.whatsapp_delivery_id)),
    'call', private.call_json(v_call),
    'profile', v_profile,
    'client', private.client_json(v_claim.client_id),
    'session', private.session_json(v_claim.session_id, v_claim.session_created),
    'summary', v_summary,
    'transcript', case when v_summary is null then private.transcript_tail(v_claim.call_id, 16000) else '[]' end,
    'agent', private.agent_json(v_claim.client_id, v_call.agent_id),
    'delivery_ids', jsonb_build_object('sms', v_claim.sms_delivery_id, 'whatsapp', v_claim.whatsapp_delivery_id),
    'attempt', v_claim.attempt,
    'providers', private.provider_gates(v_wanted, v_claim.lease_token, p_now));
end
$$;
comment on function private.notification_answer is 'All context of a claimed notification.';

create or replace function private.note_request(p jsonb, p_call_id uuid, p_notification_id uuid, p_status text, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
  insert into public.notification_requests (correlation_id, client_id, call_ref, call_id, notification_id, status, requested_at)
  values (private.required(p, 'correlation_id'), (select c.client_id from public.voice_calls c where c.id = p_call_id),
          p ->> 'call_ref', p_call_id, p_notification_id, p_status, p_now)
  on conflict (correlation_id) do update
    set call_id = coalesce(excluded.call_id, notification_requests.call_id),
        client_id = coalesce(excluded.client_id, notification_requests.client_id),
        notification_id = coalesce(excluded.notification_id, notification_requests.notification_id),
        status = excluded.status
    where (notification_requests.notification_id, notification_requests.status)
          is distinct from (coalesce(excluded.notification_id, notification_requests.notification_id), excluded.status);
end
$$;
comment on function private.note_request is 'What became of a request, for those who ask by correlation id.';

create or replace function public.begin_call_notification(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := private.required(p, 'correlation_id');
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 60)::double precision);
  v_wait_seconds integer := coalesce((p ->> 'unknown_wait_seconds')::integer, 120);
  v_wait interval := make_interval(secs => v_wait_seconds);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_call public.voice_calls;
  v_claim public.call_notifications;
  v_to record;
  v_session_id uuid;
  v_created boolean := false;
  v_judged text;
begin
  select * into v_call from public.voice_calls where id = private.find_call(private.required(p, 'call_ref'));
  if not found then
    perform private.note_request(p, null, null, 'call_not_found', v_now);
    return jsonb_build_object('decision', 'call_not_found', 'tried',
      jsonb_build_array('call_summaries.id', 'voice_calls.id', 'voice_calls.provider_call_id', 'voice_calls.mtn_call_sid'));
  end if;

  select * into v_claim from public.call_notifications where call_id = v_call.id;
  if not found then
    select * into v_to from private.recipient_of_call(v_call, p ->> 'profile_ref', p ->> 'phone_number');
    if v_to.profile_id is not null then
      select o.session_id, o.created into v_session_id, v_created
        from private.open_session(v_call.client_id, v_to.profile_id, 'voice', v_call.id, v_idle, v_now) o;
      v_now := greatest(v_now, private.now_of(p));  -- there may have been a wait for the session's lock
    end if;
    insert into public.call_notifications
      (client_id, call_id, profile_id, session_id, phone_number, status, lease_token, lease_until, unknown_wait_seconds, session_created,
       correlation_id, finished_at)
    values
      (v_call.client_id, v_call.id, v_to.profile_id, v_session_id, v_to.phone,
       case when v_to.profile_id is null then 'no_recipient' else 'open' end, v_token, v_now + v_lease, v_wait_seconds, v_created, v_correlation,
       case when v_to.profile_id is null then v_now end)
    on conflict (call_id) do nothing
    returning * into v_claim;
    if found then
      perform private.note_request(p, v_call.id, v_claim.id, 'working', v_now);
      update public.voice_calls set notified_at = v_now, profile_id = coalesce(profile_id, v_claim.profile_id) where id = v_call.id;
      if v_claim.status = 'no_recipient' then
        return jsonb_build_object('decision', 'no_recipient');
      end if;
      perform private.touch_session(v_claim.session_id, 'active', array['voice'], v_now, null, v_call.agent_id, v_call.id);
      update public.conversation_threads set call_id = v_call.id where session_id = v_claim.session_id and call_id is distinct from v_call.id;
      if v_call.direction = 'inbound' then
        update public.profiles set last_active_channel = 'voice' where id = v_claim.profile_id and last_active_channel is distinct from 'voice';
      end if;
      return private.notification_answer(v_claim.id, v_now);
    end if;
    select * into strict v_claim from public.call_notifications where call_id = v_call.id;
  end if;

  if v_claim.status in ('open', 'released') then
    perform from public.omnichannel_sessions where id = v_claim.session_id for no key update;
    select * into strict v_claim from public.call_notifications where id = v_claim.id for no key update;
    v_now := greatest(v_now, private.now_of(p));
  end if;
  perform private.note_request(p, v_call.id, v_claim.id, case when v_claim.correlation_id = v_correlation then 'working' else 'duplicate' end, v_now);
  v_judged := private.judge_claim(v_claim.status, v_claim.lease_token, v_claim.lease_until, v_claim.next_attempt_at, v_claim.attempt, v_token, v_wait, v_now);

  if v_judged in ('wait', 'again', 'dead') then
    -- The holder is gone. What a provider reported meanwhile settles it.
    if cardinality(private.record_carried(v_claim.client_id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, null, v_claim.sms_delivery_id,
         v_claim.whatsapp_delivery_id, 'call_summary', v_claim.correlation_id, 'call:' || v_claim.call_id, v_now)) > 0 then
      update public.call_notifications set status = 'done', finished_at = v_now, previous_lease_token = lease_token where id = v_claim.id
      returning * into v_claim;
      perform private.touch_session(v_claim.session_id, 'follow_up', array[]::text[], v_now);
      v_judged := 'finished';
    elsif v_judged = 'dead' then
      update public.call_notifications set status = 'unknown', finished_at = v_now where id = v_claim.id returning * into v_claim;
      perform private.give_up('post-call-notify', 'call:' || v_claim.call_id, jsonb_build_object('call_id', v_claim.call_id), v_claim.attempt::integer,
        'crashed_twice', v_claim.correlation_id, v_claim.client_id);
      v_judged := 'finished';
    end if;
  end if;
  if v_judged = 'free' and v_claim.claims >= 50 then
    update public.call_notifications set status = 'abandoned', finished_at = v_now where id = v_claim.id returning * into v_claim;
    perform private.give_up('post-call-notify', 'call:' || v_claim.call_id, jsonb_build_object('call_id', v_claim.call_id), v_claim.claims,
      'given_back_too_often', v_claim.correlation_id, v_claim.client_id);
    v_judged := 'finished';
  end if;

  case v_judged
    when 'finished' then
      if v_claim.status = 'no_recipient' and v_claim.lease_token = v_token then
        return jsonb_build_object('decision', 'no_recipient');
      end if;
      return jsonb_build_object('decision', 'duplicate', 'correlation_id', v_claim.correlation_id, 'status', v_claim.status);
    when 'live' then
      return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_claim.lease_until, v_now));
    when 'later' then
      return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_claim.next_attempt_at, v_now));
    when 'wait' then
      return jsonb_build_object('decision', 'wait_unknown', 'retry_after_s', private.seconds_until(v_claim.lease_until + v_wait, v_now));
    when 'mine' then
      update public.call_notifications set lease_until = v_now + v_lease where id = v_claim.id;
    when 'free' then
      update public.call_notifications
         set status = 'open', lease_token = v_token, lease_until = v_now + v_lease, claims = claims + 1, next_attempt_at = null, result = null
       where id = v_claim.id;
    when 'again' then
      update public.call_notifications
         set previous_lease_token = lease_token, lease_token = v_token, lease_until = v_now + v_lease,
             claims = claims + 1, attempt = 2, possible_duplicate = true
       where id = v_claim.id;
  end case;
  return private.notification_answer(v_claim.id, v_now);
end
$$;
comment on function public.begin_call_notification is
  'RPC: claims the notification of a call and returns all context, or says why not: call_not_found, duplicate, busy, wait_unknown, no_recipient.';

create or replace function public.finish_call_notification(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_id uuid := private.required(p, 'notification_id')::uuid;
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := coalesce(p ->> 'correlation_id', '');
  v_outcome text := private.required(p, 'outcome');
  v_deliveries jsonb := coalesce(nullif(p -> 'deliveries', 'null'), '[]');
  v_message jsonb := nullif(p -> 'message', 'null');
  v_summary jsonb := nullif(p -> 'summary', 'null');
  v_claim public.call_notifications;
  v_stored jsonb;
  v_result jsonb;
begin
  if v_outcome not in ('done', 'released') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', v_outcome);
  end if;
  select * into v_claim from public.call_notifications where id = v_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'notification not found';
  end if;
  perform from public.omnichannel_sessions where id = v_claim.session_id for no key update;
  select * into strict v_claim from public.call_notifications where id = v_id for no key update;
  if v_token <> v_claim.lease_token and v_token is distinct from v_claim.previous_lease_token then
    raise exception using errcode = 'PT409', message = 'claim_not_held';
  end if;
  if v_token = v_claim.lease_token and v_claim.result is not null then
    return v_claim.result;
  end if;

  if v_outcome = 'released' and v_deliveries = '[]' then
    if v_token = v_claim.lease_token and v_claim.status = 'open' then
      v_result := jsonb_build_object('status', 'released', 'session', private.session_json(v_claim.session_id, false),
        'deliveries', '[]'::jsonb, 'fallbacks', '[]'::jsonb);
      update public.call_notifications
         set status = 'released', next_attempt_at = coalesce((p ->> 'next_attempt_at')::timestamptz, v_now), lease_until = v_now, result = v_result
       where id = v_id;
      perform private.note_provider_calls(p -> 'providers', v_token, v_now);
      perform private.release_probes(v_token);
      return v_result;
    end if;
    -- A former holder gives back what another has by now.
    return jsonb_build_object('status', v_claim.status, 'session', private.session_json(v_claim.session_id, false),
      'deliveries', '[]'::jsonb, 'fallbacks', '[]'::jsonb);
  end if;

  if v_summary is not null then
    insert into public.call_summaries (client_id, call_id, language, headline, points, next_step, intent, source, model, usage)
    values (v_claim.client_id, v_claim.call_id, v_summary ->> 'language', coalesce(v_summary ->> 'headline', ''),
            coalesce(nullif(v_summary -> 'points', 'null'), '[]'), v_summary ->> 'next_step', v_summary ->> 'intent',
            coalesce(v_summary ->> 'source', 'model'), v_summary ->> 'model', nullif(v_summary -> 'usage', 'null'))
    on conflict (call_id) do update
      set language = excluded.language, headline = excluded.headline, points = excluded.points, next_step = excluded.next_step,
          intent = excluded.intent, source = excluded.source, model = excluded.model, usage = excluded.usage
      where call_summaries.source = 'facts' and excluded.source = 'model';
  end if;

  if v_message is not null and v_claim.message_id is null then
    insert into public.conversation_messages
      (client_id, thread_id, session_id, profile_id, call_id, direction, role, channel, kind, content, language, renditions, routing,
       source, model, usage, agent_id, correlation_id, occurred_at, handled_at)
    select v_claim.client_id, t.id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, 'outbound', 'assistant',
           coalesce(v_deliveries -> 0 ->> 'channel', 'sms'), 'call_summary', coalesce(v_message ->> 'content', ''), v_message ->> 'language',
           nullif(v_message -> 'renditions', 'null'), nullif(v_message -> 'routing', 'null'), coalesce(v_summary ->> 'source', 'database'),
           v_summary ->> 'model', nullif(v_summary -> 'usage', 'null'),
           (select c.agent_id from public.voice_calls c where c.id = v_claim.call_id), v_claim.correlation_id, v_now, v_now
      from public.conversation_threads t where t.session_id = v_claim.session_id
    returning id into v_claim.message_id;
  end if;

  v_stored := private.store_deliveries(v_claim.client_id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, null, v_claim.message_id,
    v_deliveries, v_token, coalesce(nullif(v_correlation, ''), v_claim.correlation_id), 'call:' || v_claim.call_id,
    v_claim.possible_duplicate, v_claim.unknown_wait_seconds, v_now);
  perform private.touch_session(v_claim.session_id, 'follow_up',
    array(select distinct d ->> 'channel' from jsonb_array_elements(v_deliveries) d where d -> 'attempt' ->> 'outcome' <> 'suppressed'),
    v_now, v_summary ->> 'intent');
  v_result := jsonb_build_object('status', 'done',
    'session', private.session_json(v_claim.session_id, false), 'deliveries', v_stored -> 'deliveries', 'fallbacks', v_stored -> 'fallbacks');
  update public.call_notifications
     set status = 'done', finished_at = coalesce(finished_at, v_now), message_id = v_claim.message_id, next_attempt_at = null,
         result = case when v_token = lease_token then v_result else result end
   where id = v_id;
  perform private.note_provider_calls(p -> 'providers', v_token, v_now);
  perform private.after_attempts(v_stored -> 'noted', v_token, v_now);
  return v_result;
end
$$;
comment on function public.finish_call_notification is
  'RPC: records the results of a claimed notification: summary, message, deliveries, session. The same token again gets the same answer.';

revoke execute on function public.begin_call_notification(jsonb), public.finish_call_notification(jsonb) from public, anon, authenticated;
grant execute on function public.begin_call_notification(jsonb), public.finish_call_notification(jsonb) to service_role;
revoke execute on function private.find_call(text), private.recipient_of_call(public.voice_calls, text, text),
  private.notification_answer(uuid, timestamptz), private.note_request(jsonb, uuid, uuid, text, timestamptz) from public, anon, authenticated;
grant execute on function private.find_call(text), private.recipient_of_call(public.voice_calls, text, text),
  private.notification_answer(uuid, timestamptz), private.note_request(jsonb, uuid, uuid, text, timestamptz) to service_role;
