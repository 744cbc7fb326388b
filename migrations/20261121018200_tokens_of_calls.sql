-- 20261121018200_tokens_of_calls.sql
-- A call whose tools the model's vendor calls over MCP gets a token of its own: for that conversation, for the tools of its agent that were
-- asked for, until the call ends, and no longer than a session of the model lasts.
-- Safe to run again. Locks agent_tool_tokens and voice_calls for a moment (a column without a rewrite; a trigger). Undo: drop the triggers,
-- functions, index and column, and apply public.open_voice_call of 20261121018100.
alter table public.agent_tool_tokens add column if not exists call_id uuid;
do $$
begin
  perform private.require_columns('public.agent_tool_tokens', '{"call_id": "uuid"}');
  if not exists (select from pg_catalog.pg_constraint
                  where conrelid = 'public.agent_tool_tokens'::regclass and conname = 'agent_tool_tokens_call_id_fkey') then
    alter table public.agent_tool_tokens add constraint agent_tool_tokens_call_id_fkey
      foreign key (call_id) references public.voice_calls (id) on delete cascade;
  end if;
end
$$;
create index if not exists idx_agent_tool_tokens_call on public.agent_tool_tokens (call_id) where call_id is not null;
comment on column public.agent_tool_tokens.call_id is 'Made for this call: revoked when it ends.';

create or replace function private.issue_call_token(p_call public.voice_calls, p_session_id uuid, p_tools jsonb, p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  -- What the agent has, of what may be called from outside.
  v_tools jsonb := (select jsonb_agg(t.name order by t.place) from jsonb_array_elements_text(coalesce(nullif(p_tools, 'null'), '[]')) with ordinality t (name, place)
                     where p #> '{mcp,tools}' ? t.name);
  v_issued jsonb;
begin
  if p_session_id is null or v_tools is null then
    return null;
  end if;
  v_issued := public.issue_agent_tool_token(jsonb_build_object('session_id', p_session_id, 'scopes', v_tools, 'purpose', 'realtime_call',
    'ttl_seconds', p #> '{mcp,ttl_seconds}', 'correlation_id', p_call.correlation_id, 'now', p -> 'now'));
  update public.agent_tool_tokens set call_id = p_call.id where id = (v_issued ->> 'token_id')::uuid;
  return jsonb_build_object('token', v_issued -> 'token', 'tools', v_tools, 'expires_at', v_issued -> 'expires_at');
end
$$;
comment on function private.issue_call_token is
  'A token of this call for those of its agent''s tools that p.mcp {tools, ttl_seconds} names; null where none is asked for, or nobody knows who calls.';

create or replace function private.revoke_tokens_of_call() returns trigger
language plpgsql set search_path = '' as $$
begin
  update public.agent_tool_tokens t set revoked_at = clock_timestamp() where t.call_id = new.id and t.revoked_at is null;
  return null;
end
$$;
comment on function private.revoke_tokens_of_call is 'Trigger: with a call its tokens end.';
drop trigger if exists voice_calls_revoke_tokens on public.voice_calls;
create trigger voice_calls_revoke_tokens after update of ended_at on public.voice_calls
  for each row when (new.ended_at is not null and old.ended_at is null) execute function private.revoke_tokens_of_call();

revoke execute on function private.issue_call_token(public.voice_calls, uuid, jsonb, jsonb), private.revoke_tokens_of_call() from public, anon, authenticated;
grant execute on function private.issue_call_token(public.voice_calls, uuid, jsonb, jsonb), private.revoke_tokens_of_call() to service_role;

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
    -- What a model may be told: no number, name or id. Also where the conversation is new: what is asked for, booked and remembered is
    -- the person's, and an earlier call is an earlier call.
    'context', case when v_session_id is not null then
      private.agent_context(v_session_id, coalesce((p ->> 'history_limit')::integer, 10))
        || jsonb_build_object('call_summary', private.summary_before_call(v_call)) end,
    'memories', coalesce((
      select jsonb_agg(jsonb_build_object('key', m.key, 'value', m.value) order by m.key)
        from (select * from public.voice_memories vm
               where vm.client_id = v_call.client_id and vm.profile_id = v_profile_id and (vm.expires_at is null or vm.expires_at > v_now)
               order by vm.updated_at desc limit 20) m), '[]'),
    'agent', v_agent,
    'mcp', private.issue_call_token(v_call, v_session_id, v_agent -> 'tools', p),
    'openai_session', jsonb_build_object('id', v_model_session.id, 'ordinal', v_model_session.ordinal, 'model', v_model_session.model,
      'voice', v_model_session.voice, 'audio_format', v_model_session.audio_format));
end
$$;

comment on function public.open_voice_call is
  'RPC: opens a call, or finds the one that was opened, and returns who calls, the conversation, what is remembered, and the agent in the caller''s language; `ended` when it is over already. With `mcp: {tools, ttl_seconds}` also a token for those tools.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018200'::text $$;

notify pgrst, 'reload schema';
