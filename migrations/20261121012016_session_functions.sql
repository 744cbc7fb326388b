-- 20261121012016_session_functions.sql
-- A message that comes in is found by its sender as well; a model is told no number, name or id.
-- Safe to run again. Locks no table. Undo: drop private.agent_context, apply the functions of before.
create or replace function public.log_message_delivery(
  p_channel text, p_direction text default 'outbound', p_status text default 'queued', p_profile_id uuid default null, p_session_id uuid default null,
  p_call_id uuid default null, p_content text default null, p_recipient text default null, p_sender text default null, p_provider text default null,
  p_provider_message_id text default null, p_correlation_id text default null, p_error_code text default null, p_error_class text default null,
  p_purpose text default 'message', p_payload jsonb default null, p_client_id uuid default null, p_idempotency_key text default null
) returns uuid language plpgsql set search_path = '' as $$
declare
  v_id uuid;
  v_now timestamptz := clock_timestamp();
begin
  perform private.lock_refs(array(select p_provider || ':' || k from unnest(private.provider_message_keys(p_provider_message_id)) k));
  insert into public.message_delivery_log
    (client_id, session_id, profile_id, call_id, direction, channel, purpose, status, status_at, provider, provider_message_id, correlation_id,
     recipient, sender, content, payload, error_code, error_class, idempotency_key)
  values
    (coalesce(p_client_id, (select s.client_id from public.omnichannel_sessions s where s.id = p_session_id), private.default_client_id()),
     p_session_id, p_profile_id, p_call_id, p_direction, p_channel, p_purpose, 'queued', v_now, p_provider, p_provider_message_id, p_correlation_id,
     p_recipient, p_sender, p_content, p_payload, p_error_code, p_error_class, p_idempotency_key)
  on conflict do nothing
  returning id into v_id;
  if v_id is null then
    select l.id into v_id from public.message_delivery_log l
     where l.idempotency_key = p_idempotency_key
        or (l.provider = p_provider and l.direction = p_direction and l.provider_message_id = p_provider_message_id
          and (p_direction = 'outbound' or coalesce(l.sender, '') = coalesce(p_sender, '')))
     limit 1;
  end if;
  perform private.add_own_event(v_id, p_status, v_now, p_correlation_id, p_error_code, p_error_class);
  perform private.join_orphans(v_id);
  perform private.refold_delivery(v_id);
  return v_id;
end
$$;

create or replace function private.agent_context(p_session_id uuid, p_limit integer) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_all jsonb := public.get_session_context(p_session_id, p_limit);
begin
  return jsonb_build_object(
    'session', jsonb_build_object('status', v_all #> '{session,status}', 'channels', v_all #> '{session,active_channels}',
      'intent', v_all #> '{session,last_intent}', 'note', v_all #> '{session,context,note}'),
    'person', jsonb_build_object('language', v_all #> '{profile,locale}', 'whatsapp', v_all #> '{profile,whatsapp}', 'allows_sms', v_all #> '{profile,allows_sms}'),
    'brand', v_all #> '{client,brand}',
    'call_summary', v_all -> 'call_summary',
    'messages', v_all -> 'messages');
end
$$;

comment on function private.agent_context is
  'What a model is told of a session when it asks: what was said and agreed. No number, name or id: a model may repeat whatever it sees.';

create or replace function public.run_agent_tool(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_key text := private.required(p, 'idempotency_key');
  v_name text := private.required(p, 'name');
  v_arguments jsonb := coalesce(nullif(p -> 'arguments', 'null'), '{}');
  v_session public.omnichannel_sessions;
  v_result jsonb;
  v_status text;
begin
  perform private.lock_refs(array['tool:' || v_key]);
  select result into v_result from public.mcp_tool_calls where idempotency_key = v_key;
  if found then
    return v_result;
  end if;
  select * into v_session from public.omnichannel_sessions where id = private.required(p, 'session_id')::uuid;
  if not found then
    return jsonb_build_object('ok', false, 'error', 'session not found');
  end if;
  case v_name
    when 'session_get_context' then
      v_result := jsonb_build_object('ok', true, 'result',
        private.agent_context(v_session.id, least(case when v_arguments ->> 'limit' ~ '^[0-9]{1,3}$' then (v_arguments ->> 'limit')::integer else 20 end, 100)));
    when 'session_update_status' then
      v_status := v_arguments ->> 'status';
      if v_status is null or v_status not in ('active', 'follow_up', 'closed') then
        v_result := jsonb_build_object('ok', false, 'error', 'status must be active, follow_up or closed');
      else
        v_result := jsonb_build_object('ok', true, 'result', jsonb_build_object('status',
          public.update_omnichannel_session_status(v_session.id, v_status, nullif(v_arguments ->> 'intent', ''))));
        if nullif(v_arguments ->> 'note', '') is not null then
          update public.omnichannel_sessions set context = context || jsonb_build_object('note', left(v_arguments ->> 'note', 500)) where id = v_session.id;
        end if;
      end if;
    else
      v_result := jsonb_build_object('ok', false, 'error', format('there is no tool %s', left(v_name, 100)));
  end case;
  insert into public.mcp_tool_calls (client_id, session_id, turn_id, call_id, name, arguments, result, idempotency_key, correlation_id)
  values (v_session.client_id, v_session.id, (p ->> 'turn_id')::uuid, v_session.call_id, v_name, v_arguments, v_result, v_key, p ->> 'correlation_id');
  return v_result;
end
$$;

revoke execute on function private.agent_context(uuid, integer) from public, anon, authenticated;

grant execute on function private.agent_context(uuid, integer) to service_role;
