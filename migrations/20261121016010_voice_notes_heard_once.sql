-- 20261121016010_voice_notes_heard_once.sql
-- A copy of a voice note that comes between the moment it was heard and the one in which the conversation has its words waits, so that
-- nobody listens, and pays, a second time.
-- Safe to run again. Locks nothing. Undo: apply the two functions of 20261121012500.

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
  -- Somebody listens, or has just heard it and is about to say so to the conversation.
  if v_note.lease_token is distinct from v_token and v_note.lease_until > v_now then
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
         -- What was heard is in the conversation with the next call of its holder; a copy that asks in between would be paid for again.
         lease_token = null, lease_until = case p ->> 'outcome' when 'transcribed' then v_now + interval '20 seconds' end,
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

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121016010'::text $$;

notify pgrst, 'reload schema';
