-- 20261121014040_tools.sql
-- All tools of agents behind two doors, one for a session and one for a call: both derive client and person themselves, ask whether the
-- agent may use the tool, run it once a key, and keep the call. What the model says can reach nobody else.
-- Safe to run again. Locks voice_memories briefly (columns with constant defaults). Undo: apply run_agent_tool and agent_context of
-- 20261121012016 and run_voice_tool of 20261121012160 again, drop the new functions and the columns.
alter table public.voice_memories add column if not exists session_id uuid;
alter table public.voice_memories add column if not exists source text not null default 'agent';
alter table public.voice_memories add column if not exists confidence numeric(3,2) not null default 1;
alter table public.voice_memories add column if not exists said_at timestamptz not null default now();
do $$
begin
  perform private.require_columns('public.voice_memories', '{
    "session_id": "uuid", "source": "text", "confidence": "numeric(3,2)", "said_at": "timestamp with time zone"}');
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_memories'::regclass and conname = 'voice_memories_session_id_fkey') then
    alter table public.voice_memories add constraint voice_memories_session_id_fkey foreign key (session_id) references public.omnichannel_sessions (id) on delete set null;
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_memories'::regclass and conname = 'voice_memories_source_is_known') then
    alter table public.voice_memories add constraint voice_memories_source_is_known check (source in ('agent', 'summary', 'operator'));
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_memories'::regclass and conname = 'voice_memories_confidence_is_a_share') then
    alter table public.voice_memories add constraint voice_memories_confidence_is_a_share check (confidence between 0 and 1);
  end if;
end
$$;
create index if not exists idx_voice_memories_session on public.voice_memories (session_id) where session_id is not null;
comment on column public.voice_memories.session_id is 'The conversation in which it was last said.';
comment on column public.voice_memories.source is 'agent: the person said it and an agent kept it; summary: taken from what was said, afterwards; operator.';
comment on column public.voice_memories.confidence is 'How sure it is, from 0 to 1; 1: the person said so.';
comment on column public.voice_memories.said_at is 'When it was last said.';

create or replace function private.memories_of(p_client_id uuid, p_profile_id uuid, p_now timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object('key', m.key, 'value', m.value, 'since', to_char(m.said_at at time zone 'Africa/Kigali', 'YYYY-MM-DD'),
                                                 'source', m.source, 'confidence', m.confidence) order by m.key), '[]')
      from (select * from public.voice_memories v
             where v.client_id = p_client_id and v.profile_id = p_profile_id and (v.expires_at is null or v.expires_at > p_now)
             order by v.updated_at desc limit 20) m);
end
$$;
comment on function private.memories_of is 'The twenty newest memories of a person, for a model: with source, day and confidence.';

create or replace function private.agent_context(p_session_id uuid, p_limit integer) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_all jsonb := public.get_session_context(p_session_id, p_limit);
  v_session public.omnichannel_sessions;
begin
  select * into v_session from public.omnichannel_sessions where id = p_session_id;
  return jsonb_build_object(
    'now', to_char(now() at time zone 'Africa/Kigali', 'YYYY-MM-DD"T"HH24:MI'),
    'session', jsonb_build_object('status', v_all #> '{session,status}', 'channels', v_all #> '{session,active_channels}',
      'intent', v_all #> '{session,last_intent}', 'note', v_all #> '{session,context,note}'),
    'person', jsonb_build_object('language', v_all #> '{profile,locale}', 'whatsapp', v_all #> '{profile,whatsapp}', 'allows_sms', v_all #> '{profile,allows_sms}'),
    'brand', v_all #> '{client,brand}',
    'call_summary', v_all -> 'call_summary',
    'requests', private.open_requests(v_session.client_id, v_session.profile_id),
    'bookings', private.open_bookings(v_session.client_id, v_session.profile_id),
    'handover', (select h.state from public.handoffs h where h.client_id = v_session.client_id and h.profile_id = v_session.profile_id and h.state <> 'closed'),
    'memories', private.memories_of(v_session.client_id, v_session.profile_id, now()),
    'messages', v_all -> 'messages');
end
$$;
comment on function private.agent_context is
  'What a model is told of a session when it asks: what was said, agreed, asked for and booked, and what is remembered. No phone number, name or id: a model may repeat whatever it sees.';

create or replace function private.tool_session(p_who jsonb, p_name text, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_session uuid := (p_who ->> 'session_id')::uuid;
  v_status text := p_arguments ->> 'status';
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
  v_status := public.update_omnichannel_session_status(v_session, v_status, nullif(left(p_arguments ->> 'intent', 200), ''));
  if nullif(p_arguments ->> 'note', '') is not null then
    update public.omnichannel_sessions set context = context || jsonb_build_object('note', left(p_arguments ->> 'note', 500)) where id = v_session;
  end if;
  return private.tool_answered(jsonb_build_object('status', v_status));
end
$$;
comment on function private.tool_session is 'Tools session_get_context, session_get_or_create, session_update_status.';

create or replace function private.tool_profile_update_preferences(p_who jsonb, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_policy text := nullif(p_arguments ->> 'channels', '');
  v_language text := nullif(p_arguments ->> 'language', '');
  v_from text := nullif(p_arguments ->> 'quiet_from', '');
  v_until text := nullif(p_arguments ->> 'quiet_until', '');
  v_off boolean := coalesce(p_arguments ->> 'quiet_hours' = 'off', false);
  v_quiet jsonb;
  v_profile public.profiles;
  v_notes jsonb := '[]';
begin
  if v_policy not in ('both', 'sms_only', 'whatsapp_only', 'none') then
    return private.tool_refused('channels must be both, sms_only, whatsapp_only or none');
  elsif v_language not in ('en', 'fr', 'rw', 'sw') then
    return private.tool_refused('language must be en, fr, rw or sw');
  elsif (v_from is null) <> (v_until is null) then
    return private.tool_refused('quiet_from and quiet_until belong together');
  elsif v_from is not null and v_off then
    return private.tool_refused('either quiet hours or off');
  elsif num_nonnulls(v_policy, v_language, v_from) = 0 and not v_off then
    return private.tool_refused('say what the person wants to have changed');
  end if;
  select * into strict v_profile from public.profiles where id = (p_who ->> 'profile_id')::uuid for no key update;
  v_quiet := case when v_off then 'false'::jsonb
    when v_from is not null then jsonb_strip_nulls(jsonb_build_object('from', v_from, 'until', v_until,
      'time_zone', case jsonb_typeof(v_profile.notification_preferences -> 'quiet_hours') when 'object'
        then v_profile.notification_preferences #> '{quiet_hours,time_zone}' end)) end;
  if v_quiet is not null and (not private.is_quiet_hours(v_quiet) or v_from = v_until) then
    return private.tool_refused('quiet hours must be two different times as HH:MM');
  end if;
  -- As the words SMS ONLY and their like do, but for what STOP has closed: that only the person opens again.
  update public.profiles pr
     set locale = coalesce(v_language, pr.locale),
         notification_preferences = pr.notification_preferences
           || case when v_policy is not null then jsonb_build_object('policy', v_policy, 'policy_source', 'agent', 'policy_at', p_now) else '{}' end
           || case when v_quiet is not null then jsonb_build_object('quiet_hours', v_quiet, 'quiet_hours_source', 'agent', 'quiet_hours_at', p_now) else '{}' end
   where pr.id = v_profile.id
  returning * into v_profile;
  if v_policy in ('both', 'sms_only') and not v_profile.allows_sms then
    v_notes := v_notes || '"SMS were stopped by the person: none is sent until they write START by SMS"'::jsonb;
  end if;
  if v_policy in ('both', 'whatsapp_only') and not private.may_answer(v_profile.id, 'whatsapp') then
    v_notes := v_notes || '"WhatsApp was stopped by the person: none is sent until they write START there"'::jsonb;
  end if;
  return private.tool_answered(jsonb_build_object(
    'channels', v_profile.notification_preferences -> 'policy', 'language', v_profile.locale,
    'quiet_hours', v_profile.notification_preferences -> 'quiet_hours', 'notes', v_notes));
end
$$;
comment on function private.tool_profile_update_preferences is
  'Tool: keeps what a person wants, with source agent and its date; opens nothing that a STOP has closed.';

create or replace function private.tool_memory(p_who jsonb, p_name text, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_client uuid := (p_who ->> 'client_id')::uuid;
  v_profile uuid := (p_who ->> 'profile_id')::uuid;
  v_key text := lower(regexp_replace(btrim(coalesce(p_arguments ->> 'key', '')), '[^A-Za-z0-9]+', '_', 'g'));
  v_count integer;
begin
  if p_name = 'forget' then
    delete from public.voice_memories m where m.client_id = v_client and m.profile_id = v_profile and (v_key = '' or m.key = v_key);
    get diagnostics v_count = row_count;
    return private.tool_answered(jsonb_build_object('forgotten', v_count));
  end if;
  if v_key !~ '^[a-z][a-z0-9_]{0,59}$' or nullif(btrim(p_arguments ->> 'value'), '') is null then
    return private.tool_refused('key must be a short English name and value a text');
  end if;
  insert into public.voice_memories (client_id, profile_id, call_id, session_id, key, value, said_at)
  values (v_client, v_profile, case p_who ->> 'surface' when 'voice' then (p_who ->> 'call_id')::uuid end, (p_who ->> 'session_id')::uuid, v_key,
    left(btrim(p_arguments ->> 'value'), 500), p_now)
  on conflict (client_id, profile_id, key) do update
    set value = excluded.value, call_id = excluded.call_id, session_id = excluded.session_id, expires_at = null, source = 'agent', confidence = 1,
        said_at = excluded.said_at;
  -- So many that a model can be shown them; the oldest go.
  delete from public.voice_memories m where m.id in (
    select o.id from public.voice_memories o where o.client_id = v_client and o.profile_id = v_profile order by o.said_at desc offset 50);
  return private.tool_answered(jsonb_build_object('remembered', v_key));
end
$$;
comment on function private.tool_memory is 'Tools remember and forget.';

create or replace function private.tool_search_services(p_who jsonb, p_arguments jsonb) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_client uuid := (p_who ->> 'client_id')::uuid;
  v_query text := left(btrim(coalesce(p_arguments ->> 'query', '')), 200);
  v_area text := nullif(left(btrim(p_arguments ->> 'area'), 100), '');
  v_category text := nullif(left(btrim(p_arguments ->> 'category'), 100), '');
  v_limit integer := least(greatest(case when p_arguments ->> 'limit' ~ '^[0-9]{1,2}$' then (p_arguments ->> 'limit')::integer else 3 end, 1), 5);
  v_services jsonb;
begin
  if v_query = '' and v_category is null then
    return private.tool_refused('query is missing: say what the caller looks for');
  end if;
  v_services := private.find_services(v_client, v_query, v_area, v_category, v_limit);
  return private.tool_answered(jsonb_strip_nulls(jsonb_build_object(
    'services', v_services,
    -- As we understood it: the caller can say no.
    'area', case when v_area is not null then (private.find_place(v_area)).name end,
    'elsewhere', case when v_services = '[]' and v_area is not null then
      nullif(private.find_services(v_client, v_query, null, v_category, v_limit), '[]') end)));
end
$$;
comment on function private.tool_search_services is 'Tool: services that fit; where there is none in the area, those elsewhere by themselves.';

create or replace function private.tool_names() returns text[]
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return '{session_get_context,session_get_or_create,session_update_status,profile_update_preferences,search_services,service_request_save,book_transport,transfer_to_human,remember,forget,messaging_send_sms,messaging_send_whatsapp,messaging_send_dual,end_call}';
end
$$;
comment on function private.tool_names is 'All tools; ihuza_core::tool is the same list.';

create or replace function private.run_tool(p_who jsonb, p jsonb, p_tools jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_key text := p_who ->> 'key';
  v_name text := private.required(p, 'name');
  v_arguments jsonb := case when jsonb_typeof(p -> 'arguments') = 'object' then p -> 'arguments' else '{}' end;
  v_result jsonb;
begin
  -- Of many at once with one key, one acts; the others wait here and are told what it answered.
  perform private.lock_refs(array['tool:' || v_key]);
  select m.result into v_result from public.mcp_tool_calls m where m.idempotency_key = v_key;
  -- What was refused has done nothing and may be possible by now; a message that was refused has its row.
  if found and (v_result ->> 'ok' = 'true' or v_name like 'messaging\_send\_%') then
    return v_result;
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
  on conflict (idempotency_key) do update set arguments = excluded.arguments, result = excluded.result, finished_at = excluded.finished_at;
  return v_result;
end
$$;
comment on function private.run_tool is
  'Runs one tool for whoever p_who says (client, profile, session, call, turn: derived by the callers, never given by a model), if p_tools has it, once a key.';

create or replace function public.run_agent_tool(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
begin
  perform private.required(p, 'name');
  select * into v_session from public.omnichannel_sessions where id = private.required(p, 'session_id')::uuid;
  if not found then
    return private.tool_refused('session not found');
  end if;
  return private.run_tool(jsonb_build_object(
      'key', private.required(p, 'idempotency_key'), 'surface', case p ->> 'surface' when 'mcp' then 'mcp' else 'text' end,
      'client_id', v_session.client_id, 'profile_id', v_session.profile_id, 'session_id', v_session.id, 'call_id', v_session.call_id,
      'turn_id', p ->> 'turn_id', 'correlation_id', p ->> 'correlation_id',
      'channel', (select m.channel from public.conversation_messages m
                   where m.turn_id = (p ->> 'turn_id')::uuid and m.direction = 'inbound' order by m.seq desc limit 1)),
    p, private.agent_json(v_session.client_id, v_session.last_agent_id) -> 'tools', private.now_of(p));
end
$$;
comment on function public.run_agent_tool is
  'RPC: runs a tool for the person of a session, once a key: {session_id, name, idempotency_key, arguments | refused, renditions?, turn_id?, surface?, tools?} -> {ok, result | error, deliveries?}. tools: a list that narrows what the agent may use.';

create or replace function public.run_voice_tool(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_found record;
  v_call public.voice_calls;
begin
  perform private.required(p, 'name');
  perform private.required(p, 'idempotency_key');
  select * into v_found from private.voice_call_of(p, v_now);
  select * into strict v_call from public.voice_calls where id = v_found.call_id;
  if v_call.erased_at is not null then
    return private.tool_refused('call not found');
  end if;
  return private.run_tool(jsonb_build_object(
      -- The model's ids are its own: the same one in another call is another call of a tool.
      'key', 'voice:' || v_call.id || ':' || (p ->> 'idempotency_key'), 'tool_call_id', left(p ->> 'idempotency_key', 200), 'surface', 'voice', 'channel', 'voice',
      'client_id', v_call.client_id, 'profile_id', v_call.profile_id, 'session_id', v_call.session_id, 'call_id', v_call.id,
      'phone', private.e164_of(case v_call.direction when 'outbound' then v_call.to_number else v_call.from_number end),
      'correlation_id', p ->> 'correlation_id'),
    p, private.voice_agent_json(v_call.client_id, v_call.agent_id, 'call-center', v_call.locale) -> 'tools', v_now);
end
$$;
comment on function public.run_voice_tool is 'RPC: runs a tool in a call once; the same idempotency key of the same call gets the same answer.';

-- Whatever an operator has changed stays.
update public.ai_agents
   set tools = to_jsonb(array_remove(private.tool_names(), 'end_call'))
 where client_id is null and slug = 'call-center' and tools = '["session_get_context", "session_update_status"]';
update public.ai_agents
   set voice_tools = to_jsonb(private.tool_names())
 where client_id is null and slug = 'call-center' and voice_tools = '["search_services", "remember", "session_get_context", "session_update_status"]';

revoke execute on function private.memories_of(uuid, uuid, timestamptz), private.tool_session(jsonb, text, jsonb, timestamptz),
  private.tool_profile_update_preferences(jsonb, jsonb, timestamptz), private.tool_memory(jsonb, text, jsonb, timestamptz),
  private.tool_search_services(jsonb, jsonb), private.tool_names(), private.run_tool(jsonb, jsonb, jsonb, timestamptz) from public, anon, authenticated;
grant execute on function private.memories_of(uuid, uuid, timestamptz), private.tool_session(jsonb, text, jsonb, timestamptz),
  private.tool_profile_update_preferences(jsonb, jsonb, timestamptz), private.tool_memory(jsonb, text, jsonb, timestamptz),
  private.tool_search_services(jsonb, jsonb), private.tool_names(), private.run_tool(jsonb, jsonb, jsonb, timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121014040'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
