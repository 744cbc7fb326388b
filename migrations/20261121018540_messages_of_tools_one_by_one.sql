-- 20261121018540_messages_of_tools_one_by_one.sql
-- Ten messages an hour are ten also where many are asked for at once. And quiet hours: what an agent sends in a call or in a turn is
-- part of what the person is doing and goes at any hour, as answers do; a client of MCP may act while they sleep, and is refused unless
-- they have written within the hour or are on the phone. It is refused and not kept for the morning, since whoever sends it can
-- say then whether it is still true.
-- Safe to run again. Locks no table. Undo: apply tool_send of 20261121014030 again.
create or replace function private.tool_send(p_who jsonb, p_arguments jsonb, p_renditions jsonb, p_channels text, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_client public.clients;
  v_profile public.profiles;
  v_session uuid := (p_who ->> 'session_id')::uuid;
  v_call uuid := (p_who ->> 'call_id')::uuid;
  v_key text := p_who ->> 'key';
  v_phone text;
  v_whatsapp_to text;
  v_policy text;
  v_window boolean;
  v_quiet_until timestamptz;
  v_refused jsonb := '{}';
  v_wanted text[];
  v_channel text;
  v_message_id uuid;
  v_ids jsonb := '{}';
  v_id uuid;
  v_guards jsonb;
  v_reason text;
  v_deliveries jsonb := '[]';
  v_result jsonb := '{}';
begin
  if coalesce(p_renditions #>> '{sms,text}', '') = '' or coalesce(p_renditions #>> '{whatsapp,text}', '') = '' then
    return private.tool_refused('text is missing: write the message');
  end if;
  select * into strict v_client from public.clients where id = (p_who ->> 'client_id')::uuid;
  select * into strict v_profile from public.profiles where id = (p_who ->> 'profile_id')::uuid;
  -- One after the other: of many at once each would count before the others are there.
  perform private.lock_refs(array['messages:' || v_session]);
  -- A model that goes round in circles writes to nobody ten times; what is queued and refused counts as well.
  if (select count(*) from (
        select from public.mcp_tool_calls t
         where t.session_id = v_session and t.name like 'messaging\_send\_%' and t.created_at > p_now - interval '1 hour' and t.result ->> 'ok' = 'true' limit 10) x) >= 10 then
    return private.tool_refused('ten messages were sent in the last hour: send no more, answer here');
  end if;
  v_phone := case when private.is_e164(p_who ->> 'phone') then p_who ->> 'phone' else coalesce(v_profile.phone_number,
    (select i.value from public.profile_identities i where i.profile_id = v_profile.id and i.kind = 'phone' order by i.created_at desc limit 1)) end;
  v_whatsapp_to := coalesce(v_profile.phone_number, v_phone,
    (select i.value from public.profile_identities i where i.profile_id = v_profile.id and i.kind = 'whatsapp_user_id' order by i.created_at desc limit 1));
  v_policy := coalesce(v_profile.notification_preferences ->> 'policy', v_client.default_policy, 'both');
  -- Five minutes early, as ihuza_core::routing::SERVICE_WINDOW: our clock is not Meta's.
  v_window := coalesce(v_profile.last_whatsapp_inbound_at > p_now - interval '23 hours 55 minutes', false);

  -- Nobody is woken by a message; but who is on the phone or has just written is awake, and what an agent sends them is an answer.
  if p_who ->> 'surface' = 'mcp'
     and not exists (select from public.conversation_messages i where i.session_id = v_session and i.direction = 'inbound' and i.occurred_at > p_now - interval '1 hour')
     and not exists (select from public.voice_calls c where c.id = v_call and c.ended_at is null and c.started_at > p_now - interval '3 hours') then
    v_quiet_until := private.quiet_until(v_client.id, v_profile.id, p_now);
  end if;
  v_refused := jsonb_strip_nulls(jsonb_build_object(
    'sms', case when v_policy = 'none' then 'policy_none'
                when v_phone is null then 'no_phone_number'
                when not private.may_answer(v_profile.id, 'sms') then 'opted_out'
                when p_channels = 'sms' and v_policy = 'whatsapp_only' then 'policy_whatsapp_only'
                when v_quiet_until is not null then 'quiet_hours' end,
    'whatsapp', case when v_policy = 'none' then 'policy_none'
                when v_policy = 'sms_only' then 'policy_sms_only'
                when v_whatsapp_to is null then 'no_whatsapp'
                when not private.may_answer(v_profile.id, 'whatsapp') then 'opted_out'
                when private.whatsapp_evidence(v_profile.has_whatsapp, v_profile.has_whatsapp_source, v_profile.has_whatsapp_at, p_now) = 'no' then 'not_on_whatsapp'
                when not v_window then 'service_window_closed'
                when v_quiet_until is not null then 'quiet_hours' end));
  v_wanted := case p_channels when 'dual' then array['whatsapp', 'sms'] else array[p_channels] end;
  -- Of both: what the person's policy means for one message. WhatsApp within its window is free, so the cheapest is that.
  if p_channels = 'dual' and not v_refused ? 'whatsapp' and v_policy in ('whatsapp_only', 'whatsapp_then_sms', 'cheapest') then
    v_wanted := array['whatsapp'];
  elsif p_channels = 'dual' and v_refused ? 'whatsapp' and not v_refused ? 'sms' then
    v_wanted := array['sms'];
  end if;

  insert into public.conversation_messages
    (client_id, thread_id, session_id, profile_id, call_id, direction, role, channel, kind, content, renditions, source, correlation_id, occurred_at, handled_at)
  select v_client.id, t.id, v_session, v_profile.id, v_call, 'outbound', 'assistant', v_wanted[1], 'conversation', p_renditions #>> array[v_wanted[1], 'text'],
         -- Failed on one of both, it goes over the other; one that was asked for alone stays alone.
         case p_channels when 'dual' then p_renditions - array(select jsonb_object_keys(v_refused)) else jsonb_build_object(p_channels, p_renditions -> p_channels) end,
         'tool', p_who ->> 'correlation_id', p_now, p_now
    from public.conversation_threads t where t.session_id = v_session
  returning id into v_message_id;

  foreach v_channel in array v_wanted loop
    insert into public.message_delivery_log
      (client_id, session_id, profile_id, call_id, message_id, turn_id, direction, channel, purpose, status, status_at, provider, correlation_id,
       recipient, sender, content, payload, encoding, segments, next_attempt_at, deadline_at, idempotency_key, queued_at)
    values
      (v_client.id, v_session, v_profile.id, v_call, v_message_id, (p_who ->> 'turn_id')::uuid, 'outbound', v_channel, 'message', 'queued', p_now,
       case v_channel when 'sms' then coalesce(v_client.settings ->> 'sms_provider', 'mtn') else 'whatsapp' end, p_who ->> 'correlation_id',
       case v_channel when 'sms' then v_phone else v_whatsapp_to end, case v_channel when 'sms' then v_client.sms_sender_id end,
       p_renditions #>> array[v_channel, 'text'],
       (p_renditions -> v_channel) || case when v_channel = 'sms' and v_client.sms_service_code is not null
         then jsonb_build_object('service_code', v_client.sms_service_code) else '{}' end,
       p_renditions #>> array[v_channel, 'encoding'], (p_renditions #>> array[v_channel, 'segments'])::smallint,
       case when not v_refused ? v_channel then p_now end, p_now + interval '30 minutes', 'tool:' || v_key || ':' || v_channel, p_now)
    returning id into v_id;
    perform private.add_own_event(v_id, 'queued', p_now, p_who ->> 'correlation_id');
    v_ids := v_ids || jsonb_build_object(v_channel, v_id);
  end loop;
  -- Last, for the locks that all senders of a client share. What has its permit keeps it when it is claimed.
  v_guards := private.pass_guards((
    select coalesce(jsonb_agg(jsonb_build_object('id', i.value, 'client_id', v_client.id, 'channel', i.key, 'kind', p_renditions #>> array[i.key, 'kind'],
             'segments', (p_renditions #>> array[i.key, 'segments'])::integer, 'number', case i.key when 'sms' then v_phone else v_whatsapp_to end) order by i.key), '[]')
      from jsonb_each_text(v_ids) i where not v_refused ? i.key), p_now);
  foreach v_channel in array v_wanted loop
    v_id := (v_ids ->> v_channel)::uuid;
    v_reason := coalesce(v_refused ->> v_channel, v_guards ->> v_id::text);
    if v_reason is not null then
      perform private.add_own_event(v_id, 'suppressed', p_now, p_who ->> 'correlation_id');
      update public.message_delivery_log set next_attempt_at = null, suppress_reason = v_reason where id = v_id;
    else
      v_deliveries := v_deliveries || to_jsonb(v_id);
    end if;
    perform private.refold_delivery(v_id);
    v_result := v_result || jsonb_build_object(v_channel, coalesce('not sent: ' || v_reason, 'on its way'));
  end loop;
  if v_deliveries = '[]' then
    -- Nobody reads it: it is no part of the conversation. The rows of the log say what was not sent, and why.
    delete from public.conversation_messages where id = v_message_id;
    return private.tool_refused(
      case when v_quiet_until is null then 'the message was not sent; tell it here instead'
           else format('the message was not sent: they want no messages until %s in Kigali; send it then, under a new key',
                  to_char(v_quiet_until at time zone 'Africa/Kigali', 'YYYY-MM-DD"T"HH24:MI')) end,
      jsonb_build_object('result', v_result));
  end if;
  return private.tool_answered(v_result) || jsonb_build_object('deliveries', v_deliveries);
end
$$;

comment on function private.tool_send is
  'Tool: queues one message to this person by sms, whatsapp or dual (what their policy means by both); {deliveries: [id]} are due now. Refused where no channel may carry it, and over MCP in the quiet hours of somebody who is not awake; each refusal has its suppressed row.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018540'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
