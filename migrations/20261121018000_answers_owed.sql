-- 20261121018000_answers_owed.sql
-- An apology is not an answer: where the model was slow or gone, what the person asked stays owed for some minutes, and is answered once
-- the model is back. The answer that is owed is a turn of its own, given back from the start, which the sweep takes up as it takes up
-- every turn that was given back. It never apologises again, and a newer message of the person takes what is owed along.
-- Safe to run again. Locks conversation_turns for a moment (two columns without a rewrite, one check that looks at no old row that could
-- break it). Undo: drop the three new functions, the index and the columns, and apply private.claim_turn of 20261121012200 and
-- public.finish_sms_turn of 20261121012014.
alter table public.conversation_turns add column if not exists owed_for uuid;
alter table public.conversation_turns add column if not exists owed_until timestamptz;
do $$
begin
  perform private.require_columns('public.conversation_turns', '{"owed_for": "uuid", "owed_until": "timestamp with time zone"}');
  if not exists (select from pg_catalog.pg_constraint
                  where conrelid = 'public.conversation_turns'::regclass and conname = 'conversation_turns_owed_for_fkey') then
    alter table public.conversation_turns add constraint conversation_turns_owed_for_fkey
      foreign key (owed_for) references public.conversation_turns (id) on delete cascade;
  end if;
  if not exists (select from pg_catalog.pg_constraint
                  where conrelid = 'public.conversation_turns'::regclass and conname = 'conversation_turns_owed_has_an_end') then
    alter table public.conversation_turns add constraint conversation_turns_owed_has_an_end
      check ((owed_for is null) = (owed_until is null));
  end if;
end
$$;
create unique index if not exists conversation_turns_owed_once on public.conversation_turns (owed_for) where owed_for is not null;
comment on column public.conversation_turns.owed_for is 'The turn whose apology this one makes good: the answer it owes, with the messages of that turn. It never apologises itself.';
comment on column public.conversation_turns.owed_until is 'Until when the answer is tried; after that the apology was the answer.';

create or replace function private.owed_again_at(p_claims integer, p_now timestamptz) returns timestamptz
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return p_now + least(interval '4 minutes', interval '30 seconds' * power(2, least(p_claims, 10)));
end
$$;
comment on function private.owed_again_at is 'When an owed answer is tried next: 30 s after the apology, then twice as long each time, at most 4 minutes.';

create or replace function private.owe_answer(p_turn public.conversation_turns, p_owed jsonb, p_now timestamptz) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_minutes integer := least(coalesce((p_owed ->> 'minutes')::integer, 0), 1440);
  v_id uuid;
begin
  if v_minutes <= 0 or p_turn.kind <> 'conversation' or p_turn.status <> 'open' or p_turn.owed_for is not null then
    return false;
  end if;
  insert into public.conversation_turns
    (client_id, session_id, profile_id, kind, status, lease_token, lease_until, claims, unknown_wait_seconds, correlation_id,
     call_correlation_id, agent_id, agent_reason, agent_hash, next_attempt_at, owed_for, owed_until)
  values (p_turn.client_id, p_turn.session_id, p_turn.profile_id, 'conversation', 'released', gen_random_uuid(), p_now, 0, p_turn.unknown_wait_seconds,
     p_turn.correlation_id, p_turn.call_correlation_id, p_turn.agent_id, p_turn.agent_reason, p_turn.agent_hash,
     private.owed_again_at(0, p_now), p_turn.id, p_now + make_interval(mins => v_minutes))
  on conflict (owed_for) where owed_for is not null do nothing
  returning id into v_id;
  if v_id is null then
    return false;
  end if;
  update public.conversation_messages set turn_id = v_id, handled_at = null, handled_as = null
   where turn_id = p_turn.id and direction = 'inbound';
  return true;
end
$$;
comment on function private.owe_answer is
  'After an apology: the messages of the turn are unanswered again, under a turn of their own that is tried for so many minutes. Nothing where that is no number of minutes, for a keyword, and for a turn that was owed itself.';

create or replace function private.drop_owed_turn(p_turn public.conversation_turns, p_now timestamptz) returns boolean
language plpgsql set search_path = '' as $$
begin
  if p_turn.owed_until > p_now and not exists (
       select from public.conversation_messages m
        where m.profile_id = p_turn.profile_id and m.client_id = p_turn.client_id and m.direction = 'inbound' and m.handled_at is null
          and m.kind = 'conversation' and m.turn_id is null) then
    return false;
  end if;
  if p_turn.owed_until > p_now and exists (
       select from public.conversation_messages m
        where m.session_id = p_turn.session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation' and m.turn_id is null) then
    -- The person wrote on: one answer to all of it.
    update public.conversation_messages set turn_id = null where turn_id = p_turn.id and direction = 'inbound';
  else
    -- The apology was the answer.
    update public.conversation_messages set turn_id = p_turn.owed_for, handled_at = p_now, handled_as = 'answered'
     where turn_id = p_turn.id and direction = 'inbound';
  end if;
  perform private.close_turn(p_turn.id, 'abandoned', p_now);
  return true;
end
$$;
comment on function private.drop_owed_turn is
  'Gives up an answer that is owed, when its time is over or the person wrote on; in the same conversation the newer turn then answers everything.';

create or replace function private.claim_turn(
  p_session_id uuid, p_mode text, p_turn_id uuid, p_created boolean, p_token uuid, p_correlation_id text,
  p_lease interval, p_wait interval, p_history_limit integer, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_turn public.conversation_turns;
  v_judged text;
  v_silenced boolean;
begin
  select * into strict v_session from public.omnichannel_sessions where id = p_session_id;
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
  v_waiting uuid;
  v_owed boolean;
  v_result jsonb;
begin
  if v_outcome not in ('answered', 'released', 'suppressed') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', v_outcome);
  end if;
  select * into v_turn from public.conversation_turns where id = v_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'turn not found';
  end if;
  perform private.lock_person(v_turn.client_id, v_turn.profile_id);
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
         set status = 'released', lease_until = v_now, result = v_result,
             next_attempt_at = case when v_turn.owed_for is not null then private.owed_again_at(v_turn.claims, v_now)
                                    else coalesce((p ->> 'next_attempt_at')::timestamptz, v_now) end,
             swept_at = case when v_turn.owed_for is null then swept_at end
       where id = v_id
      returning * into v_turn;
      if p #> '{owed,minutes}' = '0' then
        v_turn.owed_until := v_now;
      end if;
      if v_turn.owed_for is not null and private.drop_owed_turn(v_turn, v_now) then
        -- To be given up, too late by now, or the person wrote on: what they wrote is another turn's.
        v_result := v_result || jsonb_build_object('status', 'abandoned', 'more', exists (
          select from public.conversation_messages m
           where m.profile_id = v_turn.profile_id and m.client_id = v_turn.client_id and m.direction = 'inbound' and m.handled_at is null
             and m.kind = 'conversation' and m.turn_id is null));
        update public.conversation_turns set result = v_result where id = v_id;
      end if;
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
  -- Of this session first; then of the one that a message opened because this one was closed meanwhile.
  select m.session_id into v_waiting from public.conversation_messages m
   where m.profile_id = v_turn.profile_id and m.client_id = v_turn.client_id
     and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation' and m.turn_id is null
   order by (m.session_id = v_turn.session_id) desc, m.seq limit 1;
  -- Whoever wrote on gets an answer to all of it with the next turn.
  v_owed := v_waiting is null and v_outcome = 'answered' and v_token = v_turn.lease_token and private.owe_answer(v_turn, p -> 'owed', v_now);
  v_result := jsonb_build_object(
    'status', case v_outcome when 'suppressed' then 'suppressed' else 'answered' end,
    'more', v_waiting is not null,
    'owed', v_owed,
    'session_id', coalesce(v_waiting, v_turn.session_id), 'deliveries', v_stored -> 'deliveries', 'fallbacks', v_stored -> 'fallbacks');
  update public.conversation_turns set result = v_result where id = v_id and lease_token = v_token;
  perform private.note_provider_calls(p -> 'providers', v_token, v_now);
  perform private.after_attempts(v_stored -> 'noted', v_token, v_now);
  return v_result;
end
$$;

comment on function private.claim_turn is
  'Claims what is unanswered in a session, or first what another session of the same person still owes. Mode new: a message just stored; known: one delivered again; session: somebody looks after the session. Of an answer that is owed after an apology it says `owed`.';
comment on function public.finish_sms_turn is
  'RPC: records the results of a claimed turn: reply, deliveries, session; says whether more messages of the person wait, and in which session. With `owed: {minutes}` the answer is an apology, and a real one is tried for so long; such a turn that is released with 0 is given up. The same token again gets the same answer.';

revoke execute on function private.owed_again_at(integer, timestamptz), private.owe_answer(public.conversation_turns, jsonb, timestamptz),
  private.drop_owed_turn(public.conversation_turns, timestamptz) from public, anon, authenticated;
grant execute on function private.owed_again_at(integer, timestamptz), private.owe_answer(public.conversation_turns, jsonb, timestamptz),
  private.drop_owed_turn(public.conversation_turns, timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018000'::text $$;

notify pgrst, 'reload schema';
