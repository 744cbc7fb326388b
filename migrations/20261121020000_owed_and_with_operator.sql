-- 20261121020000_owed_and_with_operator.sql
-- Two rules of who may take a turn in one function: an answer that is owed (018000) is dropped where it is of no use any more, and
-- while a colleague is at it (017200) nobody else answers. Each came with a version of the function that did not know the other.
-- Safe to run again. Undo: apply private.claim_turn of 20261121018000 again.
create or replace function private.claim_turn(
  p_session_id uuid, p_mode text, p_turn_id uuid, p_created boolean, p_token uuid, p_correlation_id text,
  p_lease interval, p_wait interval, p_history_limit integer, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_turn public.conversation_turns;
  v_judged text;
  v_silenced boolean;
  v_taken boolean;
begin
  select * into strict v_session from public.omnichannel_sessions where id = p_session_id;
  -- While a colleague is at it, nobody else answers; what an agent had begun to answer still goes out.
  v_taken := exists (
    select from public.handoffs h where h.client_id = v_session.client_id and h.profile_id = v_session.profile_id and h.state = 'taken');
  for v_turn in
    select * from public.conversation_turns t
     where t.profile_id = v_session.profile_id and t.client_id = v_session.client_id and t.status in ('open', 'released')
       and (t.kind = 'conversation' or p_mode = 'session' or t.id = p_turn_id)
     order by (t.kind = 'keyword') desc, t.created_at
       for no key update
  loop
    v_judged := private.judge_claim(v_turn.status, v_turn.lease_token, v_turn.lease_until, v_turn.next_attempt_at, v_turn.attempt, p_token, p_wait, p_now);
    if v_judged in ('wait', 'again', 'dead') and cardinality(private.record_carried(v_turn.client_id, v_turn.session_id, v_turn.profile_id,
         (select s.call_id from public.omnichannel_sessions s where s.id = v_turn.session_id), v_turn.id, v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id,
         case v_turn.kind when 'keyword' then 'keyword' else 'reply' end, v_turn.correlation_id, 'turn:' || v_turn.id, p_now)) > 0 then
      -- The holder is gone, but a provider reported on its message: that was the answer.
      update public.conversation_turns set previous_lease_token = lease_token where id = v_turn.id;
      perform private.close_turn(v_turn.id, 'answered', p_now);
      continue;
    end if;
    if v_judged = 'dead' then
      perform private.close_turn(v_turn.id, 'unknown', p_now);
      perform private.give_up('sms-inbound', 'turn:' || v_turn.id, jsonb_build_object('session_id', v_turn.session_id, 'turn_id', v_turn.id),
        v_turn.attempt::integer, 'crashed_twice', v_turn.correlation_id, v_turn.client_id);
      continue;
    end if;
    if v_judged = 'free' and v_turn.claims >= 50 then
      perform private.close_turn(v_turn.id, 'abandoned', p_now);
      perform private.give_up('sms-inbound', 'turn:' || v_turn.id, jsonb_build_object('session_id', v_turn.session_id, 'turn_id', v_turn.id),
        v_turn.claims, 'given_back_too_often', v_turn.correlation_id, v_turn.client_id);
      continue;
    end if;
    if v_judged in ('free', 'later') and v_turn.owed_for is not null and private.drop_owed_turn(v_turn, p_now) then
      continue;
    end if;
    if v_judged in ('free', 'later', 'again') and v_turn.kind = 'conversation' and not exists (
         select from public.conversation_messages m
          where m.session_id = v_turn.session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation'
            and (m.turn_id = v_turn.id or m.turn_id is null) and private.may_answer(v_turn.profile_id, m.channel)) then
      perform private.close_turn(v_turn.id, 'suppressed', p_now);
      continue;
    end if;
    if v_judged in ('free', 'later', 'again') and v_turn.kind = 'conversation' and v_taken then
      perform private.close_turn(v_turn.id, 'suppressed', p_now);
      update public.conversation_messages m set handled_as = 'with_operator'
       where m.turn_id = v_turn.id and m.direction = 'inbound' and m.handled_at = p_now and m.handled_as = 'suppressed';
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
        -- A copy of a message whose apology is out: the sweep looks after its answer.
        if v_turn.owed_for is not null and p_mode = 'known' then
          return jsonb_build_object('decision', 'duplicate');
        end if;
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
       where session_id = v_turn.session_id and direction = 'inbound' and handled_at is null and kind = 'conversation' and turn_id is null;
    end if;
    return private.turn_answer(v_turn.id, p_history_limit, p_now)
      || case when v_turn.owed_for is not null then '{"owed": true}'::jsonb else '{}' end;
  end loop;

  update public.conversation_messages m set handled_at = p_now, handled_as = 'opted_out'
   where m.session_id = p_session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation'
     and not private.may_answer(m.profile_id, m.channel);
  v_silenced := found;
  if not exists (
    select from public.conversation_messages m
     where m.session_id = p_session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation'
  ) then
    return jsonb_build_object('decision', case when v_silenced then 'opted_out' when p_mode = 'session' then 'nothing' else 'duplicate' end);
  end if;
  if v_taken then
    update public.conversation_messages m set handled_at = p_now, handled_as = 'with_operator'
     where m.session_id = p_session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation';
    return '{"decision": "with_operator"}';
  end if;
  insert into public.conversation_turns
    (client_id, session_id, profile_id, kind, lease_token, lease_until, unknown_wait_seconds, session_created, correlation_id, call_correlation_id)
  values (v_session.client_id, p_session_id, v_session.profile_id, 'conversation', p_token, p_now + p_lease, extract(epoch from p_wait)::integer,
    p_created, p_correlation_id, private.correlation_of_call(p_session_id))
  returning * into v_turn;
  update public.conversation_messages set turn_id = v_turn.id
   where session_id = p_session_id and direction = 'inbound' and handled_at is null and kind = 'conversation';
  return private.turn_answer(v_turn.id, p_history_limit, p_now);
end
$$;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121020000'::text $$;

notify pgrst, 'reload schema';
