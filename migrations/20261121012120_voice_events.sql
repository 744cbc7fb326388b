-- 20261121012120_voice_events.sql
-- Everything that happened in a call, in the relay's own order; and what transcripts and tool calls lacked for a call.
-- Safe to run again. Locks transcripts and mcp_tool_calls briefly. Undo: drop the table and the columns added here.
create table if not exists public.voice_events (
  id uuid constraint voice_events_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint voice_events_client_id_fkey references public.clients (id),
  call_id uuid not null constraint voice_events_call_id_fkey references public.voice_calls (id) on delete cascade,
  seq integer not null,
  type text not null,
  occurred_at timestamptz not null,
  payload jsonb not null default '{}',
  correlation_id text,
  created_at timestamptz not null default now(),
  constraint voice_events_call_id_seq_key unique (call_id, seq),
  constraint voice_events_seq_is_positive check (seq > 0),
  constraint voice_events_type_is_a_name check (type ~ '^[a-z][a-z0-9_.]{0,79}$'),
  constraint voice_events_payload_is_object check (jsonb_typeof(payload) = 'object')
);
do $$
begin
  perform private.require_columns('public.voice_events', '{
    "id": "uuid", "client_id": "uuid", "call_id": "uuid", "seq": "integer", "type": "text", "occurred_at": "timestamp with time zone",
    "payload": "jsonb", "correlation_id": "text", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_voice_events_client on public.voice_events (client_id, created_at desc);
comment on table public.voice_events is 'What happened in a call, one row an event; the same (call, seq) is kept once.';
comment on column public.voice_events.seq is 'Order within the call, from 1 without gaps; the relay counts.';
comment on column public.voice_events.type is 'transcript, response.done, session.created, language, consent, and whatever else the relay tells.';
comment on column public.voice_events.occurred_at is 'The relay''s clock; one that runs ahead of ours is not believed.';
comment on column public.voice_events.payload is 'The event without seq, type and time.';

alter table public.transcripts add column if not exists language_source text;
alter table public.transcripts add column if not exists interrupted boolean not null default false;
alter table public.transcripts add column if not exists item_id text;
alter table public.mcp_tool_calls add column if not exists tool_call_id text;
alter table public.mcp_tool_calls add column if not exists finished_at timestamptz;
do $$
begin
  perform private.require_columns('public.transcripts', '{"language_source": "text", "interrupted": "boolean", "item_id": "text"}');
  perform private.require_columns('public.mcp_tool_calls', '{"tool_call_id": "text", "finished_at": "timestamp with time zone"}');
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.transcripts'::regclass and conname = 'transcripts_language_source_is_known') then
    alter table public.transcripts add constraint transcripts_language_source_is_known
      check (language_source in ('transcription', 'detected', 'caller', 'call'));
  end if;
end
$$;
comment on column public.transcripts.language is 'en, fr, rw, sw, or another tag as the transcription gave it.';
comment on column public.transcripts.language_source is
  'How the language is known: transcription: the recogniser said; detected: from the words; caller: they asked for it; call: taken over from the call.';
comment on column public.transcripts.interrupted is 'The caller spoke into it: text is what was heard of it.';
comment on column public.transcripts.item_id is 'The model''s id of the turn.';
comment on column public.mcp_tool_calls.tool_call_id is 'The model''s own id of the call, in voice.';
comment on column public.mcp_tool_calls.finished_at is 'When the tool had answered.';

alter table public.voice_events enable row level security;
drop policy if exists voice_events_select on public.voice_events;
create policy voice_events_select on public.voice_events for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
revoke all on public.voice_events from public, anon, authenticated;
grant select on public.voice_events to authenticated;
grant select, insert, update, delete on public.voice_events to service_role;
