-- 20261121011200_mcp_tool_calls.sql
-- What agents did: one row a tool call, by idempotency key.
-- Safe to run again. Locks only a new table. Undo: drop table public.mcp_tool_calls.
create table if not exists public.mcp_tool_calls (
  id uuid constraint mcp_tool_calls_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint mcp_tool_calls_client_id_fkey references public.clients (id),
  session_id uuid constraint mcp_tool_calls_session_id_fkey references public.omnichannel_sessions (id) on delete cascade,
  turn_id uuid constraint mcp_tool_calls_turn_id_fkey references public.conversation_turns (id) on delete set null,
  call_id uuid constraint mcp_tool_calls_call_id_fkey references public.voice_calls (id) on delete cascade,
  name text not null,
  arguments jsonb not null default '{}',
  result jsonb,
  idempotency_key text not null constraint mcp_tool_calls_idempotency_key_key unique,
  correlation_id text,
  created_at timestamptz not null default now()
);
do $$
begin
  perform private.require_columns('public.mcp_tool_calls', '{
    "id": "uuid", "client_id": "uuid", "session_id": "uuid", "turn_id": "uuid", "call_id": "uuid", "name": "text", "arguments": "jsonb",
    "result": "jsonb", "idempotency_key": "text", "correlation_id": "text", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_mcp_tool_calls_client on public.mcp_tool_calls (client_id, created_at desc);
create index if not exists idx_mcp_tool_calls_session on public.mcp_tool_calls (session_id) where session_id is not null;
create index if not exists idx_mcp_tool_calls_turn on public.mcp_tool_calls (turn_id) where turn_id is not null;
create index if not exists idx_mcp_tool_calls_call on public.mcp_tool_calls (call_id) where call_id is not null;
comment on table public.mcp_tool_calls is 'Tool calls of agents, in voice and in text, with what they answered.';
comment on column public.mcp_tool_calls.result is 'The whole answer {ok, result | error}; the same key gets it again.';
comment on column public.mcp_tool_calls.arguments is 'As the model gave them.';
comment on column public.mcp_tool_calls.idempotency_key is 'Of the model''s call; the same key acts once.';

alter table public.mcp_tool_calls enable row level security;
drop policy if exists mcp_tool_calls_select on public.mcp_tool_calls;
create policy mcp_tool_calls_select on public.mcp_tool_calls for select to authenticated
  using (client_id in (select private.my_client_ids()));
revoke all on public.mcp_tool_calls from public, anon, authenticated;
grant select on public.mcp_tool_calls to authenticated;
grant select, insert, update, delete on public.mcp_tool_calls to service_role;
