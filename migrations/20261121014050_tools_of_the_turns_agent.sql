-- 20261121014050_tools_of_the_turns_agent.sql
-- A tool that is called in a turn is allowed by the agent that answers in this turn, which need not be the one that spoke last.
-- Safe to run again. Locks no table. Undo: apply run_agent_tool of 20261121014040 again.
create or replace function public.run_agent_tool(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_turn jsonb;
begin
  perform private.required(p, 'name');
  select * into v_session from public.omnichannel_sessions where id = private.required(p, 'session_id')::uuid;
  if not found then
    return private.tool_refused('session not found');
  end if;
  -- By name, since turns get the column of their agent only later than this file.
  select to_jsonb(t) into v_turn from public.conversation_turns t where t.id = (p ->> 'turn_id')::uuid;
  if v_turn ->> 'session_id' <> v_session.id::text then
    return private.tool_refused('the turn is of another session');
  end if;
  return private.run_tool(jsonb_build_object(
      'key', private.required(p, 'idempotency_key'), 'surface', case p ->> 'surface' when 'mcp' then 'mcp' else 'text' end,
      'client_id', v_session.client_id, 'profile_id', v_session.profile_id, 'session_id', v_session.id, 'call_id', v_session.call_id,
      'turn_id', p ->> 'turn_id', 'correlation_id', p ->> 'correlation_id',
      'channel', (select m.channel from public.conversation_messages m
                   where m.turn_id = (p ->> 'turn_id')::uuid and m.direction = 'inbound' order by m.seq desc limit 1)),
    p, private.agent_json(v_session.client_id, coalesce((v_turn ->> 'agent_id')::uuid, v_session.last_agent_id)) -> 'tools', private.now_of(p));
end
$$;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121014050'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
