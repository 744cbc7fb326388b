-- 20261121011300_delivery_rules.sql
-- How attempts and status events become the state of a delivery: fold, orphans, fallback, evidence.
-- Order of locks everywhere: session -> claim -> delivery (first its advisory lock, then its row) -> profile -> provider_health, alerts.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function private.delivery_status_rank(p_status text) returns smallint
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case p_status
    when 'queued' then 0 when 'sending' then 1 when 'unknown' then 2 when 'sent' then 3
    when 'failed' then 4 when 'undeliverable' then 4 when 'expired' then 4 when 'suppressed' then 4
    when 'delivered' then 5 when 'read' then 6 end::smallint;
end
$$;
comment on function private.delivery_status_rank is
  'The highest rank wins; within one rank the earliest occurred_at, then the name. The same in any order and under any repetition.';

create or replace function private.refold_delivery(p_id uuid) returns text
language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_fold record;
  v_error record;
begin
  -- The lock first, in a statement of its own: the next one then sees every event of whoever held it before.
  select * into v_row from public.message_delivery_log where id = p_id for no key update;
  if not found then
    return null;
  end if;
  select
    (array_agg(e.status order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.status))[1] as status,
    (array_agg(e.occurred_at order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.status))[1] as status_at,
    (array_agg(e.error_code order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.error_code)
      filter (where e.error_code is not null))[1] as error_code,
    (array_agg(e.error_class order by private.delivery_status_rank(e.status) desc, e.occurred_at, e.error_code)
      filter (where e.error_code is not null))[1] as error_class,
    (array_agg(e.pricing order by e.occurred_at, e.id) filter (where e.pricing is not null))[1] as pricing,
    min(e.occurred_at) filter (where e.status = 'queued') as queued_at,
    min(e.occurred_at) filter (where e.status = 'sending') as sending_at,
    min(e.occurred_at) filter (where e.status = 'unknown') as unknown_at,
    min(e.occurred_at) filter (where e.status = 'sent') as sent_at,
    min(e.occurred_at) filter (where e.status = 'delivered') as delivered_at,
    min(e.occurred_at) filter (where e.status = 'read') as read_at,
    min(e.occurred_at) filter (where e.status in ('failed', 'undeliverable')) as failed_at,
    min(e.occurred_at) filter (where e.status = 'expired') as expired_at
    into v_fold
    from public.message_status_events e
   where e.delivery_id = p_id;
  if v_fold.status is null then
    return v_row.status;
  end if;
  if v_fold.error_code is null then
    select a.error_code, a.error_class into v_error
      from public.message_delivery_attempts a
     where a.delivery_id = p_id and a.error_class is not null
     order by a.attempt desc limit 1;
  else
    select v_fold.error_code as error_code, v_fold.error_class as error_class into v_error;
  end if;
  update public.message_delivery_log l
     set status = v_fold.status,
         status_at = v_fold.status_at,
         queued_at = coalesce(v_fold.queued_at, l.queued_at),
         sending_at = coalesce(v_fold.sending_at, l.sending_at),
         unknown_at = coalesce(v_fold.unknown_at, l.unknown_at),
         sent_at = coalesce(v_fold.sent_at, l.sent_at),
         delivered_at = coalesce(v_fold.delivered_at, l.delivered_at),
         read_at = coalesce(v_fold.read_at, l.read_at),
         failed_at = coalesce(v_fold.failed_at, l.failed_at),
         expired_at = coalesce(v_fold.expired_at, l.expired_at),
         error_code = coalesce(v_error.error_code, l.error_code),
         error_class = coalesce(v_error.error_class, l.error_class),
         pricing = coalesce(v_fold.pricing, l.pricing),
         -- Sent, failed or beyond: nobody needs to look again.
         next_attempt_at = case when private.delivery_status_rank(v_fold.status) < 3 then l.next_attempt_at end
   where l.id = p_id;
  return v_fold.status;
end
$$;
comment on function private.refold_delivery is 'Folds the status events of a delivery into its row; the status. Locks the row.';

create or replace function private.add_own_event(
  p_delivery_id uuid, p_status text, p_at timestamptz, p_correlation_id text,
  p_error_code text default null, p_error_class text default null, p_evidence text default null
) returns void language plpgsql set search_path = '' as $$
begin
  insert into public.message_status_events
    (delivery_id, delivery_ref, source, status, occurred_at, error_code, error_class, evidence, correlation_id, dedupe_key)
  values (p_delivery_id, p_delivery_id::text, 'own', p_status, p_at, p_error_code, p_error_class, p_evidence, p_correlation_id,
    'own:' || p_delivery_id || ':' || p_status)
  on conflict (dedupe_key) do nothing;
end
$$;
comment on function private.add_own_event is 'A transition that we ourselves know of; each status at most once a delivery.';

create or replace function private.lock_refs(p_refs text[]) returns void
language plpgsql set search_path = '' as $$
declare
  v_key bigint;
begin
  for v_key in select distinct hashtextextended(r, 20261121) from unnest(p_refs) r where r is not null order by 1 loop
    perform pg_advisory_xact_lock(v_key);
  end loop;
end
$$;
comment on function private.lock_refs is
  'Serialises a report that finds no delivery with the transaction that is just writing it, so that no orphan is overlooked. Sorted: no deadlock.';

create or replace function private.join_orphans(p_id uuid) returns void
language plpgsql set search_path = '' as $$
begin
  update public.message_status_events e set delivery_id = p_id
   where e.delivery_id is null and e.delivery_ref = p_id::text;
  -- A report that names us may name the provider's id as well, before the answer to our request does, or when that was lost.
  perform private.set_provider_ids(p_id, (
    select e.provider_message_id from public.message_status_events e
      join public.message_delivery_log l on l.id = e.delivery_id and l.provider = e.provider
     where e.delivery_id = p_id and e.source = 'provider' and e.provider_message_id is not null order by e.id limit 1), null);
  update public.message_status_events e set delivery_id = p_id
    from public.message_delivery_log l
   where l.id = p_id and l.provider_message_id is not null and l.direction = 'outbound'
     and e.delivery_id is null and e.provider = l.provider
     and e.provider_message_key = any (private.provider_message_keys(l.provider_message_id));
end
$$;
comment on function private.join_orphans is 'Gives a delivery the reports that came before it, and the provider''s id where only they name it.';

create or replace function private.set_provider_ids(p_id uuid, p_provider_message_id text, p_provider_request_id text) returns void
language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
begin
  select * into v_row from public.message_delivery_log where id = p_id;
  -- A provider that gives one id to two messages must not cost us the result of the second.
  if p_provider_message_id is not null and v_row.provider_message_id is null and exists (
       select from public.message_delivery_log l
        where l.provider = v_row.provider and l.direction = v_row.direction and l.provider_message_id = p_provider_message_id) then
    p_provider_message_id := null;
  end if;
  update public.message_delivery_log
     set provider_message_id = coalesce(provider_message_id, p_provider_message_id),
         provider_request_id = coalesce(p_provider_request_id, provider_request_id)
   where id = p_id
     and ((provider_message_id is null and p_provider_message_id is not null)
       or (p_provider_request_id is not null and p_provider_request_id is distinct from provider_request_id));
end
$$;
comment on function private.set_provider_ids is 'Notes the ids a provider gave; an id that another message already has stays in the attempt only.';

create or replace function private.apply_attempt(
  p_id uuid, p_attempt jsonb, p_lease_token uuid, p_correlation_id text, p_now timestamptz, p_possible_duplicate boolean
) returns boolean language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_outcome text := private.required(p_attempt, 'outcome');
  v_number smallint := coalesce((p_attempt ->> 'attempt')::smallint, 1);
  v_at timestamptz := coalesce((p_attempt ->> 'finished_at')::timestamptz, p_now);
  v_started timestamptz := coalesce((p_attempt ->> 'started_at')::timestamptz, (p_attempt ->> 'finished_at')::timestamptz, p_now);
  v_next timestamptz := (p_attempt ->> 'next_attempt_at')::timestamptz;
  v_code text := p_attempt ->> 'error_code';
  v_reason text := p_attempt ->> 'error_reason';
  v_evidence text := p_attempt ->> 'evidence';
  v_class text;
  v_status text;
begin
  if v_outcome not in ('accepted', 'retryable', 'permanent', 'config', 'bug', 'unknown', 'suppressed', 'deferred') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', v_outcome);
  end if;
  select * into strict v_row from public.message_delivery_log where id = p_id for no key update;
  v_class := case when v_outcome in ('retryable', 'permanent', 'config', 'bug', 'unknown') then v_outcome end;

  if v_outcome in ('suppressed', 'deferred') then
    -- Not tried: no attempt row. A repeat after the row moved on must change nothing.
    if v_row.last_outcome is not null and v_row.lease_token is distinct from p_lease_token then
      return false;
    end if;
  else
    insert into public.message_delivery_attempts
      (delivery_id, attempt, provider, outcome, error_class, error_code, error_reason, http_status, provider_message_id, provider_request_id,
       retry_after_s, next_attempt_at, possible_duplicate, counts, started_at, finished_at, duration_ms, lease_token, correlation_id, created_at)
    values
      (p_id, v_number, coalesce(v_row.provider, 'none'), v_outcome, v_class, v_code, v_reason, (p_attempt ->> 'http_status')::smallint,
       p_attempt ->> 'provider_message_id', p_attempt ->> 'provider_request_id', (p_attempt ->> 'retry_after_s')::numeric::integer, v_next,
       p_possible_duplicate or v_row.possible_duplicate,
       v_outcome in ('accepted', 'retryable', 'unknown') and coalesce((p_attempt ->> 'breaker')::boolean, true),
       v_started, v_at, (p_attempt ->> 'duration_ms')::numeric::integer, p_lease_token, p_correlation_id, p_now)
    on conflict (delivery_id, attempt) do nothing;
    if not found then
      return false;
    end if;
    perform private.set_provider_ids(p_id, p_attempt ->> 'provider_message_id', p_attempt ->> 'provider_request_id');
  end if;

  if v_outcome in ('accepted', 'retryable', 'permanent', 'bug', 'unknown') then
    perform private.add_own_event(p_id, 'sending', v_started, p_correlation_id);
  end if;
  case v_outcome
    when 'accepted' then
      v_status := 'sent';
      v_next := null;
    when 'retryable' then
      if v_next is null or v_next >= coalesce(v_row.deadline_at, 'infinity') then
        v_status := 'expired';
        v_next := null;
      end if;
    when 'unknown' then
      v_status := 'unknown';
      -- One resend at most may arrive twice; after it there is nothing left to try.
      v_next := case when not v_row.possible_duplicate then coalesce(v_next, v_at + make_interval(secs => v_row.unknown_wait_seconds)) end;
    when 'config' then
      v_next := least(p_now + interval '15 minutes', coalesce(v_row.deadline_at, 'infinity'));
    when 'permanent' then
      v_status := case when v_evidence in ('not_on_whatsapp', 'opted_out', 'invalid_number') then 'undeliverable' else 'failed' end;
      v_next := null;
    when 'bug' then
      v_status := 'failed';
      v_next := null;
    when 'suppressed' then
      v_status := 'suppressed';
      v_next := null;
    when 'deferred' then
      v_next := coalesce(v_next, p_now + interval '30 seconds');
  end case;
  if v_status is not null then
    perform private.add_own_event(p_id, v_status, v_at, p_correlation_id, v_code, v_class, v_evidence);
  end if;
  update public.message_delivery_log l
     set attempts = case when v_outcome = 'suppressed' then l.attempts
                         when v_outcome = 'deferred' then greatest(l.attempts - case when l.lease_token = p_lease_token then 1 else 0 end, 0)
                         else greatest(l.attempts, v_number) end,
         last_outcome = v_outcome,
         next_attempt_at = v_next,
         possible_duplicate = l.possible_duplicate or p_possible_duplicate,
         suppress_reason = case when v_outcome = 'suppressed' then coalesce(v_reason, 'unspecified') else l.suppress_reason end,
         error_code = coalesce(v_code, l.error_code),
         error_class = coalesce(v_class, l.error_class),
         lease_token = case when l.lease_token = p_lease_token then null else l.lease_token end,
         lease_until = case when l.lease_token = p_lease_token then null else l.lease_until end
   where l.id = p_id;
  return true;
end
$$;
comment on function private.apply_attempt is
  'Records one attempt and what follows from its outcome; true when it was new. The caller folds (private.refold_delivery) afterwards.';

create or replace function private.create_fallback(p_id uuid, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_profile public.profiles;
  v_rendition jsonb;
  v_phone text;
  v_other text;
  v_id uuid;
  v_status text;
begin
  select * into v_row from public.message_delivery_log where id = p_id;
  select id, status into v_id, v_status from public.message_delivery_log where fallback_of = p_id;
  if found then
    return case when v_status = 'queued' then jsonb_build_object('id', v_id, 'channel', case v_row.channel when 'sms' then 'whatsapp' else 'sms' end) end;
  end if;
  v_other := case v_row.channel when 'whatsapp' then 'sms' when 'sms' then 'whatsapp' end;
  if v_other is null or v_row.direction <> 'outbound' or v_row.message_id is null or v_row.purpose = 'keyword'
     or v_row.deadline_at <= p_now then
    return null;
  end if;
  -- The other channel was tried, or something of the same message still carries it.
  if exists (
    select from public.message_delivery_log s
     where s.message_id = v_row.message_id and s.id <> p_id
       and (s.channel = v_other or s.status in ('sent', 'delivered', 'read', 'sending', 'queued', 'unknown'))
  ) then
    return null;
  end if;
  select m.renditions -> v_other into v_rendition from public.conversation_messages m where m.id = v_row.message_id;
  select * into v_profile from public.profiles where id = v_row.profile_id;
  if not found or v_rendition is null or jsonb_typeof(v_rendition) <> 'object' then
    return null;
  end if;
  -- The number this work was for, which need not be the profile's first.
  v_phone := case when private.is_e164(v_row.recipient) then v_row.recipient else v_profile.phone_number end;
  if v_other = 'sms' and (not v_profile.allows_sms or v_phone is null) then
    return null;
  end if;
  if v_other = 'whatsapp'
     and private.whatsapp_evidence(v_profile.has_whatsapp, v_profile.has_whatsapp_source, v_profile.has_whatsapp_at, p_now) = 'no' then
    return null;
  end if;
  insert into public.message_delivery_log
    (client_id, session_id, profile_id, call_id, message_id, turn_id, direction, channel, purpose, status, status_at, provider, correlation_id,
     recipient, sender, content, payload, encoding, segments, next_attempt_at, deadline_at, unknown_wait_seconds, fallback_of,
     idempotency_key, queued_at)
  select v_row.client_id, v_row.session_id, v_row.profile_id, v_row.call_id, v_row.message_id, v_row.turn_id, 'outbound', v_other, v_row.purpose,
         'queued', p_now, case v_other when 'sms' then coalesce(c.settings ->> 'sms_provider', 'mtn') else 'whatsapp' end, v_row.correlation_id,
         coalesce(v_phone, v_row.recipient), case v_other when 'sms' then c.sms_sender_id end,
         coalesce(v_rendition ->> 'text', v_row.content), v_rendition, v_rendition ->> 'encoding', (v_rendition ->> 'segments')::smallint,
         p_now, v_row.deadline_at, v_row.unknown_wait_seconds, p_id, 'fallback:' || p_id, p_now
    from public.clients c where c.id = v_row.client_id
  on conflict (idempotency_key) do nothing
  returning id into v_id;
  if v_id is null then
    return null;
  end if;
  perform private.add_own_event(v_id, 'queued', p_now, v_row.correlation_id);
  return jsonb_build_object('id', v_id, 'channel', v_other);
end
$$;
comment on function private.create_fallback is
  'A delivery failed for good: queues the same message on the other channel, due now, if it was not tried and can be; {id, channel} or null.';

create or replace function private.apply_evidence(p_id uuid) returns void
language plpgsql set search_path = '' as $$
declare
  v_profile_id uuid;
  v_channel text;
  v_yes timestamptz;
  v_no timestamptz;
  v_opted_out timestamptz;
begin
  select l.profile_id, l.channel,
         max(e.occurred_at) filter (where l.channel = 'whatsapp' and e.source = 'provider' and e.status in ('delivered', 'read')),
         max(e.occurred_at) filter (where e.evidence = 'not_on_whatsapp'),
         max(e.occurred_at) filter (where e.evidence = 'opted_out')
    into v_profile_id, v_channel, v_yes, v_no, v_opted_out
    from public.message_delivery_log l join public.message_status_events e on e.delivery_id = l.id
   where l.id = p_id
   group by l.id;
  if v_profile_id is null then
    return;
  end if;
  -- A day's grace: a profile is not rewritten for every message that arrives.
  if v_yes is not null and v_yes >= coalesce(v_no, '-infinity') then
    update public.profiles set has_whatsapp = true, has_whatsapp_source = 'delivered', has_whatsapp_at = v_yes
     where id = v_profile_id and coalesce(has_whatsapp_at, '-infinity') < v_yes
       and (not has_whatsapp or coalesce(has_whatsapp_at, '-infinity') < v_yes - interval '1 day');
  elsif v_no is not null then
    update public.profiles set has_whatsapp = false, has_whatsapp_source = 'not_on_whatsapp', has_whatsapp_at = v_no
     where id = v_profile_id and (has_whatsapp_at is null or has_whatsapp_at < v_no);
  end if;
  if v_opted_out is not null and v_channel = 'sms' then
    update public.profiles set allows_sms = false, allows_sms_source = 'provider', allows_sms_at = v_opted_out
     where id = v_profile_id and allows_sms and (allows_sms_at is null or allows_sms_at < v_opted_out);
  end if;
end
$$;
comment on function private.apply_evidence is
  'What the events of a delivery say about its recipient: a delivered WhatsApp message proves WhatsApp, a refusal speaks against it. Locks the profile.';

create or replace function private.after_attempts(p_noted jsonb, p_lease_token uuid, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_note jsonb;
begin
  for v_note in select n from jsonb_array_elements(p_noted) n order by n ->> 'provider' loop
    if v_note ->> 'outcome' in ('accepted', 'retryable', 'permanent', 'config', 'bug', 'unknown') then
      perform private.note_provider_outcome(v_note ->> 'provider', v_note ->> 'outcome', (v_note ->> 'counts')::boolean, p_lease_token, p_now);
    end if;
    if v_note ->> 'outcome' = 'bug' then
      perform private.raise_alert('delivery_bug', 'critical', 'delivery_bug:' || (v_note ->> 'provider') || ':' || coalesce(v_note ->> 'error_code', 'none'),
        format('%s says that our request is malformed; the message failed and is not tried again.', v_note ->> 'provider'),
        jsonb_build_object('provider', v_note ->> 'provider', 'delivery_id', v_note ->> 'id', 'error_code', v_note ->> 'error_code'));
    end if;
  end loop;
  perform private.release_probes(p_lease_token);
end
$$;
comment on function private.after_attempts is 'Breakers, alerts and unused probes; the last step of every transaction that records attempts.';

create or replace function private.store_deliveries(
  p_client_id uuid, p_session_id uuid, p_profile_id uuid, p_call_id uuid, p_turn_id uuid, p_message_id uuid,
  p_deliveries jsonb, p_lease_token uuid, p_correlation_id text, p_key text, p_possible_duplicate boolean, p_unknown_wait_seconds integer, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_delivery jsonb;
  v_attempt jsonb;
  v_id uuid;
  v_status text;
  v_noted jsonb := '[]';
  v_stored jsonb := '[]';
  v_fallbacks jsonb := '[]';
  v_fallback jsonb;
begin
  p_deliveries := coalesce(nullif(p_deliveries, 'null'), '[]');
  perform private.lock_refs(array(
    select lower(d ->> 'id') from jsonb_array_elements(p_deliveries) d
    union all
    select (d ->> 'provider') || ':' || k
      from jsonb_array_elements(p_deliveries) d, unnest(private.provider_message_keys(d -> 'attempt' ->> 'provider_message_id')) k));
  for v_delivery in select d from jsonb_array_elements(p_deliveries) d order by d ->> 'id' loop
    v_id := private.required(v_delivery, 'id')::uuid;
    v_attempt := v_delivery -> 'attempt';
    insert into public.message_delivery_log as l
      (id, client_id, session_id, profile_id, call_id, message_id, turn_id, direction, channel, purpose, status, status_at, provider,
       correlation_id, recipient, sender, content, payload, encoding, segments, deadline_at, unknown_wait_seconds, possible_duplicate,
       idempotency_key, queued_at)
    values
      (v_id, p_client_id, p_session_id, p_profile_id, p_call_id, p_message_id, p_turn_id, 'outbound', private.required(v_delivery, 'channel'),
       coalesce(v_delivery ->> 'purpose', 'message'), 'queued', p_now, private.required(v_delivery, 'provider'), p_correlation_id,
       v_delivery ->> 'recipient', v_delivery ->> 'sender', v_delivery ->> 'content', nullif(v_delivery -> 'payload', 'null'),
       v_delivery ->> 'encoding', (v_delivery ->> 'segments')::smallint, (v_delivery ->> 'deadline_at')::timestamptz, p_unknown_wait_seconds,
       p_possible_duplicate, p_key || ':' || (v_delivery ->> 'channel'), p_now)
    on conflict (id) do update
      set message_id = coalesce(l.message_id, excluded.message_id),
          recipient = coalesce(l.recipient, excluded.recipient), sender = coalesce(l.sender, excluded.sender),
          content = coalesce(l.content, excluded.content), payload = coalesce(l.payload, excluded.payload),
          encoding = coalesce(l.encoding, excluded.encoding), segments = coalesce(l.segments, excluded.segments),
          deadline_at = coalesce(l.deadline_at, excluded.deadline_at)
      where l.client_id = excluded.client_id and l.channel = excluded.channel and l.turn_id is not distinct from excluded.turn_id;
    if not found then
      raise exception using errcode = 'PT409', message = 'delivery_of_another_claim';
    end if;
    perform private.add_own_event(v_id, 'queued', coalesce((v_attempt ->> 'started_at')::timestamptz, p_now), p_correlation_id);
    if private.apply_attempt(v_id, v_attempt, p_lease_token, p_correlation_id, p_now, p_possible_duplicate) then
      v_noted := v_noted || jsonb_build_object('id', v_id, 'provider', v_delivery ->> 'provider', 'outcome', v_attempt ->> 'outcome',
        'counts', coalesce((v_attempt ->> 'breaker')::boolean, true), 'error_code', v_attempt ->> 'error_code');
    end if;
    perform private.join_orphans(v_id);
    v_status := private.refold_delivery(v_id);
    v_stored := v_stored || jsonb_build_object('id', v_id, 'channel', v_delivery ->> 'channel', 'status', v_status);
  end loop;
  -- When all are written: whether a channel must step in depends on what became of the others.
  for v_delivery in select s from jsonb_array_elements(v_stored) s where s ->> 'status' in ('failed', 'undeliverable') loop
    v_fallback := private.create_fallback((v_delivery ->> 'id')::uuid, p_now);
    if v_fallback is not null then
      v_fallbacks := v_fallbacks || v_fallback;
    end if;
  end loop;
  for v_delivery in select s from jsonb_array_elements(v_stored) s
                     where s ->> 'channel' = 'whatsapp' or s ->> 'status' = 'undeliverable' loop
    perform private.apply_evidence((v_delivery ->> 'id')::uuid);
  end loop;
  return jsonb_build_object('deliveries', v_stored, 'fallbacks', v_fallbacks, 'noted', v_noted);
end
$$;
comment on function private.store_deliveries is
  'The messages of one finished work: rows, attempts, events, orphans, fallbacks, evidence. `noted` goes to private.after_attempts at the end.';

create or replace function private.prune_orphans(p_before timestamptz, p_limit integer) returns integer
language plpgsql security definer set search_path = '' as $$
declare
  v_count integer;
begin
  delete from public.message_status_events
   where id in (select e.id from public.message_status_events e
                 where e.delivery_id is null and e.created_at < p_before order by e.created_at limit p_limit
                   for update skip locked);
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function private.prune_orphans is
  'Removes reports that never found a message: those of other programs on the same account. Security definer: events are append-only for the API roles.';

create or replace function private.sent_channels(p_sms_delivery_id uuid, p_whatsapp_delivery_id uuid) returns text[]
language plpgsql stable set search_path = '' as $$
begin
  return (
    select array(
      select case e.delivery_ref when p_sms_delivery_id::text then 'sms' else 'whatsapp' end as channel
        from public.message_status_events e
       where e.delivery_id is null and e.delivery_ref in (p_sms_delivery_id::text, p_whatsapp_delivery_id::text)
         and e.status in ('sent', 'delivered', 'read')
       group by 1 order by 1));
end
$$;
comment on function private.sent_channels is 'Channels of a claim that a provider has reported on although nobody recorded a sending: its holder crashed after it.';

create or replace function private.record_carried(
  p_client_id uuid, p_session_id uuid, p_profile_id uuid, p_call_id uuid, p_turn_id uuid, p_sms_delivery_id uuid, p_whatsapp_delivery_id uuid,
  p_purpose text, p_correlation_id text, p_key text, p_now timestamptz
) returns text[] language plpgsql set search_path = '' as $$
declare
  v_channels text[];
  v_channel text;
  v_id uuid;
begin
  perform private.lock_refs(array[p_sms_delivery_id::text, p_whatsapp_delivery_id::text]);
  v_channels := private.sent_channels(p_sms_delivery_id, p_whatsapp_delivery_id);
  foreach v_channel in array v_channels loop
    v_id := case v_channel when 'sms' then p_sms_delivery_id else p_whatsapp_delivery_id end;
    insert into public.message_delivery_log
      (id, client_id, session_id, profile_id, call_id, turn_id, direction, channel, purpose, status, status_at, provider, provider_message_id,
       correlation_id, attempts, idempotency_key, queued_at)
    select v_id, p_client_id, p_session_id, p_profile_id, p_call_id, p_turn_id, 'outbound', v_channel, p_purpose, 'queued', p_now, e.provider,
           e.provider_message_id, p_correlation_id, 1, p_key || ':' || v_channel, p_now
      from public.message_status_events e
     where e.delivery_id is null and e.delivery_ref = v_id::text
     order by (e.provider_message_id is null), e.id limit 1
    on conflict do nothing;
    perform private.join_orphans(v_id);
    perform private.refold_delivery(v_id);
    perform private.apply_evidence(v_id);
  end loop;
  return v_channels;
end
$$;
comment on function private.record_carried is
  'After a crash: writes down the messages that the provider says were sent; their channels. Text and attempt are lost with the holder.';

revoke execute on all functions in schema private from public, anon;
grant execute on function private.delivery_status_rank(text), private.refold_delivery(uuid),
  private.add_own_event(uuid, text, timestamptz, text, text, text, text), private.lock_refs(text[]), private.join_orphans(uuid),
  private.set_provider_ids(uuid, text, text), private.apply_attempt(uuid, jsonb, uuid, text, timestamptz, boolean),
  private.create_fallback(uuid, timestamptz), private.apply_evidence(uuid), private.after_attempts(jsonb, uuid, timestamptz),
  private.store_deliveries(uuid, uuid, uuid, uuid, uuid, uuid, jsonb, uuid, text, text, boolean, integer, timestamptz),
  private.prune_orphans(timestamptz, integer), private.sent_channels(uuid, uuid),
  private.record_carried(uuid, uuid, uuid, uuid, uuid, uuid, uuid, text, text, text, timestamptz) to service_role;
