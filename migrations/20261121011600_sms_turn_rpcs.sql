-- 20261121011600_sms_turn_rpcs.sql
-- The two calls around an inbound SMS: store and claim with all context, record all results.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function private.turn_answer(p_turn_id uuid, p_history_limit integer, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_turn public.conversation_turns;
  v_session public.omnichannel_sessions;
  v_profile jsonb;
  v_summary jsonb;
  v_messages jsonb;
  v_history jsonb;
  v_wanted text[] := array['mtn', 'openai'];
begin
  select * into strict v_turn from public.conversation_turns where id = p_turn_id;
  select * into strict v_session from public.omnichannel_sessions where id = v_turn.session_id;
  v_profile := private.profile_json(v_turn.profile_id, null, p_now);
  if v_profile ->> 'whatsapp' = 'yes' then
    v_wanted := v_wanted || 'whatsapp'::text;
  end if;
  if v_turn.kind = 'keyword' then
    v_wanted := array['mtn'];
  end if;
  if v_session.call_id is not null then
    select jsonb_build_object('headline', s.headline, 'points', s.points, 'next_step', s.next_step, 'language', s.language, 'call_ended_at', c.ended_at)
      into v_summary
      from public.call_summaries s join public.voice_calls c on c.id = s.call_id
     where s.call_id = v_session.call_id;
  end if;
  select coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'text', m.content, 'channel', m.channel, 'received_at', m.occurred_at) order by m.seq), '[]')
    into v_messages
    from public.conversation_messages m
   where m.turn_id = p_turn_id and m.direction = 'inbound';
  select coalesce(jsonb_agg(jsonb_build_object('role', h.role, 'channel', h.channel, 'text', h.content, 'at', h.occurred_at, 'language', h.language) order by h.seq), '[]')
    into v_history
    from (
      select m.seq, m.role, m.channel, m.content, m.occurred_at, m.language
        from public.conversation_messages m
       where m.session_id = v_turn.session_id and m.kind <> 'keyword' and m.handled_at is not null and m.turn_id is distinct from p_turn_id
       order by m.seq desc limit p_history_limit
    ) h;
  return jsonb_build_object(
    'decision', 'go',
    'kind', v_turn.kind,
    'keyword', v_turn.keyword,
    'turn_id', v_turn.id,
    'claims', v_turn.claims,
    'possible_duplicate', v_turn.possible_duplicate,
    'already_sent', to_jsonb(private.sent_channels(v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id)),
    'correlation_id', v_turn.correlation_id,
    'session', private.session_json(v_turn.session_id, v_turn.session_created),
    'profile', v_profile,
    'client', private.client_json(v_turn.client_id),
    'agent', private.agent_json(v_turn.client_id, v_session.last_agent_id),
    'call_summary', v_summary,
    'language_hint', (select m.language from public.conversation_messages m
                       where m.turn_id = p_turn_id and m.direction = 'inbound' and m.language is not null order by m.seq desc limit 1),
    'messages', v_messages,
    'history', v_history,
    'delivery_ids', jsonb_build_object('sms', v_turn.sms_delivery_id, 'whatsapp', v_turn.whatsapp_delivery_id),
    'attempt', v_turn.attempt,
    'providers', private.provider_gates(v_wanted, v_turn.lease_token, p_now));
end
$$;
comment on function private.turn_answer is 'All context of a claimed turn.';

create or replace function private.close_turn(p_turn_id uuid, p_status text, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
  update public.conversation_turns set status = p_status, finished_at = coalesce(finished_at, p_now), next_attempt_at = null where id = p_turn_id;
  update public.conversation_messages set handled_at = p_now, handled_as = p_status
   where turn_id = p_turn_id and direction = 'inbound' and handled_at is null;
end
$$;
comment on function private.close_turn is 'Finishes a turn and its messages.';

-- The caller holds the session's row lock.
create or replace function private.claim_turn(
  p_session_id uuid, p_mode text, p_turn_id uuid, p_created boolean, p_token uuid, p_correlation_id text,
  p_lease interval, p_wait interval, p_history_limit integer, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_turn public.conversation_turns;
  v_judged text;
  v_opted_out boolean;
  v_taken integer;
begin
  select * into strict v_session from public.omnichannel_sessions where id = p_session_id;
  select not allows_sms into v_opted_out from public.profiles where id = v_session.profile_id;

  for v_turn in
    select * from public.conversation_turns t
     where t.session_id = p_session_id and t.status in ('open', 'released')
       and (t.kind = 'conversation' or p_mode = 'session' or t.id = p_turn_id)
     order by (t.kind = 'keyword') desc, t.created_at
       for no key update
  loop
    v_judged := private.judge_claim(v_turn.status, v_turn.lease_token, v_turn.lease_until, v_turn.next_attempt_at, v_turn.attempt, p_token, p_wait, p_now);
    if v_judged in ('wait', 'again', 'dead') and cardinality(private.record_carried(v_turn.client_id, v_turn.session_id, v_turn.profile_id,
         v_session.call_id, v_turn.id, v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id,
         case v_turn.kind when 'keyword' then 'keyword' else 'reply' end, v_turn.correlation_id, 'turn:' || v_turn.id, p_now)) > 0 then
      -- The holder is gone, but a provider reported on its message: that was the answer.
      update public.conversation_turns set previous_lease_token = lease_token where id = v_turn.id;
      perform private.close_turn(v_turn.id, 'answered', p_now);
      continue;
    end if;
    if v_judged = 'dead' then
      perform private.close_turn(v_turn.id, 'unknown', p_now);
      perform private.give_up('sms-inbound', 'turn:' || v_turn.id, jsonb_build_object('session_id', p_session_id, 'turn_id', v_turn.id),
        v_turn.attempt::integer, 'crashed_twice', v_turn.correlation_id, v_turn.client_id);
      continue;
    end if;
    if v_judged = 'free' and v_turn.claims >= 50 then
      perform private.close_turn(v_turn.id, 'abandoned', p_now);
      perform private.give_up('sms-inbound', 'turn:' || v_turn.id, jsonb_build_object('session_id', p_session_id, 'turn_id', v_turn.id),
        v_turn.claims, 'given_back_too_often', v_turn.correlation_id, v_turn.client_id);
      continue;
    end if;
    if v_judged in ('free', 'later', 'again') and v_turn.kind = 'conversation' and v_opted_out then
      perform private.close_turn(v_turn.id, 'suppressed', p_now);
      continue;
    end if;
    -- A new message may be answered although an earlier try asked for a pause.
    if v_judged = 'later' and (p_mode = 'new' or v_turn.kind = 'keyword' and v_turn.id = p_turn_id) then
      v_judged := 'free';
    end if;
    case v_judged
      when 'live' then
        if v_turn.kind = 'keyword' and p_mode = 'session' then
          continue;
        end if;
        return case p_mode
          when 'new' then jsonb_build_object('decision', 'stored')
          when 'known' then jsonb_build_object('decision', 'duplicate')
          else jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_turn.lease_until, p_now)) end;
      when 'later' then
        return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_turn.next_attempt_at, p_now));
      when 'wait' then
        return jsonb_build_object('decision', 'wait_unknown', 'retry_after_s', private.seconds_until(v_turn.lease_until + p_wait, p_now));
      when 'mine' then
        -- Asked again under the same token, because the answer was lost or to take up the rest of a burst.
        update public.conversation_turns set lease_until = p_now + p_lease where id = v_turn.id;
      when 'free' then
        update public.conversation_turns
           set status = 'open', lease_token = p_token, lease_until = p_now + p_lease, claims = claims + 1, next_attempt_at = null, result = null
         where id = v_turn.id;
      when 'again' then
        update public.conversation_turns
           set previous_lease_token = lease_token, lease_token = p_token, lease_until = p_now + p_lease,
               claims = claims + 1, attempt = 2, possible_duplicate = true
         where id = v_turn.id;
    end case;
    if v_turn.kind = 'conversation' then
      update public.conversation_messages set turn_id = v_turn.id
       where session_id = p_session_id and direction = 'inbound' and handled_at is null and kind = 'conversation' and turn_id is null;
    end if;
    return private.turn_answer(v_turn.id, p_history_limit, p_now);
  end loop;

  if not exists (
    select from public.conversation_messages m
     where m.session_id = p_session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation'
  ) then
    return jsonb_build_object('decision', case p_mode when 'session' then 'nothing' else 'duplicate' end);
  end if;
  if v_opted_out then
    update public.conversation_messages set handled_at = p_now, handled_as = 'opted_out'
     where session_id = p_session_id and direction = 'inbound' and handled_at is null and kind = 'conversation';
    return jsonb_build_object('decision', 'opted_out');
  end if;
  insert into public.conversation_turns
    (client_id, session_id, profile_id, kind, lease_token, lease_until, unknown_wait_seconds, session_created, correlation_id)
  values (v_session.client_id, p_session_id, v_session.profile_id, 'conversation', p_token, p_now + p_lease, extract(epoch from p_wait)::integer,
    p_created, p_correlation_id)
  returning * into v_turn;
  update public.conversation_messages set turn_id = v_turn.id
   where session_id = p_session_id and direction = 'inbound' and handled_at is null and kind = 'conversation';
  return private.turn_answer(v_turn.id, p_history_limit, p_now);
end
$$;
comment on function private.claim_turn is
  'Claims what is unanswered in a session. Mode new: a message just stored; known: one delivered again; session: somebody looks after the session.';

create or replace function public.begin_sms_turn(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := private.required(p, 'correlation_id');
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 60)::double precision);
  v_wait interval := make_interval(secs => coalesce((p ->> 'unknown_wait_seconds')::integer, 120));
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_history integer := coalesce((p ->> 'history_limit')::integer, 20);
  v_keyword text := nullif(p ->> 'keyword', '');
  v_message public.conversation_messages;
  v_client_id uuid;
  v_profile_id uuid;
  v_session_id uuid;
  v_created boolean;
  v_allows_sms boolean;
  v_turn_id uuid;
  v_known boolean := true;
begin
  if p ->> 'provider_message_id' is null and p ->> 'session_id' is not null then
    v_session_id := (p ->> 'session_id')::uuid;
    perform from public.omnichannel_sessions where id = v_session_id for no key update;
    if not found then
      return jsonb_build_object('decision', 'nothing');
    end if;
    v_now := greatest(v_now, private.now_of(p));
    return private.claim_turn(v_session_id, 'session', null, false, v_token, v_correlation, v_lease, v_wait, v_history, v_now);
  end if;

  select * into v_message from public.conversation_messages
   where direction = 'inbound' and provider = private.required(p, 'provider') and provider_message_id = private.required(p, 'provider_message_id');
  if not found then
    v_client_id := private.client_of_address('sms', p ->> 'to');
    v_profile_id := private.ensure_profile(private.required(p, 'from'));
    select o.session_id, o.created into v_session_id, v_created
      from private.open_session(v_client_id, v_profile_id, 'sms', null, v_idle, v_now) o;
    v_now := greatest(v_now, private.now_of(p));  -- there may have been a wait for the session's lock
    insert into public.conversation_messages
      (client_id, thread_id, session_id, profile_id, call_id, direction, role, channel, kind, content, language, provider, provider_message_id,
       correlation_id, occurred_at)
    select v_client_id, t.id, v_session_id, v_profile_id, t.call_id, 'inbound', 'user', 'sms',
           case when v_keyword is null then 'conversation' else 'keyword' end, coalesce(p ->> 'text', ''), p ->> 'language_hint',
           p ->> 'provider', p ->> 'provider_message_id', v_correlation, coalesce((p ->> 'received_at')::timestamptz, v_now)
      from public.conversation_threads t where t.session_id = v_session_id
    on conflict (provider, provider_message_id) where direction = 'inbound' do nothing
    returning * into v_message;
    v_known := not found;
    if v_known then
      select * into strict v_message from public.conversation_messages
       where direction = 'inbound' and provider = p ->> 'provider' and provider_message_id = p ->> 'provider_message_id';
    end if;
  end if;

  if v_known then
    if v_message.handled_at is not null
       or exists (select from public.conversation_turns t
                   where t.id = v_message.turn_id and t.status = 'open' and t.lease_token <> v_token and t.lease_until > v_now) then
      return jsonb_build_object('decision', 'duplicate');
    end if;
    -- Delivered again and still owed: its holder crashed or gave it back, or asks again under the same token.
    perform from public.omnichannel_sessions where id = v_message.session_id for no key update;
    v_now := greatest(v_now, private.now_of(p));
    select * into strict v_message from public.conversation_messages where id = v_message.id;
    return private.claim_turn(v_message.session_id, 'known', v_message.turn_id, false, v_token, v_correlation, v_lease, v_wait, v_history, v_now);
  end if;

  insert into public.message_delivery_log
    (client_id, session_id, profile_id, call_id, message_id, direction, channel, purpose, status, status_at, provider, provider_message_id,
     correlation_id, recipient, sender, content, delivered_at)
  values
    (v_client_id, v_session_id, v_profile_id, v_message.call_id, v_message.id, 'inbound', 'sms', 'inbound', 'delivered', v_message.occurred_at,
     v_message.provider, v_message.provider_message_id, v_correlation, p ->> 'to', p ->> 'from', v_message.content, v_message.occurred_at)
  on conflict do nothing;
  perform private.touch_session(v_session_id, 'active', array['sms'], v_now);

  -- STOP is never limited: it must work most of all for those who get too much.
  if v_keyword is distinct from 'stop'
     and not (private.take_rate_limit('sms_inbound:' || v_profile_id, coalesce((p ->> 'rate_limit_per_hour')::integer, 120), interval '1 hour', v_now)
              ->> 'allowed')::boolean then
    update public.conversation_messages set handled_at = v_now, handled_as = 'rate_limited' where id = v_message.id;
    return jsonb_build_object('decision', 'rate_limited');
  end if;

  if v_keyword is null then
    update public.profiles set last_active_channel = 'sms' where id = v_profile_id and last_active_channel is distinct from 'sms';
    return private.claim_turn(v_session_id, 'new', null, v_created, v_token, v_correlation, v_lease, v_wait, v_history, v_now);
  end if;

  select allows_sms into strict v_allows_sms from public.profiles where id = v_profile_id;
  if v_keyword = 'stop' and not v_allows_sms then
    update public.conversation_messages set handled_at = v_now, handled_as = 'opted_out' where id = v_message.id;
    return jsonb_build_object('decision', 'opted_out');
  end if;
  insert into public.conversation_turns
    (client_id, session_id, profile_id, kind, keyword, lease_token, lease_until, unknown_wait_seconds, session_created, correlation_id)
  values (v_client_id, v_session_id, v_profile_id, 'keyword', v_keyword, v_token, v_now + v_lease, extract(epoch from v_wait)::integer, v_created,
    v_correlation)
  returning id into v_turn_id;
  update public.conversation_messages set turn_id = v_turn_id where id = v_message.id;
  update public.profiles
     set allows_sms = case v_keyword when 'stop' then false when 'start' then true else allows_sms end,
         allows_sms_source = case when v_keyword in ('stop', 'start') then 'keyword' else allows_sms_source end,
         allows_sms_at = case when v_keyword in ('stop', 'start') then v_now else allows_sms_at end,
         last_active_channel = 'sms'
   where id = v_profile_id;
  return private.turn_answer(v_turn_id, v_history, v_now);
end
$$;
comment on function public.begin_sms_turn is
  'RPC: stores an inbound SMS once, claims what is unanswered in its session and returns all context, or says why not. Without a message: claims a session again.';

create or replace function public.finish_sms_turn(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_id uuid := private.required(p, 'turn_id')::uuid;
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_outcome text := private.required(p, 'outcome');
  v_deliveries jsonb := coalesce(nullif(p -> 'deliveries', 'null'), '[]');
  v_reply jsonb := nullif(p -> 'reply', 'null');
  v_turn public.conversation_turns;
  v_agent_id uuid;
  v_call_id uuid;
  v_message_id uuid;
  v_stored jsonb;
  v_result jsonb;
begin
  if v_outcome not in ('answered', 'released', 'suppressed') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', v_outcome);
  end if;
  select * into v_turn from public.conversation_turns where id = v_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'turn not found';
  end if;
  select call_id into v_call_id from public.omnichannel_sessions where id = v_turn.session_id for no key update;
  select * into strict v_turn from public.conversation_turns where id = v_id for no key update;
  if v_token <> v_turn.lease_token and v_token is distinct from v_turn.previous_lease_token then
    raise exception using errcode = 'PT409', message = 'claim_not_held';
  end if;
  if v_token = v_turn.lease_token and v_turn.result is not null then
    return v_turn.result;
  end if;

  if v_outcome = 'released' and v_deliveries = '[]' then
    v_result := jsonb_build_object('status', v_turn.status, 'more', false, 'session_id', v_turn.session_id,
      'deliveries', '[]'::jsonb, 'fallbacks', '[]'::jsonb);
    if v_token = v_turn.lease_token and v_turn.status = 'open' then
      v_result := v_result || '{"status": "released"}';
      update public.conversation_turns
         set status = 'released', next_attempt_at = coalesce((p ->> 'next_attempt_at')::timestamptz, v_now), lease_until = v_now, result = v_result
       where id = v_id;
      perform private.note_provider_calls(p -> 'providers', v_token, v_now);
      perform private.release_probes(v_token);
    end if;
    return v_result;
  end if;

  if v_reply is not null then
    select a.id into v_agent_id from public.ai_agents a
     where a.slug = v_reply ->> 'agent_slug' and (a.client_id is null or a.client_id = v_turn.client_id)
     order by a.client_id nulls last limit 1;
    insert into public.conversation_messages
      (client_id, thread_id, session_id, profile_id, call_id, turn_id, direction, role, channel, kind, content, language, renditions, routing,
       source, model, usage, agent_id, correlation_id, occurred_at, handled_at)
    select v_turn.client_id, t.id, v_turn.session_id, v_turn.profile_id, v_call_id, v_id, 'outbound', 'assistant',
           coalesce(v_deliveries -> 0 ->> 'channel', 'sms'), v_turn.kind, coalesce(v_reply ->> 'content', ''), v_reply ->> 'language',
           nullif(v_reply -> 'renditions', 'null'), nullif(v_reply -> 'routing', 'null'), v_reply ->> 'source', v_reply ->> 'model',
           nullif(v_reply -> 'usage', 'null'), v_agent_id, coalesce(p ->> 'correlation_id', v_turn.correlation_id), v_now, v_now
      from public.conversation_threads t where t.session_id = v_turn.session_id
    on conflict (turn_id) where direction = 'outbound' and turn_id is not null do nothing
    returning id into v_message_id;
  end if;
  if v_message_id is null then
    select id into v_message_id from public.conversation_messages where turn_id = v_id and direction = 'outbound';
  end if;

  v_stored := private.store_deliveries(v_turn.client_id, v_turn.session_id, v_turn.profile_id, v_call_id, v_id, v_message_id,
    v_deliveries, v_token, coalesce(p ->> 'correlation_id', v_turn.correlation_id), 'turn:' || v_id,
    v_turn.possible_duplicate, v_turn.unknown_wait_seconds, v_now);
  perform private.close_turn(v_id, case v_outcome when 'suppressed' then 'suppressed' else 'answered' end, v_now);
  perform private.touch_session(v_turn.session_id, 'active',
    array(select distinct d ->> 'channel' from jsonb_array_elements(v_deliveries) d where d -> 'attempt' ->> 'outcome' <> 'suppressed'),
    v_now, v_reply ->> 'intent', v_agent_id);
  v_result := jsonb_build_object(
    'status', case v_outcome when 'suppressed' then 'suppressed' else 'answered' end,
    'more', exists (
      select from public.conversation_messages m
       where m.session_id = v_turn.session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation' and m.turn_id is null),
    'session_id', v_turn.session_id, 'deliveries', v_stored -> 'deliveries', 'fallbacks', v_stored -> 'fallbacks');
  update public.conversation_turns set result = v_result where id = v_id and lease_token = v_token;
  perform private.note_provider_calls(p -> 'providers', v_token, v_now);
  perform private.after_attempts(v_stored -> 'noted', v_token, v_now);
  return v_result;
end
$$;
comment on function public.finish_sms_turn is
  'RPC: records the results of a claimed turn: reply, deliveries, session; says whether more messages wait. The same token again gets the same answer.';

revoke execute on function public.begin_sms_turn(jsonb), public.finish_sms_turn(jsonb) from public, anon, authenticated;
grant execute on function public.begin_sms_turn(jsonb), public.finish_sms_turn(jsonb) to service_role;
revoke execute on function private.turn_answer(uuid, integer, timestamptz), private.close_turn(uuid, text, timestamptz),
  private.claim_turn(uuid, text, uuid, boolean, uuid, text, interval, interval, integer, timestamptz) from public, anon, authenticated;
grant execute on function private.turn_answer(uuid, integer, timestamptz), private.close_turn(uuid, text, timestamptz),
  private.claim_turn(uuid, text, uuid, boolean, uuid, text, interval, interval, integer, timestamptz) to service_role;
