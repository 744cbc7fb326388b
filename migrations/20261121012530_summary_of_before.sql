-- 20261121012530_summary_of_before.sql
-- Who writes again after a conversation has expired begins a new one, and the agent still knows what the last call was about.
-- Safe to run again. Locks no table. Undo: apply turn_answer of 20261121012330 and drop the function.

create or replace function private.summary_known_to(p_session_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    with recursive before as (
      select s.id, s.call_id, s.previous_session_id, 1 as step from public.omnichannel_sessions s where s.id = p_session_id
      union all
      -- No further than the first that began with a call, and not for ever.
      select s.id, s.call_id, s.previous_session_id, b.step + 1
        from before b join public.omnichannel_sessions s on s.id = b.previous_session_id
       where b.call_id is null and b.step < 10
    )
    select jsonb_build_object('headline', s.headline, 'points', s.points, 'next_step', s.next_step, 'language', s.language, 'call_ended_at', c.ended_at)
      from before b
      join public.call_summaries s on s.call_id = b.call_id
      join public.voice_calls c on c.id = s.call_id
     order by b.step limit 1);
end
$$;
comment on function private.summary_known_to is
  'The summary of the call that a conversation goes on from: its own, else that of the newest one before it which began with a call. Null: none.';

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
  v_from text;
  v_channel text;
  v_answer jsonb;
begin
  select * into strict v_turn from public.conversation_turns where id = p_turn_id;
  select * into strict v_session from public.omnichannel_sessions where id = v_turn.session_id;
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
  select coalesce(jsonb_agg(jsonb_build_object('role', h.role, 'channel', h.channel, 'text', h.content, 'at', h.occurred_at, 'language', h.language) order by h.seq), '[]')
    into v_history
    from (
      select m.seq, m.role, m.channel, m.content, m.occurred_at, m.language
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
    'agent', private.agent_json(v_turn.client_id, v_session.last_agent_id),
    'call_summary', v_summary,
    'language_hint', (select m.language from public.conversation_messages m
                       where m.turn_id = p_turn_id and m.direction = 'inbound' and m.language is not null order by m.seq desc limit 1),
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

revoke execute on function private.summary_known_to(uuid) from public, anon, authenticated;
grant execute on function private.summary_known_to(uuid) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012530'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
