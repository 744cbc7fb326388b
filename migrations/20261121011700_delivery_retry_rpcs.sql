-- 20261121011700_delivery_retry_rpcs.sql
-- Deliveries after their first attempt: what is due, what came of it, what providers report.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function private.due_delivery_json(p_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'id', l.id, 'client_id', l.client_id, 'session_id', l.session_id, 'channel', l.channel, 'provider', l.provider, 'recipient', l.recipient,
      'sender', l.sender, 'purpose', l.purpose, 'payload', l.payload, 'content', l.content, 'attempt', l.attempts, 'attempts_so_far', l.attempts - 1,
      'possible_duplicate', l.possible_duplicate, 'deadline_at', l.deadline_at, 'correlation_id', l.correlation_id, 'fallback_of', l.fallback_of,
      'segments', l.segments)
      from public.message_delivery_log l where l.id = p_id);
end
$$;
comment on function private.due_delivery_json is 'A claimed delivery as the retrying function sees it.';

create or replace function private.is_carried(p_id uuid, p_message_id uuid) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return (
    select exists (
      select from public.message_delivery_log s
       where s.message_id = p_message_id and s.id <> p_id
         and (s.status in ('queued', 'sending', 'sent', 'delivered', 'read')
           -- Of two unknown ones the first that is looked at leaves it to the other, so that one at most is sent again.
           or (s.status = 'unknown' and (s.next_attempt_at is not null or s.possible_duplicate)))));
end
$$;
comment on function private.is_carried is 'Whether the other channel carries, or will carry, the same message.';

-- The caller holds the row's lock. True: the row is leased to the token.
create or replace function private.claim_delivery(
  p_id uuid, p_token uuid, p_lease interval, p_wait interval, p_gate text, p_open_until timestamptz, p_now timestamptz
) returns boolean language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_resend boolean := false;
begin
  select * into strict v_row from public.message_delivery_log where id = p_id;
  if v_row.lease_token is not null then
    -- Its holder is gone between sending and recording: the outcome is unknown from the end of the lease on.
    perform private.add_own_event(p_id, 'unknown', v_row.lease_until, v_row.correlation_id, 'lease_expired', 'unknown');
    update public.message_delivery_log
       set lease_token = null, lease_until = null, last_outcome = 'unknown',
           next_attempt_at = case when not v_row.possible_duplicate then v_row.lease_until + p_wait end
     where id = p_id;
    perform private.refold_delivery(p_id);
    select * into strict v_row from public.message_delivery_log where id = p_id;
    if v_row.next_attempt_at is null or v_row.next_attempt_at > p_now then
      return false;
    end if;
  end if;
  if v_row.deadline_at <= p_now then
    if v_row.status = 'unknown' then
      update public.message_delivery_log set next_attempt_at = null where id = p_id;
    else
      perform private.add_own_event(p_id, 'expired', p_now, v_row.correlation_id, coalesce(v_row.error_code, 'deadline'), v_row.error_class);
      perform private.refold_delivery(p_id);
    end if;
    return false;
  end if;
  if v_row.status = 'unknown' and coalesce(v_row.last_outcome, 'unknown') = 'unknown' then
    if v_row.possible_duplicate
       or private.is_carried(p_id, v_row.message_id)
       or private.create_fallback(p_id, p_now) is not null then
      update public.message_delivery_log set next_attempt_at = null where id = p_id;
      return false;
    end if;
    v_resend := true;
  end if;
  if p_gate = 'open' then
    update public.message_delivery_log
       set next_attempt_at = greatest(p_open_until, p_now) + random() * interval '15 seconds' where id = p_id;
    return false;
  end if;
  update public.message_delivery_log
     set lease_token = p_token, lease_until = p_now + p_lease, next_attempt_at = p_now + p_lease, attempts = attempts + 1,
         possible_duplicate = possible_duplicate or v_resend
   where id = p_id;
  perform private.add_own_event(p_id, 'sending', p_now, v_row.correlation_id);
  if v_row.status = 'queued' then
    perform private.refold_delivery(p_id);
  end if;
  return true;
end
$$;
comment on function private.claim_delivery is
  'Decides about one due delivery: lease it, expire it, leave it to the other channel, or put it off while the provider has a pause.';

create or replace function public.claim_due_deliveries(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 60)::double precision);
  v_wait interval := make_interval(secs => coalesce((p ->> 'unknown_wait_seconds')::numeric, 120)::double precision);
  v_limit integer := least(coalesce((p ->> 'limit')::integer, 20), 500);
  v_only uuid := (p ->> 'delivery_id')::uuid;
  -- A queue's clock may run a little ahead of ours.
  v_due timestamptz := v_now + case when v_only is null then interval '0' else interval '2 seconds' end;
  v_ids uuid[];
  v_claimed uuid[] := '{}';
  v_wanted text[];
  v_gates jsonb;
  v_gate text;
  v_probed text[] := '{}';
  v_row record;
begin
  select array_agg(l.id order by l.id) into v_ids
    from public.message_delivery_log l where l.lease_token = v_token and l.lease_until > v_now;
  if v_ids is not null then
    -- The same token again: its answer was lost.
    return jsonb_build_object(
      'deliveries', (select jsonb_agg(private.due_delivery_json(i)) from unnest(v_ids) i),
      'providers', private.provider_gates('{}', v_token, v_now));
  end if;

  if v_only is null then
    select array_agg(distinct d.provider) into v_wanted
      from (select l.provider from public.message_delivery_log l where l.next_attempt_at <= v_due order by l.next_attempt_at limit v_limit) d;
  else
    select array[l.provider] into v_wanted
      from public.message_delivery_log l where l.id = v_only and l.next_attempt_at <= v_due and (l.lease_until is null or l.lease_until <= v_now);
  end if;
  v_gates := private.provider_gates(coalesce(v_wanted, '{}'), v_token, v_now);
  if v_wanted is null then
    return jsonb_build_object('deliveries', '[]'::jsonb, 'providers', v_gates);
  end if;

  -- Twice: what the first round hands to the other channel is due at once.
  for v_round in 1 .. 2 loop
    for v_row in
      select l.id, l.provider from public.message_delivery_log l
       where l.next_attempt_at <= v_due and (l.lease_until is null or l.lease_until <= v_now)
         and (v_only is null or l.id = v_only or (v_round = 2 and l.fallback_of = v_only))
       order by l.next_attempt_at
       limit v_limit - cardinality(v_claimed)
         for no key update skip locked
    loop
      v_gate := coalesce(v_gates -> v_row.provider ->> 'gate', 'closed');
      if v_gate = 'probe' and v_row.provider = any (v_probed) then
        v_gate := 'open';  -- one probe is one message
      end if;
      if private.claim_delivery(v_row.id, v_token, v_lease, v_wait, v_gate,
           coalesce((v_gates -> v_row.provider ->> 'open_until')::timestamptz, v_now + interval '10 seconds'), v_now) then
        v_claimed := v_claimed || v_row.id;
        if v_gate = 'probe' then
          v_probed := v_probed || v_row.provider;
        end if;
      end if;
    end loop;
    exit when cardinality(v_claimed) >= v_limit;
  end loop;
  -- A probe that no message will use goes back at once.
  update public.provider_health set probe_token = null, probe_until = null
   where probe_token = v_token and provider <> all (v_probed);
  return jsonb_build_object(
    'deliveries', coalesce((select jsonb_agg(private.due_delivery_json(i)) from unnest(v_claimed) i), '[]'),
    'providers', v_gates);
end
$$;
comment on function public.claim_due_deliveries is 'RPC: leases deliveries that are due, the oldest first; settles those past their deadline or without a word.';

create or replace function public.record_delivery_results(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_results jsonb := coalesce(nullif(p -> 'results', 'null'), '[]');
  v_result record;
  v_row public.message_delivery_log;
  v_status text;
  v_noted jsonb := '[]';
  v_stored jsonb := '[]';
  v_fallbacks jsonb := '[]';
  v_fallback jsonb;
begin
  perform private.lock_refs(array(
    select l.provider || ':' || k
      from jsonb_array_elements(v_results) r
      join public.message_delivery_log l on l.id = (r ->> 'id')::uuid,
      unnest(private.provider_message_keys(r -> 'attempt' ->> 'provider_message_id')) k
    union all
    select lower(r ->> 'id') from jsonb_array_elements(v_results) r));
  for v_result in select (r ->> 'id')::uuid as id, r -> 'attempt' as attempt from jsonb_array_elements(v_results) r order by 1 loop
    select * into v_row from public.message_delivery_log where id = v_result.id for no key update;
    if not found then
      continue;
    end if;
    if private.apply_attempt(v_row.id, v_result.attempt, v_token, coalesce(p ->> 'correlation_id', v_row.correlation_id), v_now, false) then
      v_noted := v_noted || jsonb_build_object('id', v_row.id, 'provider', v_row.provider, 'outcome', v_result.attempt ->> 'outcome',
        'counts', coalesce((v_result.attempt ->> 'breaker')::boolean, true), 'error_code', v_result.attempt ->> 'error_code');
    end if;
    perform private.join_orphans(v_row.id);
    v_status := private.refold_delivery(v_row.id);
    v_stored := v_stored || jsonb_build_object('id', v_row.id, 'channel', v_row.channel, 'status', v_status);
  end loop;
  for v_result in select (s ->> 'id')::uuid as id from jsonb_array_elements(v_stored) s where s ->> 'status' in ('failed', 'undeliverable') loop
    v_fallback := private.create_fallback(v_result.id, v_now);
    if v_fallback is not null then
      v_fallbacks := v_fallbacks || v_fallback;
    end if;
  end loop;
  for v_result in select (s ->> 'id')::uuid as id from jsonb_array_elements(v_stored) s
                   where s ->> 'channel' = 'whatsapp' or s ->> 'status' = 'undeliverable' loop
    perform private.apply_evidence(v_result.id);
  end loop;
  perform private.after_attempts(v_noted, v_token, v_now);
  return jsonb_build_object('deliveries', v_stored, 'fallbacks', v_fallbacks);
end
$$;
comment on function public.record_delivery_results is 'RPC: records the attempts made under a lease; a late result of a lease that ran out is recorded all the same.';

create or replace function private.delivery_of_report(p_ref text, p_provider text, p_provider_message_id text) returns uuid
language plpgsql stable set search_path = '' as $$
declare
  v_id uuid;
  v_found uuid[];
begin
  select l.id into v_id from public.message_delivery_log l where l.id = private.uuid_or_null(p_ref) and l.direction = 'outbound';
  if v_id is not null or p_provider_message_id is null then
    return v_id;
  end if;
  select l.id into v_id from public.message_delivery_log l
   where l.provider = p_provider and l.direction = 'outbound' and l.provider_message_id is not null
     and l.provider_message_key = private.provider_message_key(p_provider_message_id)
   order by (l.provider_message_id = p_provider_message_id) desc, l.created_at desc limit 1;
  if v_id is not null then
    return v_id;
  end if;
  select array_agg(l.id) into v_found from public.message_delivery_log l
   where l.provider = p_provider and l.direction = 'outbound' and l.provider_message_id is not null
     and l.provider_message_key = any (private.provider_message_keys(p_provider_message_id));
  -- Two candidates under other spellings: better an orphan than a wrong message.
  return case when cardinality(v_found) = 1 then v_found[1] end;
end
$$;
comment on function private.delivery_of_report is 'The delivery that a report is about: by our id, by the provider''s, by another spelling of it; null: none yet.';

create or replace function private.adopt_late_report(p_ref text, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_ref uuid := private.uuid_or_null(p_ref);
  v_claim public.call_notifications;
  v_turn public.conversation_turns;
begin
  select * into v_claim from public.call_notifications where v_ref in (sms_delivery_id) and status = 'unknown';
  if not found then
    select * into v_claim from public.call_notifications where v_ref in (whatsapp_delivery_id) and status = 'unknown';
  end if;
  if v_claim.id is not null then
    if cardinality(private.record_carried(v_claim.client_id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, null, v_claim.sms_delivery_id,
         v_claim.whatsapp_delivery_id, 'call_summary', v_claim.correlation_id, 'call:' || v_claim.call_id, p_now)) > 0 then
      update public.call_notifications set status = 'done' where id = v_claim.id;
    end if;
    return;
  end if;
  select * into v_turn from public.conversation_turns where sms_delivery_id = v_ref and status = 'unknown';
  if not found then
    select * into v_turn from public.conversation_turns where whatsapp_delivery_id = v_ref and status = 'unknown';
  end if;
  if v_turn.id is not null and cardinality(private.record_carried(v_turn.client_id, v_turn.session_id, v_turn.profile_id, null, v_turn.id,
       v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id, case v_turn.kind when 'keyword' then 'keyword' else 'reply' end,
       v_turn.correlation_id, 'turn:' || v_turn.id, p_now)) > 0 then
    update public.conversation_turns set status = 'answered' where id = v_turn.id;
    update public.conversation_messages set handled_as = 'answered' where turn_id = v_turn.id and handled_as = 'unknown';
  end if;
end
$$;
comment on function private.adopt_late_report is 'A report about work that was given up as unknown: it was sent after all.';

create or replace function public.record_delivery_events(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_events jsonb := coalesce(nullif(p -> 'events', 'null'), '[]');
  v_event record;
  v_id uuid;
  v_ids uuid[] := '{}';
  v_refs text[] := '{}';
  v_applied integer := 0;
  v_orphaned integer := 0;
  v_duplicate integer := 0;
  v_ignored integer := 0;
  v_status text;
  v_fallback jsonb;
  v_fallbacks jsonb := '[]';
begin
  perform private.lock_refs(array(
    select lower(e ->> 'delivery_ref') from jsonb_array_elements(v_events) e
    union all
    select (e ->> 'provider') || ':' || k from jsonb_array_elements(v_events) e, unnest(private.provider_message_keys(e ->> 'provider_message_id')) k));
  for v_event in
    select nullif(lower(e ->> 'delivery_ref'), '') as delivery_ref, private.required(e, 'provider') as provider,
           nullif(e ->> 'provider_message_id', '') as provider_message_id, e ->> 'status' as status, e ->> 'raw_status' as raw_status,
           (e ->> 'occurred_at')::timestamptz as occurred_at, e ->> 'error_code' as error_code, e ->> 'error_class' as error_class,
           e ->> 'evidence' as evidence, nullif(e -> 'pricing', 'null') as pricing
      from jsonb_array_elements(v_events) e
  loop
    if private.delivery_status_rank(v_event.status) is null or (v_event.delivery_ref is null and v_event.provider_message_id is null) then
      v_ignored := v_ignored + 1;
      continue;
    end if;
    v_id := private.delivery_of_report(v_event.delivery_ref, v_event.provider, v_event.provider_message_id);
    insert into public.message_status_events
      (delivery_id, delivery_ref, source, provider, provider_message_id, status, raw_status, occurred_at, error_code, error_class, evidence,
       pricing, correlation_id, dedupe_key)
    values
      (v_id, v_event.delivery_ref, 'provider', v_event.provider, v_event.provider_message_id, v_event.status, v_event.raw_status,
       coalesce(v_event.occurred_at, v_now), v_event.error_code, v_event.error_class, v_event.evidence, v_event.pricing, p ->> 'correlation_id',
       concat_ws('|', v_event.provider, coalesce(v_event.delivery_ref, ''), coalesce(private.provider_message_key(v_event.provider_message_id), ''),
         v_event.status, coalesce(v_event.raw_status, ''), coalesce(v_event.error_code, ''), coalesce(extract(epoch from v_event.occurred_at)::text, '')))
    on conflict (dedupe_key) do nothing;
    if not found then
      v_duplicate := v_duplicate + 1;
    elsif v_id is null then
      v_orphaned := v_orphaned + 1;
      if v_event.delivery_ref is not null and v_event.status in ('sent', 'delivered', 'read') then
        v_refs := v_refs || v_event.delivery_ref;
      end if;
    else
      v_applied := v_applied + 1;
    end if;
    if v_id is not null then
      v_ids := v_ids || v_id;
    end if;
  end loop;

  for v_id in select distinct i from unnest(v_ids) i order by 1 loop
    -- A report may name the provider's id before the answer to our request does; others that named only that one have waited.
    if exists (select from public.message_delivery_log l where l.id = v_id and l.provider_message_id is null) then
      perform private.join_orphans(v_id);
    end if;
    v_status := private.refold_delivery(v_id);
    if v_status in ('failed', 'undeliverable', 'expired') then
      v_fallback := private.create_fallback(v_id, v_now);
      if v_fallback is not null then
        v_fallbacks := v_fallbacks || v_fallback;
      end if;
    end if;
  end loop;
  for v_event in select distinct r from unnest(v_refs) r order by 1 loop
    perform private.adopt_late_report(v_event.r, v_now);
  end loop;
  for v_id in select distinct i from unnest(v_ids) i order by 1 loop
    perform private.apply_evidence(v_id);
  end loop;
  return jsonb_build_object('applied', v_applied, 'orphaned', v_orphaned, 'duplicate', v_duplicate, 'ignored', v_ignored, 'fallbacks', v_fallbacks,
    -- Under which correlation id each message went out, so that the log can tell of its report under the same one.
    'deliveries', coalesce((
      select jsonb_agg(jsonb_build_object('id', l.id, 'channel', l.channel, 'status', l.status, 'correlation_id', l.correlation_id) order by l.id)
        from public.message_delivery_log l where l.id = any (v_ids)), '[]'));
end
$$;
comment on function public.record_delivery_events is 'RPC: folds provider reports into the log, in any order and any number of times; one that comes before its message waits for it.';

revoke execute on function public.claim_due_deliveries(jsonb), public.record_delivery_results(jsonb), public.record_delivery_events(jsonb)
  from public, anon, authenticated;
grant execute on function public.claim_due_deliveries(jsonb), public.record_delivery_results(jsonb), public.record_delivery_events(jsonb) to service_role;
revoke execute on function private.due_delivery_json(uuid), private.is_carried(uuid, uuid),
  private.claim_delivery(uuid, uuid, interval, interval, text, timestamptz, timestamptz), private.delivery_of_report(text, text, text),
  private.adopt_late_report(text, timestamptz) from public, anon, authenticated;
grant execute on function private.due_delivery_json(uuid), private.is_carried(uuid, uuid),
  private.claim_delivery(uuid, uuid, interval, interval, text, timestamptz, timestamptz), private.delivery_of_report(text, text, text),
  private.adopt_late_report(text, timestamptz) to service_role;
