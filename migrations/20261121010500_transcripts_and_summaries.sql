-- 20261121010500_transcripts_and_summaries.sql
-- What was said in a call, turn by turn, and the one summary of it.
-- Safe to run again. Locks only new tables. Undo: drop both tables.
create table if not exists public.transcripts (
  id uuid constraint transcripts_pkey primary key default gen_random_uuid(),
  client_id uuid not null default private.default_client_id() constraint transcripts_client_id_fkey references public.clients (id),
  call_id uuid not null constraint transcripts_call_id_fkey references public.voice_calls (id) on delete cascade,
  seq integer not null,
  role text not null,
  text text not null,
  language text,
  start_ms integer,
  end_ms integer,
  created_at timestamptz not null default now(),
  constraint transcripts_call_id_seq_key unique (call_id, seq),
  constraint transcripts_role_is_known check (role in ('user', 'assistant', 'system'))
);
do $$
begin
  perform private.require_columns('public.transcripts', '{
    "id": "uuid", "client_id": "uuid", "call_id": "uuid", "seq": "integer", "role": "text", "text": "text", "language": "text",
    "start_ms": "integer", "end_ms": "integer", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_transcripts_client on public.transcripts (client_id);
comment on table public.transcripts is 'One turn of speech a row.';
comment on column public.transcripts.seq is 'Order within the call.';
comment on column public.transcripts.start_ms is 'Milliseconds since the call was answered.';
comment on column public.transcripts.end_ms is 'Milliseconds since the call was answered.';

create table if not exists public.call_summaries (
  id uuid constraint call_summaries_pkey primary key default gen_random_uuid(),
  client_id uuid not null default private.default_client_id() constraint call_summaries_client_id_fkey references public.clients (id),
  call_id uuid not null constraint call_summaries_call_id_key unique constraint call_summaries_call_id_fkey references public.voice_calls (id) on delete cascade,
  language text,
  headline text not null,
  points jsonb not null default '[]',
  next_step text,
  intent text,
  source text not null default 'database',
  model text,
  usage jsonb,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint call_summaries_points_is_array check (jsonb_typeof(points) = 'array'),
  constraint call_summaries_source_is_known check (source in ('database', 'model', 'facts'))
);
do $$
begin
  perform private.require_columns('public.call_summaries', '{
    "id": "uuid", "client_id": "uuid", "call_id": "uuid", "language": "text", "headline": "text", "points": "jsonb", "next_step": "text",
    "intent": "text", "source": "text", "model": "text", "usage": "jsonb", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_call_summaries_client on public.call_summaries (client_id);
comment on table public.call_summaries is 'The summary of a call, one a call; written by the voice side, or made from the transcript when it is missing.';
comment on column public.call_summaries.source is 'database: written by the voice side; model: made from the transcript; facts: only what the call record says.';
comment on column public.call_summaries.usage is 'Tokens that the model reported.';
comment on column public.call_summaries.points is 'Array of texts, the most important first.';
comment on column public.call_summaries.intent is 'What the call was about, in a word or two; the session takes it over.';

create or replace function private.transcript_tail(p_call_id uuid, p_characters integer) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object(
             'role', t.role, 'text', left(t.text, p_characters - t.before::integer), 'language', t.language) order by t.seq), '[]')
      from (
        select seq, role, text, language, sum(length(text)) over (order by seq desc) - length(text) as before
          from public.transcripts
         where call_id = p_call_id and role in ('user', 'assistant')
      ) t
     where t.before < p_characters);
end
$$;
comment on function private.transcript_tail is 'The newest turns of a call that fit into so many characters, in the order they were spoken.';

drop trigger if exists call_summaries_touch on public.call_summaries;
create trigger call_summaries_touch before update on public.call_summaries for each row execute function private.touch_updated_at();

alter table public.transcripts enable row level security;
alter table public.call_summaries enable row level security;
drop policy if exists transcripts_select on public.transcripts;
create policy transcripts_select on public.transcripts for select to authenticated
  using (client_id in (select private.my_client_ids())
    or exists (select from public.voice_calls c where c.id = transcripts.call_id and c.profile_id in (select private.my_profile_ids())));
drop policy if exists call_summaries_select on public.call_summaries;
create policy call_summaries_select on public.call_summaries for select to authenticated
  using (client_id in (select private.my_client_ids())
    or exists (select from public.voice_calls c where c.id = call_summaries.call_id and c.profile_id in (select private.my_profile_ids())));
revoke all on public.transcripts, public.call_summaries from public, anon, authenticated;
grant select on public.transcripts, public.call_summaries to authenticated;
grant select, insert, update, delete on public.transcripts, public.call_summaries to service_role;
revoke execute on function private.transcript_tail(uuid, integer) from public, anon, authenticated;
grant execute on function private.transcript_tail(uuid, integer) to service_role;
