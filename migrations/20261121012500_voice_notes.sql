-- 20261121012500_voice_notes.sql
-- Voice notes of WhatsApp: each is listened to once, whoever brings it and however often, and its cost is kept.
-- Safe to run again. Locks no table of before. Undo: drop the functions and the tables.

create table if not exists public.transcription_prices (
  model text not null,
  effective_from timestamptz not null,
  currency char(3) not null default 'USD',
  per_second numeric(12,9) not null,
  created_at timestamptz not null default now(),
  constraint transcription_prices_pkey primary key (model, effective_from),
  constraint transcription_prices_are_not_negative check (per_second >= 0)
);
do $$
begin
  perform private.require_columns('public.transcription_prices', '{
    "model": "text", "effective_from": "timestamp with time zone", "currency": "character(3)", "per_second": "numeric(12,9)",
    "created_at": "timestamp with time zone"}');
end
$$;
comment on table public.transcription_prices is 'List prices of transcription models for a second of audio; the newest row that is in force counts.';
comment on column public.transcription_prices.effective_from is 'A change of price is a new row, so that notes of before keep theirs.';
comment on column public.transcription_prices.currency is 'ISO 4217.';
comment on column public.transcription_prices.per_second is 'For a second of audio.';
-- The vendor's list of November 2026.
insert into public.transcription_prices (model, effective_from, per_second) values ('gpt-transcribe', '2026-01-01Z', 0.000075) on conflict do nothing;

create table if not exists public.voice_notes (
  id uuid not null default gen_random_uuid(),
  client_id uuid not null references public.clients (id),
  message_key text not null,
  status text not null default 'pending',
  attempts smallint not null default 0,
  lease_token uuid,
  lease_until timestamptz,
  mime_type text,
  seconds integer,
  model text,
  cost numeric(14,9),
  cost_currency char(3),
  error_class text,
  error_reason text,
  correlation_id text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint voice_notes_pkey primary key (id),
  constraint voice_notes_message_key_key unique (message_key),
  constraint voice_notes_status_is_known check (status in ('pending', 'transcribed', 'failed')),
  constraint voice_notes_cost_has_a_currency check ((cost is null) = (cost_currency is null))
);
do $$
begin
  perform private.require_columns('public.voice_notes', '{
    "id": "uuid", "client_id": "uuid", "message_key": "text", "status": "text", "attempts": "smallint", "lease_token": "uuid",
    "lease_until": "timestamp with time zone", "mime_type": "text", "seconds": "integer", "model": "text", "cost": "numeric(14,9)",
    "cost_currency": "character(3)", "error_class": "text", "error_reason": "text", "correlation_id": "text",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_voice_notes_client on public.voice_notes (client_id, created_at desc);
comment on table public.voice_notes is
  'Voice notes and what listening to them cost. The words are in conversation_messages alone; nothing here names a person, so nothing is erased.';
comment on column public.voice_notes.message_key is 'SHA-256 of provider and message id in hex: the id itself spells the number.';
comment on column public.voice_notes.status is 'pending: somebody listens, or will; transcribed; failed: the conversation went on without the words.';
comment on column public.voice_notes.attempts is 'How often somebody began to listen.';
comment on column public.voice_notes.lease_token is 'Of the consumer that listens now.';
comment on column public.voice_notes.lease_until is 'When that consumer counts as gone.';
comment on column public.voice_notes.mime_type is 'As Meta named it.';
comment on column public.voice_notes.seconds is 'Length that the model charged for in whole seconds, all attempts together.';
comment on column public.voice_notes.model is 'That listened last.';
comment on column public.voice_notes.cost is 'Of the model, by transcription_prices; null: nothing was charged, or the model has no price.';
comment on column public.voice_notes.cost_currency is 'ISO 4217.';
comment on column public.voice_notes.error_class is 'Of the last attempt that failed.';
comment on column public.voice_notes.error_reason is 'Of the last attempt that failed, a code.';
comment on column public.voice_notes.correlation_id is 'Thread through logs and tables.';
drop trigger if exists voice_notes_touch on public.voice_notes;
create trigger voice_notes_touch before update on public.voice_notes for each row execute function private.touch_updated_at();

create or replace function private.voice_note_key(p jsonb) returns text
language sql immutable set search_path = '' as $$
  select encode(sha256(convert_to(private.required(p, 'provider') || ':' || private.required(p, 'provider_message_id'), 'UTF8')), 'hex')
$$;
comment on function private.voice_note_key is 'The message_key of {provider, provider_message_id}.';

create or replace function public.begin_voice_note(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_note public.voice_notes;
  v_gate jsonb;
begin
  -- The conversation has it: this is a copy, or its holder was slow to say that it is done.
  if exists (select from public.conversation_messages m
              where m.direction = 'inbound' and m.provider = p ->> 'provider' and m.provider_message_id = p ->> 'provider_message_id') then
    return jsonb_build_object('decision', 'known');
  end if;
  insert into public.voice_notes (client_id, message_key, mime_type, correlation_id)
  values (private.client_of_address('whatsapp', p ->> 'to'), private.voice_note_key(p), left(p ->> 'mime_type', 100), p ->> 'correlation_id')
  on conflict (message_key) do nothing;
  select * into strict v_note from public.voice_notes where message_key = private.voice_note_key(p) for no key update;
  if v_note.status = 'failed' or v_note.attempts >= coalesce((p ->> 'most_attempts')::integer, 3) and v_note.lease_token is distinct from v_token then
    if v_note.lease_until > v_now then
      return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_note.lease_until, v_now));
    end if;
    update public.voice_notes set status = 'failed', lease_token = null, lease_until = null where id = v_note.id and status = 'pending';
    return jsonb_build_object('decision', 'given_up', 'attempts', v_note.attempts);
  end if;
  if v_note.lease_token <> v_token and v_note.lease_until > v_now then
    return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_note.lease_until, v_now));
  end if;
  v_gate := private.provider_gate('openai', true, v_token, v_now);
  if v_gate ->> 'gate' = 'open' then
    return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until((v_gate ->> 'open_until')::timestamptz, v_now));
  end if;
  update public.voice_notes
     set status = 'pending', lease_token = v_token, lease_until = v_now + v_lease,
         attempts = attempts + case when lease_token is distinct from v_token then 1 else 0 end
   where id = v_note.id
  returning * into v_note;
  return jsonb_build_object('decision', 'go', 'attempts', v_note.attempts);
end
$$;
comment on function public.begin_voice_note is
  'RPC {provider, provider_message_id, to, mime_type, lease_token, correlation_id} -> {decision, attempts?, retry_after_s?}. go: listen; known: the conversation has the message; busy: somebody listens, or the model has a pause; given_up: go on without the words.';

create or replace function public.finish_voice_note(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_seconds integer := case when p #>> '{usage,seconds}' ~ '^[0-9]{1,6}([.][0-9]{1,20})?$' then ceil((p #>> '{usage,seconds}')::numeric) end;
  v_price public.transcription_prices;
begin
  if private.required(p, 'outcome') not in ('transcribed', 'failed', 'again') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', p ->> 'outcome');
  end if;
  select * into v_price from public.transcription_prices
   where model = p ->> 'model' and effective_from <= v_now order by effective_from desc limit 1;
  update public.voice_notes n
     set status = case p ->> 'outcome' when 'again' then 'pending' else p ->> 'outcome' end,
         lease_token = null, lease_until = null,
         seconds = coalesce(n.seconds + v_seconds, v_seconds, n.seconds), model = coalesce(p ->> 'model', n.model),
         cost = coalesce(n.cost + v_seconds * v_price.per_second, v_seconds * v_price.per_second, n.cost),
         cost_currency = case when v_seconds is not null and v_price.model is not null then v_price.currency else n.cost_currency end,
         error_class = coalesce(p ->> 'error_class', n.error_class), error_reason = coalesce(p ->> 'error_reason', n.error_reason)
   where n.message_key = private.voice_note_key(p) and n.lease_token = v_token;
  perform private.note_provider_calls(p -> 'providers', v_token, v_now);
  perform private.release_probes(v_token);
  return '{}';
end
$$;
comment on function public.finish_voice_note is
  'RPC {provider, provider_message_id, lease_token, outcome, model?, usage?, error_class?, error_reason?, providers?}: what came of listening. again: it failed for now.';

alter table public.transcription_prices enable row level security;
alter table public.voice_notes enable row level security;
drop policy if exists transcription_prices_select on public.transcription_prices;
create policy transcription_prices_select on public.transcription_prices for select to authenticated using (false);
drop policy if exists voice_notes_select on public.voice_notes;
create policy voice_notes_select on public.voice_notes for select to authenticated using (client_id in (select private.my_client_ids()));
revoke all on public.transcription_prices, public.voice_notes from public, anon, authenticated;
grant select on public.voice_notes to authenticated;
grant select, insert, update, delete on public.transcription_prices, public.voice_notes to service_role;
revoke execute on function private.voice_note_key(jsonb), public.begin_voice_note(jsonb), public.finish_voice_note(jsonb) from public, anon, authenticated;
grant execute on function private.voice_note_key(jsonb), public.begin_voice_note(jsonb), public.finish_voice_note(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012500'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
