-- 20261121012110_openai_sessions.sql
-- The model's sessions of a call: one, or several where a long call is rolled over; and what their tokens cost.
-- Safe to run again (an edited price is kept). Locks only new tables. Undo: drop both tables and the functions.
create table if not exists public.openai_sessions (
  id uuid constraint openai_sessions_pkey primary key default gen_random_uuid(),
  client_id uuid not null constraint openai_sessions_client_id_fkey references public.clients (id),
  call_id uuid not null constraint openai_sessions_call_id_fkey references public.voice_calls (id) on delete cascade,
  ordinal smallint not null default 1,
  provider_session_id text,
  model text not null,
  voice text,
  audio_format text,
  locale text,
  status text not null default 'opening',
  ended_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint openai_sessions_call_id_ordinal_key unique (call_id, ordinal),
  constraint openai_sessions_status_is_known check (status in ('opening', 'active', 'ended')),
  constraint openai_sessions_audio_format_is_known check (audio_format in ('pcma', 'pcmu', 'pcm16')),
  constraint openai_sessions_ordinal_is_positive check (ordinal > 0)
);
do $$
begin
  perform private.require_columns('public.openai_sessions', '{
    "id": "uuid", "client_id": "uuid", "call_id": "uuid", "ordinal": "smallint", "provider_session_id": "text", "model": "text", "voice": "text",
    "audio_format": "text", "locale": "text", "status": "text", "ended_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_openai_sessions_client on public.openai_sessions (client_id, created_at desc);
comment on table public.openai_sessions is 'Sessions of the Realtime API, in order within a call. No key is ever here.';
comment on column public.openai_sessions.ordinal is '1, and one more each time that a long call is rolled over.';
comment on column public.openai_sessions.provider_session_id is 'The model''s own id (sess_...), once the relay has told it.';
comment on column public.openai_sessions.voice is 'Name of the voice that was asked for.';
comment on column public.openai_sessions.audio_format is 'pcma and pcmu: G.711 passed through at 8 kHz; pcm16: linear at 24 kHz.';
comment on column public.openai_sessions.status is 'opening: asked for; active: the model said it is there; ended.';

create table if not exists public.realtime_prices (
  model text not null,
  effective_from timestamptz not null,
  currency char(3) not null default 'USD',
  audio_in numeric(12,6) not null,
  audio_cached numeric(12,6) not null,
  audio_out numeric(12,6) not null,
  text_in numeric(12,6) not null,
  text_cached numeric(12,6) not null,
  text_out numeric(12,6) not null,
  created_at timestamptz not null default now(),
  constraint realtime_prices_pkey primary key (model, effective_from)
);
do $$
begin
  perform private.require_columns('public.realtime_prices', '{
    "model": "text", "effective_from": "timestamp with time zone", "currency": "character(3)", "audio_in": "numeric(12,6)",
    "audio_cached": "numeric(12,6)", "audio_out": "numeric(12,6)", "text_in": "numeric(12,6)", "text_cached": "numeric(12,6)",
    "text_out": "numeric(12,6)", "created_at": "timestamp with time zone"}');
end
$$;
comment on table public.realtime_prices is 'List prices of the Realtime models for a million tokens; the newest row that is in force counts.';
comment on column public.realtime_prices.effective_from is 'A change of price is a new row, so that calls of before keep theirs.';
comment on column public.realtime_prices.currency is 'ISO 4217, of all prices of the row.';
comment on column public.realtime_prices.audio_in is 'For a million audio tokens of input that were not cached.';
comment on column public.realtime_prices.audio_cached is 'For a million cached audio tokens of input.';
comment on column public.realtime_prices.audio_out is 'For a million audio tokens of output.';
comment on column public.realtime_prices.text_in is 'For a million text tokens of input that were not cached.';
comment on column public.realtime_prices.text_cached is 'For a million cached text tokens of input.';
comment on column public.realtime_prices.text_out is 'For a million text tokens of output.';
-- The vendor's list of November 2026.
insert into public.realtime_prices (model, effective_from, audio_in, audio_cached, audio_out, text_in, text_cached, text_out) values
  ('gpt-realtime-2.1', '2026-01-01Z', 32, 0.40, 64, 4, 0.40, 24),
  ('gpt-realtime-2.1-mini', '2026-01-01Z', 10, 0.30, 20, 0.60, 0.06, 2.40),
  ('gpt-realtime-2', '2026-01-01Z', 32, 0.40, 64, 4, 0.40, 24),
  ('gpt-realtime-1.5', '2026-01-01Z', 32, 0.40, 64, 4, 0.40, 16),
  ('gpt-realtime', '2026-01-01Z', 32, 0.40, 64, 4, 0.40, 16),
  ('gpt-realtime-mini', '2026-01-01Z', 10, 0.30, 20, 0.60, 0.06, 2.40)
on conflict do nothing;

create or replace function private.count_of(p jsonb, p_path text[]) returns bigint
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case when jsonb_typeof(p #> p_path) = 'number' and p #>> p_path ~ '^[0-9]{1,12}$' then (p #>> p_path)::bigint else 0 end;
end
$$;
comment on function private.count_of is 'A count within JSON of a model; 0 where there is none, for a vendor may leave out what is nothing.';

create or replace function private.usage_of(p jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
declare
  v_text_cached bigint := private.count_of(p, '{input_token_details,cached_tokens_details,text_tokens}');
  v_audio_cached bigint := private.count_of(p, '{input_token_details,cached_tokens_details,audio_tokens}');
  v_text bigint := private.count_of(p, '{input_token_details,text_tokens}');
  v_audio bigint := private.count_of(p, '{input_token_details,audio_tokens}');
  v_cached bigint := private.count_of(p, '{input_token_details,cached_tokens}');
begin
  if p ? 'input_text' then
    return p;  -- already in this form
  end if;
  if v_text_cached + v_audio_cached = 0 then
    v_text_cached := least(v_cached, v_text);
    v_audio_cached := least(v_cached - v_text_cached, v_audio);
  end if;
  return jsonb_build_object('input_text', v_text, 'input_text_cached', least(v_text_cached, v_text), 'input_audio', v_audio,
    'input_audio_cached', least(v_audio_cached, v_audio), 'output_text', private.count_of(p, '{output_token_details,text_tokens}'),
    'output_audio', private.count_of(p, '{output_token_details,audio_tokens}'), 'responses', 1);
end
$$;
comment on function private.usage_of is
  'The usage of one response.done, flat. Where only a total of cached tokens is given, it is text''s first.';

create or replace function private.usage_sum(p_all jsonb[]) returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return (
    select jsonb_object_agg(k, n)
      from (select k, sum(private.count_of(private.usage_of(u), array[k])) as n
              from unnest(p_all) u,
                   unnest(array['input_text', 'input_text_cached', 'input_audio', 'input_audio_cached', 'output_text', 'output_audio', 'responses']) k
             group by k) s);
end
$$;
comment on function private.usage_sum is 'The usages of several responses as one; null where there is none.';

create or replace function private.realtime_cost(p_model text, p_usage jsonb, p_at timestamptz, out cost numeric, out currency char(3))
language plpgsql stable set search_path = '' as $$
declare
  v_usage jsonb := private.usage_of(p_usage);
  v_count record;
begin
  select private.count_of(v_usage, '{input_text}') as text_in, private.count_of(v_usage, '{input_text_cached}') as text_cached,
         private.count_of(v_usage, '{input_audio}') as audio_in, private.count_of(v_usage, '{input_audio_cached}') as audio_cached,
         private.count_of(v_usage, '{output_text}') as text_out, private.count_of(v_usage, '{output_audio}') as audio_out
    into v_count;
  select round(((v_count.text_in - v_count.text_cached) * r.text_in + v_count.text_cached * r.text_cached
              + (v_count.audio_in - v_count.audio_cached) * r.audio_in + v_count.audio_cached * r.audio_cached
              + v_count.text_out * r.text_out + v_count.audio_out * r.audio_out) / 1000000, 6), r.currency
    into cost, currency
    from public.realtime_prices r
   where r.model = p_model and r.effective_from <= p_at and p_usage is not null
   order by r.effective_from desc limit 1;
end
$$;
comment on function private.realtime_cost is 'What this usage of a model costs at the prices of a time; nulls where the model has no price.';

drop trigger if exists openai_sessions_touch on public.openai_sessions;
create trigger openai_sessions_touch before update on public.openai_sessions for each row execute function private.touch_updated_at();
alter table public.openai_sessions enable row level security;
alter table public.realtime_prices enable row level security;
drop policy if exists openai_sessions_select on public.openai_sessions;
create policy openai_sessions_select on public.openai_sessions for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
drop policy if exists realtime_prices_select on public.realtime_prices;
create policy realtime_prices_select on public.realtime_prices for select to authenticated using (false);
revoke all on public.openai_sessions, public.realtime_prices from public, anon, authenticated;
grant select on public.openai_sessions to authenticated;
grant select, insert, update, delete on public.openai_sessions, public.realtime_prices to service_role;
revoke execute on function private.count_of(jsonb, text[]), private.usage_of(jsonb), private.usage_sum(jsonb[]),
  private.realtime_cost(text, jsonb, timestamptz) from public, anon, authenticated;
grant execute on function private.count_of(jsonb, text[]), private.usage_of(jsonb), private.usage_sum(jsonb[]),
  private.realtime_cost(text, jsonb, timestamptz) to service_role;
