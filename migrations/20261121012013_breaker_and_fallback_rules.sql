-- 20261121012013_breaker_and_fallback_rules.sql
-- Only codes of the account count for the breaker; what expired hands over; a replayed letter that fails again is open again.
-- Safe to run again. Locks no table. Undo: apply the functions of before.

create index if not exists idx_provider_outcomes_created on public.provider_outcomes (created_at);
create or replace function private.note_provider_outcome(
  p_provider text, p_outcome text, p_counts boolean, p_lease_token uuid, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
  v_health public.provider_health;
  v_all integer;
  v_bad integer;
  v_seconds integer;
begin
  select * into v_health from public.provider_health where provider = p_provider;
  if not found then
    insert into public.provider_health (provider) values (p_provider) on conflict do nothing;
    select * into v_health from public.provider_health where provider = p_provider;
  end if;

  -- A configuration error of one recipient, template or model (it does not count) is an answer like a refusal.
  if p_outcome = 'config' and p_counts then
    update public.provider_health
       set state = 'open', reason = 'config', open_seconds = 900, open_until = p_now + interval '15 minutes',
           probe_token = null, probe_until = null, changed_at = p_now
     where provider = p_provider and (state <> 'open' or reason is distinct from 'config' or open_until < p_now + interval '14 minutes');
    perform private.raise_alert('provider_config', 'critical', 'provider_config:' || p_provider,
      format('%s refuses our credentials or configuration; its messages wait, nothing is lost.', p_provider),
      jsonb_build_object('provider', p_provider));
    return;
  end if;

  if v_health.state = 'closed' then
    if not p_counts or p_outcome not in ('retryable', 'unknown') then
      return;
    end if;
    select count(*), count(*) filter (where o.outcome <> 'accepted') into v_all, v_bad
      from (
        select outcome, created_at from (
          (select a.outcome, a.created_at from public.message_delivery_attempts a
            where a.provider = p_provider and a.created_at > greatest(p_now - interval '60 seconds', v_health.changed_at)
              and a.counts and a.outcome in ('accepted', 'retryable', 'unknown')
            order by a.created_at desc limit 20)
          union all
          (select c.outcome, c.created_at from public.provider_outcomes c
            where c.provider = p_provider and c.created_at > greatest(p_now - interval '60 seconds', v_health.changed_at)
              and c.outcome in ('accepted', 'retryable', 'unknown')
            order by c.created_at desc limit 20)
        ) both_kinds
        order by created_at desc limit 20
      ) o;
    if v_all >= 5 and v_bad * 2 >= v_all then
      update public.provider_health
         set state = 'open', reason = 'failures', open_seconds = 30, open_until = p_now + interval '30 seconds',
             probe_token = null, probe_until = null, changed_at = p_now
       where provider = p_provider and state = 'closed';
      perform private.raise_alert('provider_open', 'warning', 'provider_open:' || p_provider,
        format('%s failed %s of its last %s calls; it gets a pause and the other channel carries the messages.', p_provider, v_bad, v_all),
        jsonb_build_object('provider', p_provider, 'failed', v_bad, 'of', v_all));
    end if;
    return;
  end if;

  -- Half open: only the one that holds the probe decides.
  if v_health.probe_token is distinct from p_lease_token then
    return;
  end if;
  if p_outcome in ('retryable', 'unknown') and p_counts then
    v_seconds := least(case when v_health.reason = 'config' then 30 else v_health.open_seconds end * 2, 300);
    update public.provider_health
       set state = 'open', reason = 'failures', open_seconds = v_seconds, open_until = p_now + make_interval(secs => v_seconds),
           probe_token = null, probe_until = null, changed_at = p_now
     where provider = p_provider and probe_token = p_lease_token;
  elsif p_outcome in ('accepted', 'permanent', 'config', 'bug', 'retryable', 'unknown') then
    update public.provider_health
       set state = 'closed', reason = null, open_seconds = 30, open_until = null, probe_token = null, probe_until = null, changed_at = p_now
     where provider = p_provider and probe_token = p_lease_token;
    update public.alerts set resolved_at = p_now
     where dedupe_key in ('provider_open:' || p_provider, 'provider_config:' || p_provider) and resolved_at is null;
  end if;
end
$$;

comment on function private.note_provider_outcome is
  'Moves the circuit breaker after an outcome is stored. Open at 50 % of the last 20 counting outcomes in 60 s (5 at least), at once on a configuration error that counts: one of the whole account.';

create or replace function private.alert_refused_config(p_provider text, p_code text, p_delivery_id uuid default null) returns void
language plpgsql set search_path = '' as $$
begin
  perform private.raise_alert('delivery_config', 'warning', 'delivery_config:' || p_provider || ':' || coalesce(p_code, 'none'),
    format('%s refuses a template, a recipient or a model as we have it configured (%s); other work goes on.', p_provider, coalesce(p_code, 'no code')),
    jsonb_build_object('provider', p_provider, 'error_code', p_code, 'delivery_id', p_delivery_id));
end
$$;

comment on function private.alert_refused_config is 'The alert of a configuration error that concerns one template, recipient or model, and not the account.';

create or replace function private.note_provider_calls(p_calls jsonb, p_lease_token uuid, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_call jsonb;
  v_outcome text;
  v_counts boolean;
begin
  for v_call in select c from jsonb_array_elements(coalesce(nullif(p_calls, 'null'), '[]')) c order by c ->> 'provider' loop
    v_outcome := coalesce(v_call ->> 'outcome', v_call ->> 'class');
    v_counts := coalesce((v_call ->> 'breaker')::boolean, true);
    if v_outcome = 'config' and not v_counts then
      perform private.alert_refused_config(v_call ->> 'provider', v_call ->> 'reason');
    end if;
    insert into public.provider_outcomes (provider, outcome, error_class, created_at)
    values (private.required(v_call, 'provider'), v_outcome, v_call ->> 'class', p_now);
    perform private.note_provider_outcome(v_call ->> 'provider', v_outcome, v_counts, p_lease_token, p_now);
  end loop;
end
$$;

revoke execute on function private.take_rate_limit(text, integer, interval, timestamptz),
  private.provider_gate(text, boolean, uuid, timestamptz, integer), private.provider_gates(text[], uuid, timestamptz),
  private.note_provider_outcome(text, text, boolean, uuid, timestamptz), private.alert_refused_config(text, text, uuid),
  private.note_provider_calls(jsonb, uuid, timestamptz),
  private.release_probes(uuid) from public, anon, authenticated;

grant execute on function private.take_rate_limit(text, integer, interval, timestamptz),
  private.provider_gate(text, boolean, uuid, timestamptz, integer), private.provider_gates(text[], uuid, timestamptz),
  private.note_provider_outcome(text, text, boolean, uuid, timestamptz), private.alert_refused_config(text, text, uuid),
  private.note_provider_calls(jsonb, uuid, timestamptz),
  private.release_probes(uuid) to service_role;

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
  -- Whether it is about the provider or our account; else about this recipient, template or message.
  v_counts boolean := coalesce((p_attempt ->> 'breaker')::boolean, true);
  v_class text;
  v_status text;
begin
  if v_outcome not in ('accepted', 'retryable', 'permanent', 'config', 'bug', 'unknown', 'suppressed', 'deferred') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', v_outcome);
  end if;
  select * into strict v_row from public.message_delivery_log where id = p_id for no key update;
  if v_row.erased_at is not null then
    return false;
  end if;
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
       v_outcome in ('accepted', 'retryable', 'config', 'unknown') and v_counts,
       v_started, v_at, (p_attempt ->> 'duration_ms')::numeric::integer, p_lease_token, p_correlation_id, p_now)
    on conflict (delivery_id, attempt) do nothing;
    if not found then
      return false;
    end if;
    perform private.set_provider_ids(p_id, p_attempt ->> 'provider_message_id', p_attempt ->> 'provider_request_id');
  end if;

  if v_outcome in ('accepted', 'retryable', 'permanent', 'bug', 'unknown') or (v_outcome = 'config' and not v_counts) then
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
      -- Our account: the message waits for somebody to mend it. This template or recipient: waiting would help nobody.
      if v_counts then
        v_next := least(p_now + interval '15 minutes', coalesce(v_row.deadline_at, 'infinity'));
      else
        v_status := 'failed';
        v_next := null;
      end if;
    when 'permanent' then
      v_status := case when v_evidence in ('not_on_whatsapp', 'opted_out') then 'undeliverable' else 'failed' end;
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
    return case when v_status = 'queued' then jsonb_build_object('id', v_id, 'channel', case v_row.channel when 'sms' then 'whatsapp' else 'sms' end,
      'correlation_id', v_row.correlation_id) end;
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
  return jsonb_build_object('id', v_id, 'channel', v_other, 'correlation_id', v_row.correlation_id);
end
$$;

comment on function private.create_fallback is
  'A delivery failed for good: queues the same message on the other channel, due now, if it was not tried and can be; {id, channel, correlation_id} or null.';

create or replace function private.after_attempts(p_noted jsonb, p_lease_token uuid, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_note jsonb;
begin
  for v_note in select n from jsonb_array_elements(p_noted) n order by n ->> 'provider' loop
    if v_note ->> 'outcome' in ('accepted', 'retryable', 'permanent', 'config', 'bug', 'unknown') then
      perform private.note_provider_outcome(v_note ->> 'provider', v_note ->> 'outcome', (v_note ->> 'counts')::boolean, p_lease_token, p_now);
    end if;
    if v_note ->> 'outcome' = 'config' and not (v_note ->> 'counts')::boolean then
      perform private.alert_refused_config(v_note ->> 'provider', v_note ->> 'error_code', (v_note ->> 'id')::uuid);
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
  for v_delivery in select s from jsonb_array_elements(v_stored) s where s ->> 'status' in ('failed', 'undeliverable', 'expired') loop
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

create or replace function private.give_up(
  p_queue text, p_message_id text, p_payload jsonb, p_attempts integer, p_reason text, p_correlation_id text, p_client_id uuid,
  p_details jsonb default '{}'
) returns uuid language plpgsql set search_path = '' as $$
declare
  v_id uuid;
begin
  -- Callers choose correlation ids, so two works may have one id: another payload is another letter.
  if exists (select from public.dead_letters d where d.queue = p_queue and d.message_id = p_message_id and d.payload is distinct from p_payload) then
    p_message_id := p_message_id || '#' || md5(coalesce(p_payload::text, ''));
  end if;
  insert into public.dead_letters (queue, message_id, payload, attempts, reason, correlation_id, client_id)
  values (p_queue, p_message_id, p_payload, p_attempts, p_reason, p_correlation_id, p_client_id)
  on conflict (queue, message_id) do update
    -- An operator put it back, and it failed again: it is open again, and somebody must hear of it.
    set replayed_at = null, attempts = excluded.attempts, reason = excluded.reason
    where dead_letters.replayed_at is not null
  returning id into v_id;
  if v_id is null then
    select id into v_id from public.dead_letters where queue = p_queue and message_id = p_message_id;
    return v_id;
  end if;
  perform private.raise_alert('dead_letter', 'critical', 'dead_letter:' || p_queue || ':' || coalesce(p_reason, 'unknown'),
    format('Work of the queue %s was given up: %s.', p_queue, coalesce(p_reason, 'unknown')),
    jsonb_build_object('queue', p_queue, 'dead_letter_id', v_id, 'correlation_id', p_correlation_id, 'reason', p_reason) || p_details, p_client_id);
  return v_id;
end
$$;

comment on function private.give_up is 'A dead letter and its alert; the same message of a queue once, and again when it was replayed. The same id with another payload is another message.';
