-- 20261121011800_jobs_and_sweep_rpcs.sql
-- What keeps work from being lost: refused envelopes, dead letters, and the sweep of every minute.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function public.enqueue_job(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_id uuid;
begin
  insert into public.jobs (queue, payload, reason, correlation_id)
  values (private.required(p, 'queue'), coalesce(nullif(p -> 'payload', 'null'), '{}'), p ->> 'reason', p ->> 'correlation_id')
  on conflict (dedupe_key) where status = 'pending' do update set reason = excluded.reason
  returning id into v_id;
  return jsonb_build_object('id', v_id);
end
$$;
comment on function public.enqueue_job is 'RPC: keeps an envelope that its queue refused; the same envelope waits once.';

create or replace function public.complete_jobs(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_count integer;
begin
  update public.jobs set status = 'done', completed_at = private.now_of(p), lease_until = null
   where status = 'pending' and id in (select i::uuid from jsonb_array_elements_text(coalesce(nullif(p -> 'ids', 'null'), '[]')) i);
  get diagnostics v_count = row_count;
  return jsonb_build_object('completed', v_count);
end
$$;
comment on function public.complete_jobs is 'RPC: these jobs are in their queue again.';

create or replace function public.record_dead_letter(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_id uuid;
begin
  -- An operator is told what was tried.
  v_id := private.give_up(private.required(p, 'queue'), private.required(p, 'message_id'), nullif(p -> 'payload', 'null'),
    (p ->> 'attempts')::integer, p ->> 'reason', p ->> 'correlation_id', null,
    case when p ->> 'reason' = 'call_not_found'
         then '{"tried": ["call_summaries.id", "voice_calls.id", "voice_calls.provider_call_id", "voice_calls.mtn_call_sid"]}'::jsonb else '{}' end);
  update public.notification_requests set status = 'failed', error = p ->> 'reason'
   where correlation_id = p ->> 'correlation_id' and notification_id is null and status <> 'failed';
  return jsonb_build_object('id', v_id);
end
$$;
comment on function public.record_dead_letter is 'RPC: work that was given up, with an alert; the same message of a queue once.';

create or replace function public.notification_status(p jsonb) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'correlation_id', r.correlation_id,
    'status', case when r.status in ('working', 'duplicate') and n.id is not null
                   then case n.status when 'open' then 'working' when 'released' then 'waiting' else n.status end
                   else r.status end,
    'duplicate_of', case when r.status = 'duplicate' then n.correlation_id end,
    'call_id', r.call_id,
    'requested_at', r.requested_at,
    'updated_at', greatest(r.updated_at, n.updated_at),
    'error', r.error,
    'deliveries', coalesce((
      select jsonb_agg(jsonb_build_object(
               'id', l.id, 'channel', l.channel, 'status', l.status, 'status_at', l.status_at, 'provider', l.provider,
               'provider_message_id', l.provider_message_id, 'attempts', l.attempts, 'next_attempt_at', l.next_attempt_at,
               'possible_duplicate', l.possible_duplicate, 'error_code', l.error_code, 'error_class', l.error_class,
               'suppress_reason', l.suppress_reason, 'fallback_of', l.fallback_of) order by l.created_at, l.channel)
        from public.message_delivery_log l
       where l.call_id = r.call_id and l.direction = 'outbound' and l.purpose = 'call_summary'), '[]'))
    from public.notification_requests r
    left join public.call_notifications n on n.id = r.notification_id
   where r.correlation_id = private.required(p, 'correlation_id')
$$;
comment on function public.notification_status is 'RPC: what became of a request for a notification; null when it is not known (yet).';

create or replace function public.sweep(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_limit integer := least(coalesce((p ->> 'limit')::integer, 50), 1000);
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 60)::double precision);
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
  -- One sweep at a time; the other has nothing left to do.
  if not pg_try_advisory_xact_lock(hashtextextended('ihuza:sweep', 20261121)) then
    return jsonb_build_object('jobs', '[]'::jsonb, 'notify', '[]'::jsonb, 'turns', '[]'::jsonb, 'due_deliveries', 0, 'expired_deliveries', 0,
      'closed_sessions', 0, 'alerts', 0);
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

  -- Messages stored for a holder that is gone.
  select jsonb_agg(jsonb_build_object('session_id', w.session_id, 'correlation_id', w.correlation_id)) into v_waiting
    from (
      select distinct on (m.session_id) m.session_id, m.correlation_id
        from public.conversation_messages m
       where m.direction = 'inbound' and m.handled_at is null and m.created_at < v_now - v_lease and m.kind = 'conversation' and m.turn_id is null
         and not exists (select from public.conversation_turns t
                          where t.session_id = m.session_id and t.kind = 'conversation' and t.status in ('open', 'released'))
       order by m.session_id, m.seq
       limit v_limit
    ) w;

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
comment on function public.sweep is 'RPC of every minute: finds what was left behind and says what to put into which queue.';

revoke execute on function public.enqueue_job(jsonb), public.complete_jobs(jsonb), public.record_dead_letter(jsonb), public.notification_status(jsonb),
  public.sweep(jsonb) from public, anon, authenticated;
grant execute on function public.enqueue_job(jsonb), public.complete_jobs(jsonb), public.record_dead_letter(jsonb), public.notification_status(jsonb),
  public.sweep(jsonb) to service_role;
