-- 20261121015000_agent_tool_tokens.sql
-- Tokens with which an MCP client uses the tools of one conversation: each for some tools, for some hours, for so many calls.
-- Safe to run again. Locks only a new table. Undo: drop the functions, then public.agent_tool_tokens.
create table if not exists public.agent_tool_tokens (
  id uuid not null default gen_random_uuid(),
  client_id uuid not null references public.clients (id),
  session_id uuid not null references public.omnichannel_sessions (id) on delete cascade,
  token_hash text not null,
  scopes text[] not null,
  purpose text not null,
  max_calls integer not null default 200,
  calls integer not null default 0,
  expires_at timestamptz not null,
  revoked_at timestamptz,
  last_used_at timestamptz,
  correlation_id text,
  created_at timestamptz not null default now(),
  constraint agent_tool_tokens_pkey primary key (id),
  constraint agent_tool_tokens_token_hash_key unique (token_hash),
  constraint agent_tool_tokens_token_hash_is_sha256 check (token_hash ~ '^[0-9a-f]{64}$'),
  constraint agent_tool_tokens_scopes_are_words check (
    cardinality(scopes) between 1 and 32 and array_position(scopes, null) is null
    and array_to_string(scopes, ' ') ~ '^[a-z][a-z_]{0,59}(:[a-z]{1,20})?( [a-z][a-z_]{0,59}(:[a-z]{1,20})?)*$'),
  constraint agent_tool_tokens_purpose_is_a_word check (purpose ~ '^[a-z0-9][a-z0-9_-]{0,59}$'),
  constraint agent_tool_tokens_calls_are_counts check (max_calls > 0 and calls >= 0)
);
do $$
begin
  perform private.require_columns('public.agent_tool_tokens', '{
    "id": "uuid", "client_id": "uuid", "session_id": "uuid", "token_hash": "text", "scopes": "text[]", "purpose": "text", "max_calls": "integer",
    "calls": "integer", "expires_at": "timestamp with time zone", "revoked_at": "timestamp with time zone", "last_used_at": "timestamp with time zone",
    "correlation_id": "text", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_agent_tool_tokens_client on public.agent_tool_tokens (client_id, expires_at);
create index if not exists idx_agent_tool_tokens_session on public.agent_tool_tokens (session_id);
comment on table public.agent_tool_tokens is 'Tokens of MCP clients, each for the tools of one conversation. They go with the conversation.';
comment on column public.agent_tool_tokens.token_hash is 'SHA-256 of the token in hex. The token itself stands nowhere.';
comment on column public.agent_tool_tokens.scopes is 'What it allows: scopes as in ihuza_core::tool (session:read), or names of tools.';
comment on column public.agent_tool_tokens.purpose is 'What it was made for, a code such as realtime_call; nothing of a person.';
comment on column public.agent_tool_tokens.max_calls is 'So many tool calls, then no more: what a token that was lost can cost.';
comment on column public.agent_tool_tokens.calls is 'Tool calls so far. A few at the same moment may pass max_calls.';
comment on column public.agent_tool_tokens.last_used_at is 'Exact to a minute.';

create or replace function public.issue_agent_tool_token(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_seconds integer := coalesce((p ->> 'ttl_seconds')::integer, 3600);
  v_session public.omnichannel_sessions;
  v_row public.agent_tool_tokens;
  -- Two random UUIDs: 244 bits.
  v_token text := 'mcpt_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
begin
  if v_seconds not between 60 and 86400 then
    raise exception using errcode = 'PT400', message = 'ttl_seconds must be 60 to 86400';
  end if;
  if coalesce(jsonb_typeof(p -> 'scopes'), '') <> 'array' or p -> 'scopes' = '[]' then
    raise exception using errcode = 'PT400', message = 'scopes must be a list of scopes or names of tools';
  end if;
  select * into v_session from public.omnichannel_sessions where id = private.required(p, 'session_id')::uuid;
  if not found then
    raise exception using errcode = 'PT404', message = 'session not found';
  end if;
  -- Nobody needs those that are long over; whoever makes new ones takes a few of them away.
  delete from public.agent_tool_tokens t
   where t.id in (select o.id from public.agent_tool_tokens o
                   where o.client_id = v_session.client_id and o.expires_at < v_now - interval '30 days' order by o.expires_at limit 20);
  insert into public.agent_tool_tokens (client_id, session_id, token_hash, scopes, purpose, max_calls, expires_at, correlation_id, created_at)
  values (v_session.client_id, v_session.id, encode(sha256(convert_to(v_token, 'UTF8')), 'hex'),
    array(select distinct s from jsonb_array_elements_text(p -> 'scopes') s order by s), private.required(p, 'purpose'),
    coalesce((p ->> 'max_calls')::integer, 200), v_now + make_interval(secs => v_seconds), p ->> 'correlation_id', v_now)
  returning * into v_row;
  return jsonb_build_object('token', v_token, 'token_id', v_row.id, 'scopes', to_jsonb(v_row.scopes), 'max_calls', v_row.max_calls, 'expires_at', v_row.expires_at);
end
$$;
comment on function public.issue_agent_tool_token is
  'RPC {session_id, scopes, purpose, ttl_seconds? (60 to 86400, else an hour), max_calls?} -> {token, token_id, scopes, max_calls, expires_at}. The token is told here and never again.';

create or replace function public.revoke_agent_tool_tokens(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_count integer;
begin
  if num_nonnulls(p ->> 'token_id', p ->> 'session_id') <> 1 then
    raise exception using errcode = 'PT400', message = 'one of token_id and session_id must be given';
  end if;
  update public.agent_tool_tokens t
     set revoked_at = private.now_of(p)
   where t.revoked_at is null
     and t.id in (select o.id from public.agent_tool_tokens o where o.id = (p ->> 'token_id')::uuid
                  union all
                  select o.id from public.agent_tool_tokens o where o.session_id = (p ->> 'session_id')::uuid);
  get diagnostics v_count = row_count;
  return jsonb_build_object('revoked', v_count);
end
$$;
comment on function public.revoke_agent_tool_tokens is 'RPC {token_id | session_id} -> {revoked}: from now on they are refused like tokens that never were.';

create or replace function private.mcp_call_key(p_token_id uuid, p jsonb, p_now timestamptz) returns text
language plpgsql set search_path = '' as $$
declare
  v_print text := 'mcp:' || p_token_id || ':request:' || coalesce(p ->> 'fingerprint', '');
  v_window bigint := floor(extract(epoch from p_now) / 120);
  v_key text;
begin
  if nullif(p ->> 'idempotency_key', '') is not null then
    return 'mcp:' || p_token_id || ':key:' || left(p ->> 'idempotency_key', 256);
  end if;
  -- What was read a moment ago may be different now.
  if p ->> 'changes' = 'false' or nullif(p ->> 'fingerprint', '') is null then
    return 'mcp:' || p_token_id || ':' || gen_random_uuid();
  end if;
  perform private.lock_refs(array[v_print]);
  select m.idempotency_key into v_key
    from public.mcp_tool_calls m
   where m.idempotency_key in (v_print || ':' || v_window, v_print || ':' || (v_window - 1)) and m.created_at > p_now - interval '2 minutes'
   order by m.created_at desc
   limit 1;
  return coalesce(v_key, v_print || ':' || v_window);
end
$$;
comment on function private.mcp_call_key is
  'Under which key a tool runs: the client''s own for ever; else the same request (id, tool, arguments) of a token is one call for two minutes, since clients repeat what got no answer and also count their ids anew.';

create or replace function public.run_mcp_tool(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_name text := nullif(p ->> 'name', '');
  v_token public.agent_tool_tokens;
  v_session public.omnichannel_sessions;
  v_result jsonb;
begin
  select * into v_token from public.agent_tool_tokens
   where token_hash = private.required(p, 'token_hash') and revoked_at is null and expires_at > v_now;
  if not found then
    return '{"refused": "token"}';
  end if;
  select * into strict v_session from public.omnichannel_sessions where id = v_token.session_id;
  if v_name is null then
    update public.agent_tool_tokens set last_used_at = v_now where id = v_token.id and (last_used_at is null or last_used_at < v_now - interval '1 minute');
    return jsonb_build_object('scopes', to_jsonb(v_token.scopes), 'expires_at', v_token.expires_at,
      'tools', coalesce(private.agent_json(v_session.client_id, v_session.last_agent_id) -> 'tools', '[]'));
  end if;
  -- The scope of a tool is said by whoever holds the one list of tools, the function; null is the scope of none.
  if not (v_name = any (v_token.scopes) or coalesce((p ->> 'scope') = any (v_token.scopes), false)) then
    return '{"refused": "scope"}';
  end if;
  if v_token.calls >= v_token.max_calls then
    v_result := '{"ok": false, "error": "this token has made all the calls that it may"}';
  elsif nullif(p ->> 'refused', '') is not null then
    v_result := jsonb_build_object('ok', false, 'error', left(p ->> 'refused', 1000));
    insert into public.mcp_tool_calls (client_id, session_id, call_id, name, arguments, result, idempotency_key, correlation_id, created_at, finished_at)
    values (v_token.client_id, v_session.id, v_session.call_id, left(v_name, 100), '{}', v_result,
      private.mcp_call_key(v_token.id, '{}', v_now), p ->> 'correlation_id', v_now, clock_timestamp());
  else
    -- Whose tools these are is said by the token and by nothing in the request.
    v_result := public.run_agent_tool(
      (select jsonb_object_agg(e.key, e.value) from jsonb_each(p) e where e.key in ('name', 'arguments', 'renditions', 'correlation_id', 'now'))
      || jsonb_build_object('session_id', v_token.session_id, 'surface', 'mcp', 'idempotency_key', private.mcp_call_key(v_token.id, p, v_now)));
  end if;
  -- Last: whoever erases the person locks the conversation first and this row after it.
  update public.agent_tool_tokens set calls = calls + 1, last_used_at = v_now where id = v_token.id;
  return jsonb_build_object('ran', v_result);
end
$$;
comment on function public.run_mcp_tool is
  'RPC {token_hash, name?, scope?, arguments | refused, renditions?, changes?, fingerprint?, idempotency_key?, correlation_id} -> {refused: token | scope} or, without name, {scopes, tools, expires_at}, or {ran: {ok, result | error, deliveries?}}. One look at the token and the tool in one transaction.';

alter table public.agent_tool_tokens enable row level security;
drop policy if exists agent_tool_tokens_select on public.agent_tool_tokens;
create policy agent_tool_tokens_select on public.agent_tool_tokens for select to authenticated using (false);
revoke all on public.agent_tool_tokens from public, anon, authenticated;
grant select, insert, update, delete on public.agent_tool_tokens to service_role;
revoke execute on function public.issue_agent_tool_token(jsonb), public.revoke_agent_tool_tokens(jsonb), public.run_mcp_tool(jsonb),
  private.mcp_call_key(uuid, jsonb, timestamptz) from public, anon, authenticated;
grant execute on function public.issue_agent_tool_token(jsonb), public.revoke_agent_tool_tokens(jsonb), public.run_mcp_tool(jsonb),
  private.mcp_call_key(uuid, jsonb, timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121015000'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
