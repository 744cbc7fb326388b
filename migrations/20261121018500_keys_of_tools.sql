-- 20261121018500_keys_of_tools.sql
-- A key of a tool stands for one call in one conversation: with another tool or other arguments it is refused instead of being told
-- what the first call did, and the same key in somebody else's conversation is another key.
-- Safe to run again. Locks no table. Calls of run_agent_tool from before this file have keys without their session: one that is
-- repeated across the upgrade runs as a new one. Undo: apply run_tool of 20261121014040 and run_agent_tool of 20261121014050 again.
create or replace function private.forgotten_arguments() returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return '{"forgotten": true}';
end
$$;
comment on function private.forgotten_arguments is 'What stands in place of the arguments of a call of a tool whose words a person had deleted.';

create or replace function private.run_tool(p_who jsonb, p jsonb, p_tools jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_key text := p_who ->> 'key';
  v_name text := private.required(p, 'name');
  v_arguments jsonb := case when jsonb_typeof(p -> 'arguments') = 'object' then p -> 'arguments' else '{}' end;
  v_before public.mcp_tool_calls;
  v_result jsonb;
begin
  -- Of many at once with one key, one acts; the others wait here and are told what it answered.
  perform private.lock_refs(array['tool:' || v_key]);
  select * into v_before from public.mcp_tool_calls m where m.idempotency_key = v_key;
  -- A call of the phone has its key, whatever becomes of its conversation.
  if found and p_who ->> 'surface' <> 'voice' and v_before.session_id is distinct from (p_who ->> 'session_id')::uuid then
    return private.tool_refused('this idempotency key was used in another conversation: nothing was done; use a new key');
  end if;
  -- What was refused has done nothing and may be possible by now; a message that was refused has its row.
  if v_before.result ->> 'ok' = 'true' or v_before.name like 'messaging\_send\_%' then
    -- The answer to something else would say that this was done. The refusal is no row of its own: the key has one.
    if v_before.name <> left(v_name, 100) then
      return private.tool_refused(format('this idempotency key was used for %s: nothing was done; use a new key', v_before.name));
    -- An argument that is null says nothing. What was forgotten since is not there to be compared.
    elsif jsonb_strip_nulls(v_before.arguments) <> jsonb_strip_nulls(v_arguments) and v_before.arguments <> private.forgotten_arguments() then
      return private.tool_refused('this idempotency key was used with other arguments: nothing was done; use a new key');
    end if;
    return v_before.result;
  end if;
  perform private.changed_by('person', p_who ->> 'channel', p_who ->> 'correlation_id');
  if nullif(p ->> 'refused', '') is not null then
    v_result := private.tool_refused(left(p ->> 'refused', 1000));
  elsif v_name <> all (private.tool_names()) then
    v_result := private.tool_refused(format('there is no tool %s', left(v_name, 100)));
  elsif not coalesce(p_tools ? v_name, false) or jsonb_typeof(p -> 'tools') = 'array' and not p -> 'tools' ? v_name then
    v_result := private.tool_refused(format('%s may not be used here', v_name));
  elsif v_name not in ('search_services', 'transfer_to_human', 'end_call') and num_nonnulls(p_who ->> 'profile_id', p_who ->> 'session_id') < 2 then
    v_result := private.tool_refused('the caller is anonymous: there is no conversation, and nothing can be kept for them');
  else
    v_result := case
      when v_name in ('session_get_context', 'session_get_or_create', 'session_update_status') then private.tool_session(p_who, v_name, v_arguments, p_now)
      when v_name = 'profile_update_preferences' then private.tool_profile_update_preferences(p_who, v_arguments, p_now)
      when v_name = 'search_services' then private.tool_search_services(p_who, v_arguments)
      when v_name = 'service_request_save' then private.tool_service_request_save(p_who, v_arguments, p_now)
      when v_name = 'book_transport' then private.tool_book_transport(p_who, v_arguments, p_now)
      when v_name = 'transfer_to_human' then private.tool_transfer_to_human(p_who, v_arguments, p_now)
      when v_name in ('remember', 'forget') then private.tool_memory(p_who, v_name, v_arguments, p_now)
      when v_name like 'messaging\_send\_%' then
        private.tool_send(p_who, v_arguments, coalesce(p -> 'renditions', '{}'), substr(v_name, length('messaging_send_') + 1), p_now)
      -- Whoever carries the call ends it.
      when v_name = 'end_call' then private.tool_answered('{}') end;
  end if;
  insert into public.mcp_tool_calls as m
    (client_id, session_id, turn_id, call_id, name, arguments, result, idempotency_key, tool_call_id, correlation_id, created_at, finished_at)
  values ((p_who ->> 'client_id')::uuid, (p_who ->> 'session_id')::uuid, (p_who ->> 'turn_id')::uuid, (p_who ->> 'call_id')::uuid, left(v_name, 100), v_arguments,
    v_result, v_key, p_who ->> 'tool_call_id', p_who ->> 'correlation_id', p_now, clock_timestamp())
  on conflict (idempotency_key) do update set name = excluded.name, arguments = excluded.arguments, result = excluded.result, finished_at = excluded.finished_at;
  return v_result;
end
$$;

comment on function private.run_tool is
  'Runs one tool for whoever p_who says (client, profile, session, call, turn: derived by the callers, never given by a model), if p_tools has it, once a key: the same call with its key is told the same, another call with it is refused.';

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
      -- A caller's names are its own: the same one in another conversation is another call. Those of MCP have their token in them.
      'key', case p ->> 'surface' when 'mcp' then '' else 'session:' || v_session.id || ':' end || private.required(p, 'idempotency_key'), 'surface', case p ->> 'surface' when 'mcp' then 'mcp' else 'text' end,
      'client_id', v_session.client_id, 'profile_id', v_session.profile_id, 'session_id', v_session.id, 'call_id', v_session.call_id,
      'turn_id', p ->> 'turn_id', 'correlation_id', p ->> 'correlation_id',
      'channel', (select m.channel from public.conversation_messages m
                   where m.turn_id = (p ->> 'turn_id')::uuid and m.direction = 'inbound' order by m.seq desc limit 1)),
    p, private.agent_json(v_session.client_id, coalesce((v_turn ->> 'agent_id')::uuid, v_session.last_agent_id)) -> 'tools', private.now_of(p));
end
$$;

comment on column public.mcp_tool_calls.idempotency_key is 'Of the model''s call, within its conversation, call or token; the same key acts once.';
revoke execute on function private.forgotten_arguments() from public, anon, authenticated;
grant execute on function private.forgotten_arguments() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018500'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
