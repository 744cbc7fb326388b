-- 20261121018520_intents_of_models.sql
-- What a model says that a person wants reaches the agent that knows about it: whatever words it used, and also where another
-- special agent had the conversation and says itself that it is about something else now. A conversation that is closed is not
-- said to have been changed.
-- Safe to run again. Locks no table. Undo: apply tool_session of 20261121014040, agent_for_intent and choose_agent of 20261121016000
-- again and drop known_intent.
create or replace function private.known_intent(p_intent text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
declare
  v_found text[];
begin
  if p_intent in ('housing', 'ride', 'support', 'other') then
    return p_intent;
  end if;
  v_found := array_remove(array[
    case when p_intent ~* '(^|[^a-z])(house|houses|housing|property|properties|apartments?|flats?|rent|rental|plots?|land|rooms?)([^a-z]|$)' then 'housing' end,
    case when p_intent ~* '(^|[^a-z])(rides?|taxi|moto|car|driver|transport|transportation|trip|delivery)([^a-z]|$)' then 'ride' end,
    case when p_intent ~* '(^|[^a-z])(complaints?|complain|refunds?|problems?|support|issues?)([^a-z]|$)' then 'support' end], null);
  return case cardinality(v_found) when 1 then v_found[1] end;
end
$$;
comment on function private.known_intent is
  'What a model calls it, such as property_search, as agents know it: housing, ride, support, or other; null: nothing of the kind, or more than one.';

create or replace function private.agent_for_intent(p_client_id uuid, p_intent text) returns public.ai_agents
language plpgsql stable set search_path = '' as $$
declare
  v_agent public.ai_agents;
begin
  select a.* into v_agent from public.ai_agents a
   where (p_intent = any (a.intents) or private.known_intent(p_intent) = any (a.intents)) and a.is_active and (a.client_id is null or a.client_id = p_client_id)
   order by a.client_id nulls last, (p_intent = any (a.intents)) desc, a.slug limit 1;
  return v_agent;
end
$$;

create or replace function private.choose_agent(p_turn public.conversation_turns, out agent_id uuid, out reason text)
language plpgsql stable set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_last public.ai_agents;
  v_for public.ai_agents;
  v_channel text;
  v_address text;
  v_intent text;
begin
  select * into strict v_session from public.omnichannel_sessions where id = p_turn.session_id;
  select m.channel, d.recipient into v_channel, v_address
    from public.conversation_messages m left join public.message_delivery_log d on d.message_id = m.id and d.direction = 'inbound'
   where m.turn_id = p_turn.id and m.direction = 'inbound' order by m.seq desc limit 1;
  agent_id := private.agent_of_number(p_turn.client_id, v_channel, v_address);
  reason := 'number';
  if agent_id is not null then
    return;
  end if;
  select a.id into agent_id from public.ai_agents a
   where a.slug = v_session.context ->> 'agent' and a.is_active and (a.client_id is null or a.client_id = p_turn.client_id)
   order by a.client_id nulls last limit 1;
  reason := 'session';
  if agent_id is not null then
    return;
  end if;
  select m.intent into v_intent from public.conversation_messages m
   where m.turn_id = p_turn.id and m.direction = 'inbound' and m.intent is not null order by m.seq desc limit 1;
  select a.* into v_last from public.ai_agents a where a.id = v_session.last_agent_id and a.is_active;
  v_for := private.agent_for_intent(p_turn.client_id, v_intent);
  -- Who knows something special keeps the conversation, until it is clearly about what another knows.
  if v_last.intents <> '{}' then
    if v_for.id is null and v_session.context ->> 'intent_by' = v_last.id::text then
      -- Or until itself has said so (session_update_status). Of what nobody knows in particular, the general agent does.
      if v_session.last_intent = 'other' then
        reason := 'handed_over';
        return;
      end if;
      v_for := private.agent_for_intent(p_turn.client_id, v_session.last_intent);
    end if;
    if v_for.id <> v_last.id and v_last.hand_over -> 'agents' ? v_for.slug then
      agent_id := v_for.id;
      reason := 'handed_over';
    else
      agent_id := v_last.id;
      reason := 'last_agent';
    end if;
    return;
  end if;
  if v_for.id is not null then
    agent_id := v_for.id;
    reason := 'intent';
    return;
  end if;
  v_for := private.agent_for_intent(p_turn.client_id, v_session.last_intent);
  agent_id := coalesce(v_for.id, v_last.id);
  reason := case when v_for.id is not null then 'understood' when v_last.id is not null then 'last_agent' else 'default' end;
end
$$;

comment on function private.choose_agent is
  'Who answers a turn, and why: the number''s agent, the session''s (context.agent), the one that knew last unless the words or its own word (context.intent_by) hand over, the one for what the words are about or for what a model understood before, the general one. No id: the general one.';

create or replace function private.tool_session(p_who jsonb, p_name text, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_session uuid := (p_who ->> 'session_id')::uuid;
  v_status text := p_arguments ->> 'status';
  v_intent text := nullif(left(p_arguments ->> 'intent', 200), '');
  v_before text;
  v_open record;
begin
  if p_name = 'session_get_context' then
    return private.tool_answered(private.agent_context(v_session,
      least(greatest(case when p_arguments ->> 'limit' ~ '^[0-9]{1,3}$' then (p_arguments ->> 'limit')::integer else 20 end, 1), 100)));
  elsif p_name = 'session_get_or_create' then
    select * into v_open from private.open_session((p_who ->> 'client_id')::uuid, (p_who ->> 'profile_id')::uuid, coalesce(p_who ->> 'channel', 'sms'),
      null, interval '72 hours', p_now);
    return private.tool_answered((
      select jsonb_build_object('created', v_open.created, 'status', s.status, 'channels', s.active_channels, 'intent', s.last_intent)
        from public.omnichannel_sessions s where s.id = v_open.session_id));
  end if;
  if v_status is null or v_status not in ('active', 'follow_up', 'closed') then
    return private.tool_refused('status must be active, follow_up or closed');
  end if;
  select s.status into v_before from public.omnichannel_sessions s where s.id = v_session for no key update;
  if v_before not in ('active', 'follow_up') and v_before <> v_status then
    return private.tool_refused(format('this conversation is %s and stays so: nothing was changed. What the person writes next begins a new one; session_get_or_create does so now', v_before));
  end if;
  v_status := public.update_omnichannel_session_status(v_session, v_status, v_intent);
  if v_intent is not null then
    -- Whose word it is: who knows something special is left on its own word, and not on one from before its time.
    update public.omnichannel_sessions s
       set context = s.context || jsonb_build_object('intent_by', coalesce(
             (select u.agent_id from public.conversation_turns u where u.id = (p_who ->> 'turn_id')::uuid),
             case p_who ->> 'surface' when 'voice' then (select c.agent_id from public.voice_calls c where c.id = (p_who ->> 'call_id')::uuid) end,
             s.last_agent_id))
     where s.id = v_session;
  end if;
  if nullif(p_arguments ->> 'note', '') is not null then
    update public.omnichannel_sessions set context = context || jsonb_build_object('note', left(p_arguments ->> 'note', 500)) where id = v_session;
  end if;
  return private.tool_answered(jsonb_build_object('status', v_status));
end
$$;

revoke execute on function private.known_intent(text) from public, anon, authenticated;
grant execute on function private.known_intent(text) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018520'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
