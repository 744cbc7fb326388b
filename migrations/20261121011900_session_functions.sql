-- 20261121011900_session_functions.sql
-- Helper functions for other programs and for agents: sessions, deliveries, tools. Typed arguments, one function a name.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function public.get_or_create_omnichannel_session(
  p_profile_id uuid, p_primary_channel text default 'sms', p_call_id uuid default null, p_intent text default null,
  p_agent_id uuid default null, p_client_id uuid default null
) returns uuid language plpgsql set search_path = '' as $$
declare
  v_id uuid;
begin
  select o.session_id into v_id
    from private.open_session(coalesce(p_client_id, private.default_client_id()), p_profile_id, p_primary_channel, p_call_id, interval '72 hours', clock_timestamp()) o;
  perform private.touch_session(v_id, 'active', array[p_primary_channel], clock_timestamp(), p_intent, p_agent_id, p_call_id);
  return v_id;
end
$$;
comment on function public.get_or_create_omnichannel_session is 'The open session of a person with a client, made active; created if there is none.';

create or replace function public.get_or_create_session(
  p_profile_id uuid, p_primary_channel text default 'sms', p_call_id uuid default null, p_intent text default null,
  p_agent_id uuid default null, p_client_id uuid default null
) returns uuid language sql set search_path = '' as $$
  select public.get_or_create_omnichannel_session(p_profile_id, p_primary_channel, p_call_id, p_intent, p_agent_id, p_client_id)
$$;
comment on function public.get_or_create_session is 'Alias of get_or_create_omnichannel_session.';

create or replace function public.update_omnichannel_session_status(
  p_session_id uuid, p_status text, p_intent text default null, p_agent_id uuid default null
) returns text language sql set search_path = '' as $$
  update public.omnichannel_sessions s
     set status = case when s.status in ('active', 'follow_up') then p_status else s.status end,
         ended_at = case when s.status in ('active', 'follow_up') and p_status in ('closed', 'expired') then clock_timestamp() else s.ended_at end,
         last_intent = coalesce(p_intent, s.last_intent),
         last_agent_id = coalesce(p_agent_id, s.last_agent_id),
         last_activity_at = case when s.status in ('active', 'follow_up') then clock_timestamp() else s.last_activity_at end
   where s.id = p_session_id
  returning s.status
$$;
comment on function public.update_omnichannel_session_status is
  'Moves a session to active, follow_up, closed or expired; the status it then has. A closed or expired session stays so: the next message opens a new one.';

create or replace function public.update_session_status(
  p_session_id uuid, p_status text, p_intent text default null, p_agent_id uuid default null
) returns text language sql set search_path = '' as $$
  select public.update_omnichannel_session_status(p_session_id, p_status, p_intent, p_agent_id)
$$;
comment on function public.update_session_status is 'Alias of update_omnichannel_session_status.';

create or replace function public.update_status(
  p_session_id uuid, p_status text, p_intent text default null, p_agent_id uuid default null
) returns text language sql set search_path = '' as $$
  select public.update_omnichannel_session_status(p_session_id, p_status, p_intent, p_agent_id)
$$;
comment on function public.update_status is 'Alias of update_omnichannel_session_status.';

create or replace function public.check_whatsapp_available(p_profile_id uuid default null, p_phone_number text default null) returns boolean
language sql stable set search_path = '' as $$
  select coalesce((
    select private.whatsapp_evidence(p.has_whatsapp, p.has_whatsapp_source, p.has_whatsapp_at, clock_timestamp()) = 'yes'
      from public.profiles p where p.id = coalesce(p_profile_id, private.profile_of_phone(p_phone_number))), false)
$$;
comment on function public.check_whatsapp_available is 'Whether evidence says that the person is on WhatsApp; false for no and for not known.';

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
        or (l.provider = p_provider and l.direction = p_direction and l.provider_message_id = p_provider_message_id)
     limit 1;
  end if;
  perform private.add_own_event(v_id, p_status, v_now, p_correlation_id, p_error_code, p_error_class);
  perform private.join_orphans(v_id);
  perform private.refold_delivery(v_id);
  return v_id;
end
$$;
comment on function public.log_message_delivery is
  'For messages that others send: writes or finds the row (by idempotency key or provider id) and adds the status; its id. Never retried by us.';

create or replace function public.log_delivery(
  p_channel text, p_direction text default 'outbound', p_status text default 'queued', p_profile_id uuid default null, p_session_id uuid default null,
  p_call_id uuid default null, p_content text default null, p_recipient text default null, p_sender text default null, p_provider text default null,
  p_provider_message_id text default null, p_correlation_id text default null, p_error_code text default null, p_error_class text default null,
  p_purpose text default 'message', p_payload jsonb default null, p_client_id uuid default null, p_idempotency_key text default null
) returns uuid language sql set search_path = '' as $$
  select public.log_message_delivery(p_channel, p_direction, p_status, p_profile_id, p_session_id, p_call_id, p_content, p_recipient, p_sender,
    p_provider, p_provider_message_id, p_correlation_id, p_error_code, p_error_class, p_purpose, p_payload, p_client_id, p_idempotency_key)
$$;
comment on function public.log_delivery is 'Alias of log_message_delivery.';

create or replace function public.get_session_context(p_session_id uuid, p_limit integer default 20) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'session', private.session_json(s.id, false),
    'profile', private.profile_json(s.profile_id, null, clock_timestamp()),
    'client', private.client_json(s.client_id),
    'call_summary', (
      select jsonb_build_object('headline', c.headline, 'points', c.points, 'next_step', c.next_step, 'language', c.language, 'intent', c.intent,
                                'call_ended_at', v.ended_at)
        from public.call_summaries c join public.voice_calls v on v.id = c.call_id where c.call_id = s.call_id),
    'messages', (
      select coalesce(jsonb_agg(jsonb_build_object('role', m.role, 'channel', m.channel, 'text', m.content, 'at', m.occurred_at, 'language', m.language)
                                order by m.seq), '[]')
        from (select * from public.conversation_messages cm where cm.session_id = s.id order by cm.seq desc limit p_limit) m))
    from public.omnichannel_sessions s where s.id = p_session_id
$$;
comment on function public.get_session_context is 'Everything an agent needs to carry on: session, person, summary of the call, last messages (oldest first). Null: no such session.';

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
        public.get_session_context(v_session.id, least(case when v_arguments ->> 'limit' ~ '^[0-9]{1,3}$' then (v_arguments ->> 'limit')::integer else 20 end, 100)));
    when 'session_update_status' then
      v_status := v_arguments ->> 'status';
      if v_status is null or v_status not in ('active', 'follow_up', 'closed') then
        v_result := jsonb_build_object('ok', false, 'error', 'status must be active, follow_up or closed');
      else
        v_result := jsonb_build_object('ok', true, 'result', jsonb_build_object('session_id', v_session.id, 'status',
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
comment on function public.run_agent_tool is 'RPC: runs a tool of an agent once; the same idempotency key gets the same answer.';

do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_catalog.pg_proc p
     where p.pronamespace = 'public'::regnamespace
       and p.proname in ('get_or_create_omnichannel_session', 'get_or_create_session', 'update_omnichannel_session_status', 'update_session_status',
         'update_status', 'check_whatsapp_available', 'log_message_delivery', 'log_delivery', 'get_session_context', 'run_agent_tool')
  loop
    execute format('revoke execute on function %s from public, anon, authenticated', v_function);
    execute format('grant execute on function %s to service_role', v_function);
  end loop;
end
$$;
