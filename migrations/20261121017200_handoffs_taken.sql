-- 20261121017200_handoffs_taken.sql
-- What happens after a colleague has taken a hand-over: the agents are silent, what the person writes waits for the colleague, who reads
-- and writes by RPC, under the same policy, guards and log as every message. Closed, the conversation is the agents' again, and they see what was
-- said; left alone for four hours it goes back to the queue, and an agent answers what the colleague did not.
-- Safe to run again. Locks handoffs (columns) and conversation_messages (one check that looks at no row) for a moment. Undo: drop the new
-- functions and columns; apply claim_turn of 20261121012200, turn_answer and sweep of 20261121017100 again.
do $$
begin
  if not exists (select from pg_catalog.pg_constraint k where k.conrelid = 'public.conversation_messages'::regclass
                  and k.conname = 'conversation_messages_handled_as_is_known' and pg_catalog.pg_get_constraintdef(k.oid) like '%with_operator%') then
    alter table public.conversation_messages drop constraint if exists conversation_messages_handled_as_is_known;
    alter table public.conversation_messages add constraint conversation_messages_handled_as_is_known
      check (handled_as in ('answered', 'suppressed', 'opted_out', 'rate_limited', 'unknown', 'abandoned', 'no_answer_wanted', 'with_operator')) not valid;
  end if;
end
$$;
alter table public.handoffs add column if not exists spoke_at timestamptz;
alter table public.handoffs add column if not exists returned integer not null default 0;
do $$
begin
  perform private.require_columns('public.handoffs', '{"spoke_at": "timestamp with time zone", "returned": "integer"}');
end
$$;
create index if not exists idx_handoffs_taken on public.handoffs (taken_at) where state = 'taken';
comment on column public.handoffs.spoke_at is 'When the operator last wrote to the person.';
comment on column public.handoffs.returned is 'Times it went back to the queue because its operator let it lie.';
comment on column public.conversation_messages.handled_as is
  'Inbound: why nothing more is owed for it. with_operator: a colleague had the conversation, and was to answer.';
comment on column public.conversation_messages.source is 'Outbound: who wrote it: model, database, facts, fallback, keyword, tool, operator.';

create or replace function private.handovers_of(p_client_id uuid, p_profile_id uuid, p_now timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
             'state', h.state, 'reason', h.reason, 'outcome', h.outcome,
             'asked', to_char(h.created_at at time zone 'Africa/Kigali', 'YYYY-MM-DD"T"HH24:MI'))) order by h.number), '[]')
      from (select * from public.handoffs x
             where x.client_id = p_client_id and x.profile_id = p_profile_id and (x.state <> 'closed' or x.closed_at > p_now - interval '24 hours')
             order by x.number desc limit 2) h);
end
$$;
comment on function private.handovers_of is 'For a model: that a colleague was asked for and is waited for, or what came of it within the last day. Not who.';

create or replace function private.sms_size(p_text text) returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
declare
  v_extended integer := length(regexp_replace(p_text, '[^\f^{}\\\[~\]|€]', '', 'g'));
  v_wide integer := length(regexp_replace(p_text, '[\u0001-\uffff]', '', 'g'));
  v_gsm boolean := p_text ~ '^[\n\r -Za-z_£¥èéùìòÇØøÅåÆæßÉΔΦΓΛΩΠΨΣΘΞ¤¡ÄÖÑÜ§¿äöñüà\f^{}\\\[~\]|€]*$';
  v_units integer := length(p_text) + case when v_gsm then v_extended else v_wide end;
  v_single integer := case when v_gsm then 160 else 70 end;
  -- A pair of units is never split over two segments, so each may hold one less.
  v_each integer := case when v_gsm then 153 else 67 end - case when v_gsm and v_extended > 0 or not v_gsm and v_wide > 0 then 1 else 0 end;
begin
  return jsonb_build_object('encoding', case when v_gsm then 'gsm7' else 'ucs2' end,
    'segments', case when v_units <= v_single then least(v_units, 1) else ceil(v_units::numeric / v_each)::integer end);
end
$$;
comment on function private.sms_size is 'Encoding and segments of a text as it stands (3GPP TS 23.038); with characters of two units it may say one segment too many.';

create or replace function private.taken_by(p jsonb) returns public.handoffs
language plpgsql set search_path = '' as $$
declare
  v_handoff public.handoffs;
begin
  select * into v_handoff from public.handoffs h
   where h.id = private.required(p, 'id')::uuid and h.state = 'taken' and h.taken_by = private.required(p, 'operator') for no key update;
  if not found then
    raise exception using errcode = 'PT404', message = 'this operator has taken no hand-over of that id';
  end if;
  if v_handoff.session_id is null or v_handoff.profile_id is null then
    raise exception using errcode = 'PT409', message = 'the caller is anonymous: there is no conversation to write in';
  end if;
  return v_handoff;
end
$$;
comment on function private.taken_by is 'The hand-over {id} that this {operator} has taken, locked.';

create or replace function public.say_in_handoff(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_text text := btrim(private.required(p, 'text'));
  v_key text := 'operator:' || private.required(p, 'idempotency_key');
  v_handoff public.handoffs;
  v_session uuid;
  v_channel text;
  v_size jsonb := private.sms_size(v_text);
  v_result jsonb;
begin
  perform private.lock_refs(array['tool:' || v_key]);
  v_handoff := private.taken_by(p);
  if exists (select from public.message_delivery_log l where l.idempotency_key in ('tool:' || v_key || ':sms', 'tool:' || v_key || ':whatsapp')) then
    return jsonb_build_object('decision', 'said', 'repeated', true);
  end if;
  -- The conversation as it is now: the one of the hand-over may have ended.
  select m.session_id, m.channel into v_session, v_channel from public.conversation_messages m
   where m.client_id = v_handoff.client_id and m.profile_id = v_handoff.profile_id and m.direction = 'inbound' order by m.seq desc limit 1;
  v_channel := coalesce(nullif(p ->> 'channel', ''), v_channel, 'sms');
  if v_channel not in ('sms', 'whatsapp', 'dual') then
    raise exception using errcode = 'PT400', message = 'channel must be sms, whatsapp or dual';
  elsif length(v_text) > 1000 or v_channel <> 'whatsapp' and (v_size ->> 'segments')::integer > 3 then
    raise exception using errcode = 'PT400', message = 'text is too long: an SMS of three segments, or 1000 characters on WhatsApp';
  end if;
  v_result := private.tool_send(jsonb_build_object(
      'client_id', v_handoff.client_id, 'profile_id', v_handoff.profile_id, 'session_id', coalesce(v_session, v_handoff.session_id), 'call_id', v_handoff.call_id,
      'key', v_key, 'correlation_id', coalesce(v_handoff.correlation_id, 'handoff-' || v_handoff.number)),
    '{}', jsonb_build_object('sms', v_size || jsonb_build_object('text', v_text), 'whatsapp', jsonb_build_object('kind', 'text', 'text', v_text)),
    v_channel, v_now);
  if v_result ->> 'ok' <> 'true' then
    return jsonb_build_object('decision', 'not_sent', 'channels', v_result -> 'result', 'reason', v_result -> 'error');
  end if;
  update public.conversation_messages m set source = 'operator'
   where m.id = (select l.message_id from public.message_delivery_log l where l.id = (v_result #>> '{deliveries,0}')::uuid);
  update public.handoffs h set spoke_at = v_now where h.id = v_handoff.id;
  return jsonb_build_object('decision', 'said', 'channels', v_result -> 'result', 'deliveries', v_result -> 'deliveries');
end
$$;
comment on function public.say_in_handoff is
  'RPC: the operator who has taken a hand-over writes to the person: {id, operator, text, idempotency_key, channel?: sms | whatsapp | dual, else where they wrote last} -> {decision: said | not_sent, channels}. Sent within a minute, under STOP, policy, service window, limits and budget.';

create or replace function public.read_handoff(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_handoff public.handoffs := private.taken_by(p);
begin
  return jsonb_build_object('handoff', to_jsonb(v_handoff), 'messages', (
    select coalesce(jsonb_agg(jsonb_build_object('seq', m.seq, 'at', m.occurred_at, 'channel', m.channel, 'text', m.content,
             'by', case when m.direction = 'inbound' then 'person' when m.source = 'operator' then 'operator' else 'agent' end,
             'waits', m.handled_as is not distinct from 'with_operator' and m.occurred_at > coalesce(v_handoff.spoke_at, v_handoff.taken_at)) order by m.seq), '[]')
      from (select * from public.conversation_messages x
             where x.client_id = v_handoff.client_id and x.profile_id = v_handoff.profile_id and x.seq > coalesce((p ->> 'after')::bigint, 0)
             order by x.seq desc limit 50) m));
end
$$;
comment on function public.read_handoff is
  'RPC: the conversation of a hand-over for the operator who has taken it: {id, operator, after?: seq} -> {handoff, messages: [{seq, at, by: person | operator | agent, channel, text, waits}]}, the newest 50.';

create or replace function private.return_handoffs(p_now timestamptz, p_limit integer) returns void
language plpgsql set search_path = '' as $$
declare
  v_handoff public.handoffs;
begin
  for v_handoff in
    select * from public.handoffs h
     where h.state = 'taken' and greatest(h.taken_at, h.spoke_at) < p_now - interval '4 hours'
     order by h.taken_at limit p_limit for no key update skip locked
  loop
    -- The trigger tells the operators again that somebody waits.
    update public.handoffs h set state = 'waiting', taken_by = null, taken_at = null, returned = h.returned + 1 where h.id = v_handoff.id;
    update public.conversation_messages m set handled_at = null, handled_as = null, turn_id = null
     where m.id in (
       select w.id from public.conversation_messages w
        where w.client_id = v_handoff.client_id and w.profile_id = v_handoff.profile_id and w.direction = 'inbound' and w.handled_as = 'with_operator'
          and w.occurred_at > greatest(v_handoff.spoke_at, p_now - interval '24 hours')
        order by w.id for no key update skip locked);
  end loop;
end
$$;
comment on function private.return_handoffs is
  'Part of the sweep: what an operator took and let lie for four hours waits again, and an agent answers what was written since they last wrote, of the last day.';

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
    return private.turn_answer(v_turn.id, p_history_limit, p_now);
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

create or replace function private.turn_answer(p_turn_id uuid, p_history_limit integer, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_turn public.conversation_turns;
  v_profile jsonb;
  v_summary jsonb;
  v_messages jsonb;
  v_history jsonb;
  v_wanted text[] := array['mtn', 'openai'];
  v_from text;
  v_channel text;
  v_answer jsonb;
begin
  select * into strict v_turn from public.conversation_turns where id = p_turn_id;
  -- The answer goes to the number that wrote, which need not be the profile's own.
  select m.channel, d.sender into v_channel, v_from
    from public.conversation_messages m left join public.message_delivery_log d on d.message_id = m.id and d.direction = 'inbound'
   where m.turn_id = p_turn_id and m.direction = 'inbound'
   order by private.may_answer(v_turn.profile_id, m.channel) desc, m.seq desc limit 1;
  v_profile := private.profile_json(v_turn.profile_id, case when private.is_e164(v_from) then v_from end, p_now)
    -- Who wrote on WhatsApp is answered under the very name that wrote.
    || jsonb_build_object('whatsapp_to', case v_channel when 'whatsapp' then v_from end);
  if v_profile ->> 'whatsapp' = 'yes' or v_channel = 'whatsapp' then
    v_wanted := v_wanted || 'whatsapp'::text;
  end if;
  if v_turn.kind = 'keyword' then
    v_wanted := array[case v_channel when 'whatsapp' then 'whatsapp' else 'mtn' end];
  end if;
  v_summary := private.summary_known_to(v_turn.session_id);
  select coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'text', m.content, 'channel', m.channel, 'received_at', m.occurred_at) order by m.seq), '[]')
    into v_messages
    from public.conversation_messages m
   where m.turn_id = p_turn_id and m.direction = 'inbound';
  select coalesce(jsonb_agg(jsonb_build_object('role', case h.source when 'operator' then 'colleague' else h.role end, 'channel', h.channel, 'text', h.content, 'at', h.occurred_at, 'language', h.language) order by h.seq), '[]')
    into v_history
    from (
      select m.seq, m.role, m.channel, m.content, m.occurred_at, m.language, m.source
        from public.conversation_messages m
       where m.session_id = v_turn.session_id and m.kind <> 'keyword' and m.handled_at is not null and m.turn_id is distinct from p_turn_id
       order by m.seq desc limit p_history_limit
    ) h;
  v_answer := jsonb_build_object(
    'decision', 'go',
    'kind', v_turn.kind,
    'keyword', v_turn.keyword,
    'channel', coalesce(v_channel, 'sms'),
    'turn_id', v_turn.id,
    'claims', v_turn.claims,
    'possible_duplicate', v_turn.possible_duplicate,
    'already_sent', to_jsonb(private.sent_channels(v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id)),
    'correlation_id', v_turn.correlation_id,
    'call_correlation_id', v_turn.call_correlation_id,
    'session', private.session_json(v_turn.session_id, v_turn.session_created),
    'profile', v_profile,
    'client', private.client_json(v_turn.client_id),
    'agent', private.agent_of_turn(v_turn),
    'call_summary', v_summary,
    'known', case v_turn.kind when 'conversation' then jsonb_build_object('requests', private.open_requests(v_turn.client_id, v_turn.profile_id),
      'bookings', private.open_bookings(v_turn.client_id, v_turn.profile_id),
      'handovers', private.handovers_of(v_turn.client_id, v_turn.profile_id, p_now), 'memories', private.memories_of(v_turn.client_id, v_turn.profile_id, p_now)) end,
    'language_hint', (select m.language from public.conversation_messages m
                       where m.turn_id = p_turn_id and m.direction = 'inbound' and m.language is not null order by m.seq desc limit 1),
    'held', case v_turn.keyword when 'my_data' then private.held_of(v_turn.client_id, v_turn.profile_id) end,
    'messages', v_messages,
    'history', v_history,
    'delivery_ids', jsonb_build_object('sms', v_turn.sms_delivery_id, 'whatsapp', v_turn.whatsapp_delivery_id),
    'attempt', v_turn.attempt,
    'providers', private.provider_gates(v_wanted, v_turn.lease_token, p_now));
  -- Last of all, for its locks. STOP is confirmed whatever it costs.
  return v_answer || jsonb_build_object('guards', private.guards_of_work(v_turn.client_id, v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id,
    v_profile, case v_turn.kind when 'keyword' then 'keyword' else 'reply' end, v_turn.keyword is not distinct from 'stop', p_now));
end
$$;

create or replace function public.sweep(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_limit integer := least(coalesce((p ->> 'limit')::integer, 50), 1000);
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_wait interval := make_interval(secs => coalesce((p ->> 'unknown_wait_seconds')::numeric, 120)::double precision);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_grace interval := make_interval(secs => coalesce((p ->> 'call_grace_seconds')::numeric, 60)::double precision);
  v_jobs jsonb;
  v_calls jsonb;
  v_claims jsonb;
  v_turns jsonb;
  v_waiting jsonb;
  v_memories jsonb;
  v_erasures jsonb;
  v_closed integer;
  v_due integer;
  v_overdue integer;
  v_expired integer := 0;
  v_alerts integer := 0;
  v_sms jsonb;
  v_id uuid;
begin
  -- One sweep at a time. The other may be our own first try, whose answer did not come in time: it is not to look like a sweep
  -- that found nothing.
  if not pg_try_advisory_xact_lock(hashtextextended('ihuza:sweep', 20261121)) then
    return '{"busy": true}';
  end if;

  with idle as (
    select s.id from public.omnichannel_sessions s
     where s.status in ('active', 'follow_up') and s.last_activity_at < v_now - v_idle
       and not exists (select from public.conversation_turns t where t.session_id = s.id and t.status in ('open', 'released'))
     order by s.last_activity_at limit v_limit
       for no key update of s skip locked
  ), closed as (
    update public.omnichannel_sessions s set status = 'expired', ended_at = v_now from idle where s.id = idle.id returning 1
  )
  select count(*) into v_closed from closed;

  -- Ended calls that nobody began to tell about. Asked for again after ten minutes, should the request get lost.
  with owed as (
    select c.id from public.voice_calls c
     where c.ended_at < v_now - v_grace and c.ended_at > v_now - interval '24 hours' and c.notified_at is null and c.status = 'completed'
       and (c.notify_requested_at is null or c.notify_requested_at < v_now - interval '10 minutes')
     order by c.ended_at limit v_limit
       for no key update skip locked
  ), asked as (
    update public.voice_calls c set notify_requested_at = v_now from owed where c.id = owed.id
    returning c.id, case c.direction when 'outbound' then c.to_number else c.from_number end as phone
  )
  select jsonb_agg(jsonb_build_object('correlation_id', a.id::text, 'call_id', a.id, 'phone_number', case when private.is_e164(a.phone) then a.phone end))
    into v_calls from asked a;

  with owed as (
    select n.id from public.call_notifications n
     where ((n.status = 'open' and n.lease_until < v_now - v_wait) or (n.status = 'released' and n.next_attempt_at <= v_now))
       and (n.swept_at is null or n.swept_at < v_now - interval '5 minutes')
     limit v_limit
       for no key update skip locked
  ), asked as (
    update public.call_notifications n set swept_at = v_now from owed where n.id = owed.id returning n.correlation_id, n.call_id, n.phone_number
  )
  select jsonb_agg(jsonb_build_object('correlation_id', a.correlation_id, 'call_id', a.call_id, 'phone_number', a.phone_number)) into v_claims from asked a;

  with owed as (
    select t.id from public.conversation_turns t
     where ((t.status = 'open' and t.lease_until < v_now - v_wait) or (t.status = 'released' and t.next_attempt_at <= v_now))
       and (t.swept_at is null or t.swept_at < v_now - interval '5 minutes')
     limit v_limit
       for no key update skip locked
  ), asked as (
    update public.conversation_turns t set swept_at = v_now from owed where t.id = owed.id returning t.session_id, t.correlation_id
  )
  select jsonb_agg(jsonb_build_object('session_id', a.session_id, 'correlation_id', a.correlation_id)) into v_turns from asked a;

  -- Before the messages, which it may give back to be answered.
  perform private.return_handoffs(v_now, v_limit);

  -- Messages stored for a holder that is gone, those that wait longest first; asked for again after five minutes, so that none
  -- keeps others from being seen.
  with owed as (
    select m.id from public.conversation_messages m
     where m.direction = 'inbound' and m.handled_at is null and m.created_at < v_now - v_lease and m.kind = 'conversation' and m.turn_id is null
       and (m.swept_at is null or m.swept_at < v_now - interval '5 minutes')
       and not exists (select from public.conversation_turns t
                        where t.profile_id = m.profile_id and t.client_id = m.client_id and t.kind = 'conversation' and t.status in ('open', 'released'))
     order by m.created_at limit v_limit
       for no key update of m skip locked
  ), asked as (
    update public.conversation_messages m set swept_at = v_now from owed where m.id = owed.id returning m.session_id, m.correlation_id, m.seq
  ), first as (
    select distinct on (a.session_id) a.session_id, a.correlation_id, a.seq from asked a order by a.session_id, a.seq
  )
  select jsonb_agg(jsonb_build_object('session_id', f.session_id, 'correlation_id', f.correlation_id) order by f.seq) into v_waiting from first f;

  -- Conversations in which nothing was said for a while. Few at a time: each is a question to the model.
  with due as (
    select x.session_id from public.memory_extractions x
     where x.due_at <= v_now and (x.swept_at is null or x.swept_at < v_now - interval '10 minutes')
     order by x.due_at limit least(v_limit, 20)
       for no key update skip locked
  ), asked as (
    update public.memory_extractions x set swept_at = v_now from due where x.session_id = due.session_id returning x.session_id
  )
  select jsonb_agg(jsonb_build_object('session_id', a.session_id, 'correlation_id', 'memories-' || a.session_id)) into v_memories from asked a;

  -- Who asked to be forgotten and confirmed it: each is erased in a transaction of its own, for its locks.
  select jsonb_agg(e.id order by e.confirmed_at) into v_erasures
    from (select r.id, r.confirmed_at from public.privacy_requests r
           where r.state = 'confirmed' and (r.tried_at is null or r.tried_at < v_now - interval '2 minutes') order by r.confirmed_at limit 5) e;
  if exists (select from public.privacy_requests r where r.state = 'confirmed' and r.confirmed_at < v_now - interval '24 hours') then
    perform private.raise_alert('erasure_overdue', 'critical', 'erasure_overdue',
      'Somebody who asked to be forgotten a day ago is not: privacy_requests says who, erase_person why.', '{}');
    v_alerts := v_alerts + 1;
  end if;

  with due as (
    select j.id from public.jobs j
     where j.status = 'pending' and (j.lease_until is null or j.lease_until < v_now)
     order by j.created_at limit v_limit
       for no key update skip locked
  ), leased as (
    update public.jobs j set lease_until = v_now + v_lease, leases = j.leases + 1 from due where j.id = due.id
    returning j.id, j.queue, j.payload, j.created_at
  )
  select jsonb_agg(jsonb_build_object('id', l.id, 'queue', l.queue, 'payload', l.payload) order by l.created_at) into v_jobs from leased l;

  -- Reports that still have no delivery although there is one by now: a safety net below private.lock_refs.
  for v_id in
    select distinct l.id from public.message_status_events e
      join public.message_delivery_log l on l.id = private.uuid_or_null(e.delivery_ref)
     where e.delivery_id is null and e.created_at between v_now - interval '1 hour' and v_now
     order by 1 limit v_limit
  loop
    perform private.join_orphans(v_id);
    perform private.refold_delivery(v_id);
  end loop;

  for v_id in
    select l.id from public.message_delivery_log l
     where l.next_attempt_at <= v_now and l.deadline_at <= v_now and l.lease_token is null
     order by l.next_attempt_at limit v_limit
       for no key update skip locked
  loop
    perform private.claim_delivery(v_id, gen_random_uuid(), v_lease, v_wait, 'open', v_now, v_now);
    v_expired := v_expired + (select count(*)::integer from public.message_delivery_log l where l.id = v_id and l.status = 'expired');
  end loop;
  if v_expired > 0 then
    perform private.raise_alert('deliveries_expired', 'warning', 'deliveries_expired',
      'Messages reached their deadline without being sent.', jsonb_build_object('in_this_sweep', v_expired));
    v_alerts := v_alerts + 1;
  end if;

  select count(*), count(*) filter (where d.next_attempt_at < v_now - interval '15 minutes') into v_due, v_overdue
    from (select l.next_attempt_at from public.message_delivery_log l where l.next_attempt_at <= v_now order by l.next_attempt_at limit 1000) d;
  if v_overdue > 0 then
    perform private.raise_alert('deliveries_overdue', 'critical', 'deliveries_overdue',
      'Messages that are due have waited for more than 15 minutes: is delivery-retry running?', jsonb_build_object('overdue', v_overdue));
    v_alerts := v_alerts + 1;
  end if;

  perform private.prune_orphans(v_now - interval '30 days', 1000);
  delete from public.provider_outcomes where created_at < v_now - interval '1 hour';
  delete from public.rate_limits where window_start < v_now - interval '2 days';
  delete from public.jobs where status = 'done' and completed_at < v_now - interval '7 days';
  v_sms := private.keep_sms_figures(v_now);

  return jsonb_build_object(
    'jobs', coalesce(v_jobs, '[]'),
    'notify', coalesce(v_calls, '[]') || coalesce(v_claims, '[]'),
    'turns', coalesce(v_turns, '[]') || coalesce(v_waiting, '[]'),
    'memories', coalesce(v_memories, '[]'),
    'erasures', coalesce(v_erasures, '[]'),
    'due_deliveries', v_due, 'expired_deliveries', v_expired, 'closed_sessions', v_closed, 'alerts', v_alerts, 'sms_figures', v_sms);
end
$$;

revoke execute on function private.handovers_of(uuid, uuid, timestamptz), private.sms_size(text), private.taken_by(jsonb), public.say_in_handoff(jsonb),
  public.read_handoff(jsonb), private.return_handoffs(timestamptz, integer) from public, anon, authenticated;
grant execute on function private.handovers_of(uuid, uuid, timestamptz), private.sms_size(text), private.taken_by(jsonb), public.say_in_handoff(jsonb),
  public.read_handoff(jsonb), private.return_handoffs(timestamptz, integer) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121017200'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
