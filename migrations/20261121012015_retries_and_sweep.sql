-- 20261121012015_retries_and_sweep.sql
-- A channel that is down keeps nobody of the other waiting; the sweep says when another is at it.
-- Safe to run again. Locks no table. Undo: apply the functions of before.

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
  -- STOP came after the message was decided: only the answer to a keyword may still go out.
  if v_row.channel = 'sms' and v_row.purpose is distinct from 'keyword'
     and exists (select from public.profiles p where p.id = v_row.profile_id and not p.allows_sms) then
    perform private.add_own_event(p_id, 'suppressed', p_now, v_row.correlation_id);
    update public.message_delivery_log set next_attempt_at = null, suppress_reason = 'opted_out' where id = p_id;
    perform private.refold_delivery(p_id);
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
  elsif v_row.status = 'unknown' and private.is_carried(p_id, v_row.message_id) then
    -- The resend was refused. An earlier sending may have arrived, and the other channel has the message as well.
    update public.message_delivery_log set next_attempt_at = null where id = p_id;
    return false;
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

create or replace function public.claim_due_deliveries(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
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
  v_paused text[];
  v_probed text[] := '{}';
  v_seen uuid[] := '{}';
  v_row record;
begin
  select array_agg(l.id order by l.id) into v_ids
    from public.message_delivery_log l
   where l.lease_token = v_token and l.lease_until > v_now and (v_only is null or v_only in (l.id, l.fallback_of));
  if v_ids is not null then
    -- The same token again: its answer was lost.
    return jsonb_build_object(
      'deliveries', (select jsonb_agg(private.due_delivery_json(i)) from unnest(v_ids) i),
      'looked_at', cardinality(v_ids), 'fallbacks', '[]'::jsonb,
      'providers', private.provider_gates('{}', v_token, v_now));
  end if;

  if v_only is null then
    select array_agg(distinct d.provider) into v_wanted
      from (select l.provider from public.message_delivery_log l where l.next_attempt_at <= v_due order by l.next_attempt_at limit 500) d;
  else
    select array[l.provider] into v_wanted
      from public.message_delivery_log l where l.id = v_only and l.next_attempt_at <= v_due and (l.lease_until is null or l.lease_until <= v_now);
  end if;
  v_gates := private.provider_gates(coalesce(v_wanted, '{}'), v_token, v_now);
  if v_wanted is null then
    return jsonb_build_object('deliveries', '[]'::jsonb, 'looked_at', 0, 'fallbacks', '[]'::jsonb, 'providers', v_gates);
  end if;
  v_paused := array(select g.key from jsonb_each(v_gates) g where g.value ->> 'gate' = 'open');
  if v_only is null and v_paused <> '{}' then
    -- What would only be put off is put off all at once, and takes nobody's place among the candidates.
    update public.message_delivery_log l
       set next_attempt_at = greatest((v_gates -> l.provider ->> 'open_until')::timestamptz, v_now) + random() * interval '15 seconds'
     where l.id in (select c.id from public.message_delivery_log c
                     where c.next_attempt_at <= v_due and c.provider = any (v_paused) and c.status <> 'unknown' and c.lease_token is null
                       and (c.deadline_at is null or c.deadline_at > v_now)
                     order by c.next_attempt_at limit 1000
                       for no key update skip locked);
  end if;

  -- Twice: what the first round hands to the other channel is due at once.
  for v_round in 1 .. 2 loop
    for v_row in
      select l.id, l.provider from public.message_delivery_log l
       where l.next_attempt_at <= v_due and (l.lease_until is null or l.lease_until <= v_now)
         and (v_only is null or l.id = v_only or (v_round = 2 and l.fallback_of = v_only))
         -- A provider that has a pause keeps no other waiting. What is unknown, past its deadline or left by its holder is settled all the same.
         and (v_only is not null or l.provider is null or l.provider <> all (v_paused)
           or l.status = 'unknown' or l.lease_token is not null or l.deadline_at <= v_now)
       order by l.next_attempt_at
       limit v_limit - cardinality(v_claimed)
         for no key update skip locked
    loop
      v_seen := v_seen || v_row.id;
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
    'looked_at', cardinality(v_seen),
    -- Messages that another channel is to carry now and that this claim had no room for.
    'fallbacks', coalesce((
      select jsonb_agg(jsonb_build_object('id', l.id, 'channel', l.channel, 'correlation_id', l.correlation_id) order by l.id)
        from public.message_delivery_log l
       where l.fallback_of = any (v_seen) and l.status = 'queued' and l.next_attempt_at <= v_due and l.lease_token is null), '[]'),
    'providers', v_gates);
end
$$;

comment on function public.claim_due_deliveries is
  'RPC: leases deliveries that are due, the oldest first; settles those past their deadline or without a word. Nothing more is due when looked_at is 0.';

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
    if private.apply_attempt(v_row.id, v_result.attempt, v_token, coalesce(v_row.correlation_id, p ->> 'correlation_id'), v_now, false) then
      v_noted := v_noted || jsonb_build_object('id', v_row.id, 'provider', v_row.provider, 'outcome', v_result.attempt ->> 'outcome',
        'counts', coalesce((v_result.attempt ->> 'breaker')::boolean, true), 'error_code', v_result.attempt ->> 'error_code');
    end if;
    perform private.join_orphans(v_row.id);
    v_status := private.refold_delivery(v_row.id);
    v_stored := v_stored || jsonb_build_object('id', v_row.id, 'channel', v_row.channel, 'status', v_status);
  end loop;
  for v_result in select (s ->> 'id')::uuid as id from jsonb_array_elements(v_stored) s where s ->> 'status' in ('failed', 'undeliverable', 'expired') loop
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
           (e ->> 'occurred_at')::timestamptz as occurred_at,
           (e ->> 'reported_at')::timestamptz as reported_at, e ->> 'error_code' as error_code, e ->> 'error_class' as error_class,
           e ->> 'evidence' as evidence, nullif(e -> 'pricing', 'null') as pricing
      from jsonb_array_elements(v_events) e
  loop
    if private.delivery_status_rank(v_event.status) is null or (v_event.delivery_ref is null and v_event.provider_message_id is null) then
      v_ignored := v_ignored + 1;
      continue;
    end if;
    v_id := private.delivery_of_report(v_event.delivery_ref, v_event.provider, v_event.provider_message_id);
    if exists (select from public.message_delivery_log l where l.id = v_id and l.erased_at is not null) then
      v_ignored := v_ignored + 1;
      continue;
    end if;
    insert into public.message_status_events
      (delivery_id, delivery_ref, source, provider, provider_message_id, status, raw_status, occurred_at, reported_at, error_code, error_class,
       evidence, pricing, correlation_id, dedupe_key)
    values
      (v_id, v_event.delivery_ref, 'provider', v_event.provider, v_event.provider_message_id, v_event.status, v_event.raw_status,
       coalesce(v_event.occurred_at, v_now), v_event.reported_at, v_event.error_code, v_event.error_class, v_event.evidence, v_event.pricing, p ->> 'correlation_id',
       concat_ws('|', v_event.provider, coalesce(v_event.delivery_ref, ''), coalesce(private.provider_message_key(v_event.provider_message_id), ''),
         v_event.status, coalesce(v_event.raw_status, ''), coalesce(v_event.error_code, ''), coalesce(extract(epoch from coalesce(v_event.reported_at, v_event.occurred_at))::text, '')))
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

create or replace function public.sweep(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_limit integer := least(coalesce((p ->> 'limit')::integer, 50), 1000);
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_wait interval := make_interval(secs => coalesce((p ->> 'unknown_wait_seconds')::numeric, 120)::double precision);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_grace interval := make_interval(secs => coalesce((p ->> 'call_grace_seconds')::numeric, 60)::double precision);
  v_jobs jsonb;
  v_calls jsonb;
  v_claims jsonb;
  v_turns jsonb;
  v_waiting jsonb;
  v_closed integer;
  v_due integer;
  v_overdue integer;
  v_expired integer := 0;
  v_alerts integer := 0;
  v_id uuid;
begin
  -- One sweep at a time. The other may be our own first try, whose answer did not come in time: it is not to look like a sweep
  -- that found nothing.
  if not pg_try_advisory_xact_lock(hashtextextended('ihuza:sweep', 20261121)) then
    return '{"busy": true}';
  end if;

  with idle as (
    select s.id from public.omnichannel_sessions s
     where s.status in ('active', 'follow_up') and s.last_activity_at < v_now - v_idle
       and not exists (select from public.conversation_turns t where t.session_id = s.id and t.status in ('open', 'released'))
     order by s.last_activity_at limit v_limit
       for no key update of s skip locked
  ), closed as (
    update public.omnichannel_sessions s set status = 'expired', ended_at = v_now from idle where s.id = idle.id returning 1
  )
  select count(*) into v_closed from closed;

  -- Ended calls that nobody began to tell about. Asked for again after ten minutes, should the request get lost.
  with owed as (
    select c.id from public.voice_calls c
     where c.ended_at < v_now - v_grace and c.ended_at > v_now - interval '24 hours' and c.notified_at is null and c.status = 'completed'
       and (c.notify_requested_at is null or c.notify_requested_at < v_now - interval '10 minutes')
     order by c.ended_at limit v_limit
       for no key update skip locked
  ), asked as (
    update public.voice_calls c set notify_requested_at = v_now from owed where c.id = owed.id
    returning c.id, case c.direction when 'outbound' then c.to_number else c.from_number end as phone
  )
  select jsonb_agg(jsonb_build_object('correlation_id', a.id::text, 'call_id', a.id, 'phone_number', case when private.is_e164(a.phone) then a.phone end))
    into v_calls from asked a;

  with owed as (
    select n.id from public.call_notifications n
     where ((n.status = 'open' and n.lease_until < v_now - v_wait) or (n.status = 'released' and n.next_attempt_at <= v_now))
       and (n.swept_at is null or n.swept_at < v_now - interval '5 minutes')
     limit v_limit
       for no key update skip locked
  ), asked as (
    update public.call_notifications n set swept_at = v_now from owed where n.id = owed.id returning n.correlation_id, n.call_id, n.phone_number
  )
  select jsonb_agg(jsonb_build_object('correlation_id', a.correlation_id, 'call_id', a.call_id, 'phone_number', a.phone_number)) into v_claims from asked a;

  with owed as (
    select t.id from public.conversation_turns t
     where ((t.status = 'open' and t.lease_until < v_now - v_wait) or (t.status = 'released' and t.next_attempt_at <= v_now))
       and (t.swept_at is null or t.swept_at < v_now - interval '5 minutes')
     limit v_limit
       for no key update skip locked
  ), asked as (
    update public.conversation_turns t set swept_at = v_now from owed where t.id = owed.id returning t.session_id, t.correlation_id
  )
  select jsonb_agg(jsonb_build_object('session_id', a.session_id, 'correlation_id', a.correlation_id)) into v_turns from asked a;

  -- Messages stored for a holder that is gone, those that wait longest first; asked for again after five minutes, so that none
  -- keeps others from being seen.
  with owed as (
    select m.id from public.conversation_messages m
     where m.direction = 'inbound' and m.handled_at is null and m.created_at < v_now - v_lease and m.kind = 'conversation' and m.turn_id is null
       and (m.swept_at is null or m.swept_at < v_now - interval '5 minutes')
       and not exists (select from public.conversation_turns t
                        where t.profile_id = m.profile_id and t.client_id = m.client_id and t.kind = 'conversation' and t.status in ('open', 'released'))
     order by m.created_at limit v_limit
       for no key update of m skip locked
  ), asked as (
    update public.conversation_messages m set swept_at = v_now from owed where m.id = owed.id returning m.session_id, m.correlation_id, m.seq
  ), first as (
    select distinct on (a.session_id) a.session_id, a.correlation_id, a.seq from asked a order by a.session_id, a.seq
  )
  select jsonb_agg(jsonb_build_object('session_id', f.session_id, 'correlation_id', f.correlation_id) order by f.seq) into v_waiting from first f;

  with due as (
    select j.id from public.jobs j
     where j.status = 'pending' and (j.lease_until is null or j.lease_until < v_now)
     order by j.created_at limit v_limit
       for no key update skip locked
  ), leased as (
    update public.jobs j set lease_until = v_now + v_lease, leases = j.leases + 1 from due where j.id = due.id
    returning j.id, j.queue, j.payload, j.created_at
  )
  select jsonb_agg(jsonb_build_object('id', l.id, 'queue', l.queue, 'payload', l.payload) order by l.created_at) into v_jobs from leased l;

  -- Reports that still have no delivery although there is one by now: a safety net below private.lock_refs.
  for v_id in
    select distinct l.id from public.message_status_events e
      join public.message_delivery_log l on l.id = private.uuid_or_null(e.delivery_ref)
     where e.delivery_id is null and e.created_at between v_now - interval '1 hour' and v_now
     order by 1 limit v_limit
  loop
    perform private.join_orphans(v_id);
    perform private.refold_delivery(v_id);
  end loop;

  for v_id in
    select l.id from public.message_delivery_log l
     where l.next_attempt_at <= v_now and l.deadline_at <= v_now and l.lease_token is null
     order by l.next_attempt_at limit v_limit
       for no key update skip locked
  loop
    perform private.claim_delivery(v_id, gen_random_uuid(), v_lease, v_wait, 'open', v_now, v_now);
    v_expired := v_expired + (select count(*)::integer from public.message_delivery_log l where l.id = v_id and l.status = 'expired');
  end loop;
  if v_expired > 0 then
    perform private.raise_alert('deliveries_expired', 'warning', 'deliveries_expired',
      'Messages reached their deadline without being sent.', jsonb_build_object('in_this_sweep', v_expired));
    v_alerts := v_alerts + 1;
  end if;

  select count(*), count(*) filter (where d.next_attempt_at < v_now - interval '15 minutes') into v_due, v_overdue
    from (select l.next_attempt_at from public.message_delivery_log l where l.next_attempt_at <= v_now order by l.next_attempt_at limit 1000) d;
  if v_overdue > 0 then
    perform private.raise_alert('deliveries_overdue', 'critical', 'deliveries_overdue',
      'Messages that are due have waited for more than 15 minutes: is delivery-retry running?', jsonb_build_object('overdue', v_overdue));
    v_alerts := v_alerts + 1;
  end if;

  perform private.prune_orphans(v_now - interval '30 days', 1000);
  delete from public.provider_outcomes where created_at < v_now - interval '1 hour';
  delete from public.rate_limits where window_start < v_now - interval '2 days';
  delete from public.jobs where status = 'done' and completed_at < v_now - interval '7 days';

  return jsonb_build_object(
    'jobs', coalesce(v_jobs, '[]'),
    'notify', coalesce(v_calls, '[]') || coalesce(v_claims, '[]'),
    'turns', coalesce(v_turns, '[]') || coalesce(v_waiting, '[]'),
    'due_deliveries', v_due, 'expired_deliveries', v_expired, 'closed_sessions', v_closed, 'alerts', v_alerts);
end
$$;

comment on function public.sweep is 'RPC of every minute: finds what was left behind and says what to put into which queue; {busy: true} while another sweep is at it.';
