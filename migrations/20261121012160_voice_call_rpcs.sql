-- 20261121012160_voice_call_rpcs.sql
-- The life of a call as the relay tells it: open, events, end. Each is one transaction, may be repeated, and may come in any
-- order: the relay posts from a journal, and a call is answered also while nobody hears of it.
-- Order of locks: the open session, then the row of a call that was there before.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function private.voice_call_of(p jsonb, p_now timestamptz, out call_id uuid, out created boolean)
language plpgsql set search_path = '' as $$
declare
  v_origin text := coalesce(nullif(p ->> 'origin', ''), 'mtn_sip');
  v_sid text := nullif(p ->> 'call_sid', '');
  v_from text := left(p ->> 'from', 200);
  v_to text := left(p ->> 'to', 200);
  v_started timestamptz := least(coalesce((p ->> 'started_at')::timestamptz, p_now), p_now);
begin
  created := false;
  if nullif(p ->> 'call_id', '') is not null then
    select c.id into call_id from public.voice_calls c where c.id = private.uuid_or_null(p ->> 'call_id');
    if call_id is null and v_sid is null then
      raise exception using errcode = 'PT404', message = 'call not found';
    end if;
  end if;
  if call_id is null then
    if v_sid is null then
      raise exception using errcode = 'PT400', message = 'field call_sid is missing';
    end if;
    select c.id into call_id from public.voice_calls c where c.origin = v_origin and c.provider_call_id = v_sid;
  end if;
  if call_id is null then
    insert into public.voice_calls as c
      (client_id, origin, provider_call_id, mtn_call_sid, trunk, direction, from_number, to_number, locale, status, started_at, correlation_id)
    values
      (private.client_of_address('voice', coalesce(private.e164_of(case p ->> 'direction' when 'outbound' then v_from else v_to end), v_to)),
       v_origin, v_sid, case when v_origin in ('mtn_sip', 'mtn_media') then v_sid end, nullif(p ->> 'trunk', ''), coalesce(p ->> 'direction', 'inbound'),
       v_from, v_to, nullif(p ->> 'locale', ''), 'in_progress', v_started, p ->> 'correlation_id')
    -- Whoever is at it at the same moment is waited for here. A call handler may have written the row itself, over PostgREST
    -- and under MTN's id alone.
    on conflict do nothing
    returning c.id into call_id;
    created := call_id is not null;
    if call_id is null then
      select c.id into strict call_id from public.voice_calls c
       where (c.origin = v_origin and c.provider_call_id = v_sid) or c.mtn_call_sid = v_sid
       order by c.created_at limit 1;
    end if;
  end if;
  if not created then
    -- What was not known when the row was made is known now.
    update public.voice_calls c
       set from_number = coalesce(c.from_number, v_from), to_number = coalesce(c.to_number, v_to), trunk = coalesce(c.trunk, nullif(p ->> 'trunk', '')),
           locale = coalesce(c.locale, nullif(p ->> 'locale', '')), correlation_id = coalesce(c.correlation_id, p ->> 'correlation_id'),
           started_at = coalesce(c.started_at, (p ->> 'started_at')::timestamptz)
     where c.id = voice_call_of.call_id and c.erased_at is null
       and ((c.from_number is null and v_from is not null) or (c.to_number is null and v_to is not null)
         or (c.trunk is null and nullif(p ->> 'trunk', '') is not null) or (c.locale is null and nullif(p ->> 'locale', '') is not null)
         or c.correlation_id is null or (c.started_at is null and p ->> 'started_at' is not null));
  end if;
end
$$;
comment on function private.voice_call_of is
  'The call that a request of the relay names, by our id or by the trunk''s; made when nobody has told of it yet.';

create or replace function public.open_voice_call(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_ordinal smallint := coalesce((p ->> 'ordinal')::smallint, 1);
  v_found record;
  v_call public.voice_calls;
  v_caller text;
  v_profile_id uuid;
  v_session_id uuid;
  v_session_created boolean := false;
  v_locale text;
  v_last_agent uuid;
  v_agent jsonb;
  v_model_session public.openai_sessions;
begin
  perform private.required(p, 'call_sid');
  perform private.required(p, 'model');
  select * into v_found from private.voice_call_of(p, v_now);
  select * into strict v_call from public.voice_calls where id = v_found.call_id;
  if v_call.ended_at is not null or v_call.erased_at is not null then
    return jsonb_build_object('decision', 'ended', 'call_id', v_call.id, 'status', v_call.status, 'end_cause', v_call.end_cause);
  end if;

  v_caller := private.e164_of(case v_call.direction when 'outbound' then v_call.to_number else v_call.from_number end);
  v_profile_id := v_call.profile_id;
  if v_profile_id is null and v_caller is not null then
    v_profile_id := private.ensure_profile(v_caller);
  end if;
  if v_profile_id is not null then
    select o.session_id, o.created into v_session_id, v_session_created
      from private.open_session(v_call.client_id, v_profile_id, 'voice', v_call.id, v_idle, v_now) o;
    select s.last_agent_id into v_last_agent from public.omnichannel_sessions s where s.id = v_session_id;
  end if;
  -- What the person chose, else what the trunk's number is for, else the client's.
  select coalesce(
      (select lower(split_part(pr.locale, '-', 1)) from public.profiles pr where pr.id = v_profile_id and lower(split_part(pr.locale, '-', 1)) in ('en', 'fr', 'rw', 'sw')),
      case when lower(split_part(v_call.locale, '-', 1)) in ('en', 'fr', 'rw', 'sw') then lower(split_part(v_call.locale, '-', 1)) end,
      c.default_locale)
    into v_locale from public.clients c where c.id = v_call.client_id;
  v_agent := private.voice_agent_json(v_call.client_id, coalesce(v_call.agent_id, v_last_agent), coalesce(nullif(p ->> 'agent', ''), 'call-center'), v_locale);

  update public.voice_calls c
     set profile_id = coalesce(c.profile_id, v_profile_id), session_id = coalesce(v_session_id, c.session_id),
         agent_id = coalesce(c.agent_id, (v_agent ->> 'id')::uuid), locale = coalesce(c.locale, v_locale)
   where c.id = v_call.id
  returning * into v_call;
  if v_session_id is not null then
    perform private.touch_session(v_session_id, 'active', array['voice'], v_now, null, v_call.agent_id, v_call.id);
    update public.conversation_threads t set call_id = v_call.id where t.session_id = v_session_id and t.call_id is distinct from v_call.id;
    if v_call.direction = 'inbound' then
      update public.profiles pr set last_active_channel = 'voice' where pr.id = v_profile_id and pr.last_active_channel is distinct from 'voice';
    end if;
    -- A call over WhatsApp opens its service window; a phone call does not.
    insert into public.wa_threads as w (client_id, profile_id, session_id, call_id, wa_id, last_inbound_at)
    select v_call.client_id, v_profile_id, v_session_id, v_call.id, ltrim(v_caller, '+'), v_now
     where v_call.origin = 'whatsapp' and v_call.direction = 'inbound'
    on conflict (client_id, profile_id) do update
      set session_id = excluded.session_id, call_id = excluded.call_id, wa_id = coalesce(excluded.wa_id, w.wa_id),
          last_inbound_at = greatest(w.last_inbound_at, excluded.last_inbound_at);
    if v_call.origin = 'whatsapp' and v_call.direction = 'inbound' then
      update public.profiles pr set last_whatsapp_inbound_at = greatest(pr.last_whatsapp_inbound_at, v_now) where pr.id = v_profile_id;
    end if;
  end if;

  insert into public.openai_sessions (client_id, call_id, ordinal, model, voice, audio_format, locale)
  values (v_call.client_id, v_call.id, v_ordinal, p ->> 'model', nullif(p ->> 'voice', ''), nullif(p ->> 'audio_format', ''), v_locale)
  on conflict (call_id, ordinal) do nothing;
  select * into strict v_model_session from public.openai_sessions s where s.call_id = v_call.id and s.ordinal = v_ordinal;

  return jsonb_build_object(
    'decision', 'go', 'created', v_found.created, 'call_id', v_call.id,
    'call', private.call_json(v_call),
    'locale', v_locale,
    'client', private.client_json(v_call.client_id),
    'profile', case when v_profile_id is not null then private.profile_json(v_profile_id, v_caller, v_now) end,
    'session', case when v_session_id is not null then private.session_json(v_session_id, v_session_created) end,
    -- What a model may be told: no number, name or id.
    'context', case when v_session_id is not null and not v_session_created then private.agent_context(v_session_id, coalesce((p ->> 'history_limit')::integer, 10)) end,
    'memories', coalesce((
      select jsonb_agg(jsonb_build_object('key', m.key, 'value', m.value) order by m.key)
        from (select * from public.voice_memories vm
               where vm.client_id = v_call.client_id and vm.profile_id = v_profile_id and (vm.expires_at is null or vm.expires_at > v_now)
               order by vm.updated_at desc limit 20) m), '[]'),
    'agent', v_agent,
    'openai_session', jsonb_build_object('id', v_model_session.id, 'ordinal', v_model_session.ordinal, 'model', v_model_session.model,
      'voice', v_model_session.voice, 'audio_format', v_model_session.audio_format));
end
$$;
comment on function public.open_voice_call is
  'RPC: opens a call, or finds the one that was opened, and returns who calls, the conversation, what is remembered, and the agent in the caller''s language; `ended` when it is over already.';

create or replace function private.voice_gaps(p_call_id uuid, p_last integer) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_array(g.first, g.last) order by g.first), '[]')
      from (
        select e.before + 1 as first, e.seq - 1 as last
          from (select v.seq, lag(v.seq, 1, 0) over (order by v.seq) as before from public.voice_events v where v.call_id = p_call_id) e
         where e.seq > e.before + 1
        union all
        select m.seq + 1, p_last from (select coalesce(max(v.seq), 0) as seq from public.voice_events v where v.call_id = p_call_id) m where p_last > m.seq
         order by 1 limit 100) g);
end
$$;
comment on function private.voice_gaps is 'The first hundred gaps among the events of a call, as [first, last], up to the newest or to p_last where that is known.';

create or replace function public.record_voice_events(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_correlation text := p ->> 'correlation_id';
  v_events jsonb := coalesce(nullif(p -> 'events', 'null'), '[]');
  v_found record;
  v_call public.voice_calls;
  v_new integer[];
  v_told text;
  v_locale text;
begin
  select * into v_found from private.voice_call_of(p, v_now);
  -- Batches of one call one after the other, so that each knows the gaps that are left.
  select * into strict v_call from public.voice_calls where id = v_found.call_id for no key update;
  if v_call.erased_at is not null then
    return jsonb_build_object('call_id', v_call.id, 'stored', 0, 'duplicates', 0, 'ignored', jsonb_array_length(v_events), 'gaps', '[]'::jsonb, 'last_seq', 0);
  end if;

  with stored as (
    insert into public.voice_events (client_id, call_id, seq, type, occurred_at, payload, correlation_id)
    select v_call.client_id, v_call.id, (e ->> 'seq')::integer, e ->> 'type', least(coalesce((e ->> 'at')::timestamptz, v_now), v_now),
           e - 'seq' - 'type' - 'at', v_correlation
      from jsonb_array_elements(v_events) e
    on conflict (call_id, seq) do nothing
    returning seq
  )
  select coalesce(array_agg(seq), '{}') into v_new from stored;

  insert into public.transcripts (client_id, call_id, seq, role, text, language, language_source, start_ms, end_ms, interrupted, item_id)
  select v_call.client_id, v_call.id, e.seq, e.payload ->> 'role', e.payload ->> 'text', coalesce(e.payload ->> 'language', v_call.locale),
         case when e.payload ->> 'language' is null then case when v_call.locale is not null then 'call' end
              else coalesce(e.payload ->> 'language_source', 'transcription') end,
         (e.payload ->> 'start_ms')::integer, (e.payload ->> 'end_ms')::integer, coalesce((e.payload ->> 'interrupted')::boolean, false),
         left(e.payload ->> 'item_id', 200)
    from public.voice_events e
   where e.call_id = v_call.id and e.seq = any (v_new) and e.type = 'transcript' and nullif(btrim(e.payload ->> 'text'), '') is not null
  on conflict (call_id, seq) do nothing;

  update public.openai_sessions s
     set provider_session_id = coalesce(left(e.payload ->> 'session_id', 200), s.provider_session_id),
         status = case when s.status = 'opening' then 'active' else s.status end
    from public.voice_events e
   where e.call_id = v_call.id and e.seq = any (v_new) and e.type = 'session.created'
     and s.call_id = v_call.id and s.ordinal = greatest(private.count_of(e.payload, '{ordinal}'), 1);

  insert into public.call_consents (client_id, call_id, profile_id, kind, state, method, language, occurred_at)
  select v_call.client_id, v_call.id, v_call.profile_id, coalesce(e.payload ->> 'kind', 'recording'), e.payload ->> 'state', e.payload ->> 'method',
         e.payload ->> 'language', e.occurred_at
    from public.voice_events e
   where e.call_id = v_call.id and e.seq = any (v_new) and e.type = 'consent'
  on conflict (call_id, kind, state) do nothing;

  -- The language of the call follows the caller: when they ask for one, or when two turns of theirs running are in another.
  select e.payload ->> 'language' into v_told
    from public.voice_events e
   where e.call_id = v_call.id and e.type = 'language' and e.payload ->> 'language' in ('en', 'fr', 'rw', 'sw')
   order by e.seq desc limit 1;
  if v_told is not null and exists (select from public.voice_events e where e.call_id = v_call.id and e.seq = any (v_new) and e.type = 'language') then
    v_locale := v_told;
  else
    select min(t.language) into v_locale
      from (select tr.language from public.transcripts tr
             where tr.call_id = v_call.id and tr.role = 'user' and tr.language_source <> 'call' and tr.language in ('en', 'fr', 'rw', 'sw')
             order by tr.seq desc limit 2) t
    having count(*) = 2 and min(t.language) = max(t.language);
  end if;
  if v_locale is distinct from v_call.locale and v_locale is not null then
    update public.voice_calls c set locale = v_locale where c.id = v_call.id returning * into v_call;
  end if;

  return jsonb_build_object(
    'call_id', v_call.id, 'stored', cardinality(v_new), 'duplicates', jsonb_array_length(v_events) - cardinality(v_new), 'ignored', 0,
    'gaps', private.voice_gaps(v_call.id, null),
    'last_seq', (select coalesce(max(e.seq), 0) from public.voice_events e where e.call_id = v_call.id),
    'language', v_call.locale);
end
$$;
comment on function public.record_voice_events is
  'RPC: keeps a batch of events of a call, each (call, seq) once, makes the transcript of it, and says which numbers are still missing.';

create or replace function public.end_voice_call(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_cause text := coalesce(nullif(p ->> 'cause', ''), 'unknown');
  v_last integer := (p ->> 'last_seq')::integer;
  v_first boolean := false;
  v_found record;
  v_call public.voice_calls;
  v_model text;
  v_usage jsonb;
  v_price record;
  v_gaps jsonb;
  v_to text;
begin
  select * into v_found from private.voice_call_of(p, v_now);
  select * into strict v_call from public.voice_calls where id = v_found.call_id for no key update;
  if v_call.ended_at is null and v_call.erased_at is null then
    v_first := true;
    select s.model into v_model from public.openai_sessions s where s.call_id = v_call.id order by s.ordinal desc limit 1;
    if jsonb_typeof(p -> 'usage') = 'object' then
      v_usage := private.usage_of(p -> 'usage');
    else
      -- A relay that was killed has no total; what it told on the way has.
      v_usage := private.usage_sum(array(
        select e.payload -> 'usage' from public.voice_events e
         where e.call_id = v_call.id and e.type = 'response.done' and jsonb_typeof(e.payload -> 'usage') = 'object'));
    end if;
    select * into v_price from private.realtime_cost(coalesce(nullif(p ->> 'model', ''), v_model), v_usage, v_now);
    update public.voice_calls c
       set answered_at = coalesce(c.answered_at, least((p ->> 'answered_at')::timestamptz, v_now)),
           ended_at = greatest(least(coalesce((p ->> 'ended_at')::timestamptz, v_now), v_now), c.started_at, (p ->> 'answered_at')::timestamptz),
           status = private.status_of_cause(v_cause), end_cause = v_cause, end_reason = left(p ->> 'reason', 200),
           usage = v_usage, cost = v_price.cost, cost_currency = v_price.currency
     where c.id = v_call.id
    returning * into v_call;
    update public.voice_calls c
       set duration_seconds = coalesce((p ->> 'duration_seconds')::integer,
             greatest(extract(epoch from c.ended_at - coalesce(c.answered_at, case c.status when 'completed' then c.started_at else c.ended_at end)), 0)::integer)
     where c.id = v_call.id
    returning * into v_call;
    update public.openai_sessions s set status = 'ended', ended_at = v_call.ended_at where s.call_id = v_call.id and s.status <> 'ended';
  end if;
  v_gaps := private.voice_gaps(v_call.id, v_last);
  v_to := private.e164_of(case v_call.direction when 'outbound' then v_call.to_number else v_call.from_number end);
  return jsonb_build_object(
    'decision', case when v_first then 'ended' else 'already_ended' end,
    'created', v_found.created,
    'call_id', v_call.id, 'status', v_call.status, 'cause', v_call.end_cause, 'ended_at', v_call.ended_at, 'duration_seconds', v_call.duration_seconds,
    'cost', v_call.cost, 'cost_currency', v_call.cost_currency, 'gaps', v_gaps,
    -- Asked for again for as long as nobody has begun it: a request may have been lost on its way to the queue.
    'notify', v_call.status = 'completed' and v_call.notified_at is null and v_call.erased_at is null,
    'phone_number', v_to, 'correlation_id', v_call.correlation_id);
end
$$;
comment on function public.end_voice_call is
  'RPC: ends a call, also one that nobody had told of; the first end counts, a repeat is told the same. `notify`: the summary is still to be asked for.';

create or replace function public.run_voice_tool(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_name text := private.required(p, 'name');
  v_arguments jsonb := case when jsonb_typeof(p -> 'arguments') = 'object' then p -> 'arguments' else '{}' end;
  v_found record;
  v_call public.voice_calls;
  v_key text;
  v_result jsonb;
  v_services jsonb;
  v_memory text := lower(regexp_replace(btrim(coalesce(v_arguments ->> 'key', '')), '[^A-Za-z0-9]+', '_', 'g'));
begin
  perform private.required(p, 'idempotency_key');
  select * into v_found from private.voice_call_of(p, v_now);
  select * into strict v_call from public.voice_calls where id = v_found.call_id;
  if v_call.erased_at is not null then
    return jsonb_build_object('ok', false, 'error', 'call not found');
  end if;
  -- The model's ids are its own: the same one in another call is another call of a tool.
  v_key := 'voice:' || v_call.id || ':' || (p ->> 'idempotency_key');
  if v_name in ('session_get_context', 'session_update_status') then
    if v_call.session_id is null then
      return jsonb_build_object('ok', false, 'error', 'the caller is anonymous: there is no conversation');
    end if;
    return public.run_agent_tool(p || jsonb_build_object('session_id', v_call.session_id, 'idempotency_key', v_key, 'arguments', v_arguments));
  end if;
  perform private.lock_refs(array['tool:' || v_key]);
  select m.result into v_result from public.mcp_tool_calls m where m.idempotency_key = v_key;
  if found then
    return v_result;
  end if;
  case v_name
    when 'search_services' then
      if nullif(btrim(v_arguments ->> 'query'), '') is null and nullif(btrim(v_arguments ->> 'category'), '') is null then
        v_result := jsonb_build_object('ok', false, 'error', 'query is missing: say what the caller looks for');
      else
        v_services := private.find_services(v_call.client_id, left(btrim(coalesce(v_arguments ->> 'query', '')), 200), nullif(left(btrim(v_arguments ->> 'area'), 100), ''),
          nullif(left(btrim(v_arguments ->> 'category'), 100), ''),
          least(greatest(case when v_arguments ->> 'limit' ~ '^[0-9]{1,2}$' then (v_arguments ->> 'limit')::integer else 3 end, 1), 5));
        v_result := jsonb_build_object('ok', true, 'result', jsonb_build_object('services', v_services));
      end if;
    when 'remember' then
      if v_call.profile_id is null then
        v_result := jsonb_build_object('ok', false, 'error', 'the caller is anonymous: nothing can be remembered');
      elsif v_memory !~ '^[a-z][a-z0-9_]{0,59}$' or nullif(btrim(v_arguments ->> 'value'), '') is null then
        v_result := jsonb_build_object('ok', false, 'error', 'key must be a short English name and value a text');
      else
        insert into public.voice_memories (client_id, profile_id, call_id, key, value)
        values (v_call.client_id, v_call.profile_id, v_call.id, v_memory, left(btrim(v_arguments ->> 'value'), 500))
        on conflict (client_id, profile_id, key) do update set value = excluded.value, call_id = excluded.call_id, expires_at = null;
        v_result := jsonb_build_object('ok', true, 'result', jsonb_build_object('remembered', v_memory));
      end if;
    else
      v_result := jsonb_build_object('ok', false, 'error', format('there is no tool %s', left(v_name, 100)));
  end case;
  insert into public.mcp_tool_calls
    (client_id, session_id, call_id, name, arguments, result, idempotency_key, tool_call_id, correlation_id, finished_at)
  values (v_call.client_id, v_call.session_id, v_call.id, left(v_name, 100), v_arguments, v_result, v_key, left(p ->> 'idempotency_key', 200), p ->> 'correlation_id', clock_timestamp());
  return v_result;
end
$$;
comment on function public.run_voice_tool is 'RPC: runs a tool in a call once; the same idempotency key of the same call gets the same answer.';

revoke execute on function private.voice_call_of(jsonb, timestamptz), public.open_voice_call(jsonb), private.voice_gaps(uuid, integer),
  public.record_voice_events(jsonb), public.end_voice_call(jsonb), public.run_voice_tool(jsonb) from public, anon, authenticated;
grant execute on function private.voice_call_of(jsonb, timestamptz), public.open_voice_call(jsonb), private.voice_gaps(uuid, integer),
  public.record_voice_events(jsonb), public.end_voice_call(jsonb), public.run_voice_tool(jsonb) to service_role;
