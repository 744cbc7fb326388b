-- 20261121012350_alert_notices.sql
-- Whoever keeps watch is told of each alert once: which are still to be told, who is just telling them, and how often that failed.
-- Safe to run again. Locks alerts briefly (columns, a default). Undo: drop both functions and the columns.

-- Without a default at first: what was raised before is not news.
alter table public.alerts add column if not exists notice_at timestamptz;
alter table public.alerts alter column notice_at set default now();
alter table public.alerts add column if not exists notice_token uuid;
alter table public.alerts add column if not exists notice_attempts smallint not null default 0;
alter table public.alerts add column if not exists notified_at timestamptz;
do $$
begin
  perform private.require_columns('public.alerts', '{
    "notice_at": "timestamp with time zone", "notice_token": "uuid", "notice_attempts": "smallint", "notified_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_alerts_notice on public.alerts (notice_at) where notice_at is not null and resolved_at is null;
comment on column public.alerts.notice_at is 'When somebody is to be told of it, the next try or the end of a lease; null: told, or given up.';
comment on column public.alerts.notice_token is 'Of whoever is telling it, or was the last to try.';
comment on column public.alerts.notice_attempts is 'How often it was tried.';
comment on column public.alerts.notified_at is 'When ALERT_WEBHOOK_URL took it.';

create or replace function private.watch_failure_rates(p_percent integer, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_rate record;
begin
  for v_rate in
    select h.provider, a.tried, a.failed
      from public.provider_health h
      cross join lateral (
        select count(*) as tried, count(*) filter (where m.outcome <> 'accepted') as failed
          from public.message_delivery_attempts m
         where m.provider = h.provider and m.created_at > p_now - interval '15 minutes' and m.created_at <= p_now
      ) a
     order by h.provider
  loop
    if v_rate.tried >= 20 and v_rate.failed * 100 >= v_rate.tried * p_percent then
      -- Counts once a look while it lasts, so that one sees how long that is.
      perform private.raise_alert('failure_rate', 'warning', 'failure_rate:' || v_rate.provider,
        format('%s did not take %s of the last %s messages within 15 minutes.', v_rate.provider, v_rate.failed, v_rate.tried),
        jsonb_build_object('provider', v_rate.provider, 'failed', v_rate.failed, 'of', v_rate.tried, 'minutes', 15));
    else
      update public.alerts set resolved_at = p_now where dedupe_key = 'failure_rate:' || v_rate.provider and resolved_at is null;
    end if;
  end loop;
end
$$;
comment on function private.watch_failure_rates is
  'Raises an alert of each provider that refused so many percent of its attempts in 15 minutes (20 attempts at least), and resolves it when that is over.';

create or replace function public.claim_alerts(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_alerts jsonb;
begin
  perform private.watch_failure_rates(coalesce((p ->> 'failure_percent')::integer, 30), v_now);
  with due as (
    select a.id from public.alerts a
     where a.notice_at <= v_now and a.resolved_at is null
     order by a.notice_at limit least(greatest(coalesce((p ->> 'limit')::integer, 10), 0), 100)
       for no key update skip locked
  ), leased as (
    update public.alerts a set notice_at = v_now + v_lease, notice_token = v_token, notice_attempts = a.notice_attempts + 1
      from due where a.id = due.id
    returning a.*
  )
  select jsonb_agg(jsonb_build_object(
           'id', l.id, 'kind', l.kind, 'severity', l.severity, 'message', l.message, 'details', l.details, 'occurrences', l.occurrences,
           'first_at', l.first_at, 'last_at', l.last_at, 'client', (select c.slug from public.clients c where c.id = l.client_id))
           order by l.first_at, l.id)
    into v_alerts from leased l;
  return jsonb_build_object('alerts', coalesce(v_alerts, '[]'));
end
$$;
comment on function public.claim_alerts is
  'RPC {lease_token, lease_seconds, limit, failure_percent}: looks at failure rates, then leases open alerts of which nobody was told; {alerts}. A limit of 0 only looks.';

create or replace function public.finish_alerts(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_told integer;
begin
  -- In the order of their ids, as nobody else needs more than one of them at a time.
  perform from public.alerts a
   where a.notice_token = v_token and a.id in (select (r ->> 'id')::uuid from jsonb_array_elements(p -> 'results') r)
   order by a.id for no key update;
  update public.alerts a
     set notified_at = case when (r ->> 'told')::boolean then v_now else a.notified_at end,
         notice_at = case when (r ->> 'told')::boolean or a.notice_attempts >= 30 then null
                          -- 30 s, doubling up to an hour: for about a day.
                          else v_now + least(interval '30 seconds' * power(2, least(a.notice_attempts - 1, 10)), interval '1 hour') end
    from jsonb_array_elements(p -> 'results') r
   where a.id = (r ->> 'id')::uuid and a.notice_token = v_token and a.notice_at is not null;
  get diagnostics v_told = row_count;
  return jsonb_build_object('recorded', v_told);
end
$$;
comment on function public.finish_alerts is
  'RPC {lease_token, results: [{id, told}]}: what became of leased alerts; one that was not told is tried again later, for about a day.';

revoke execute on function private.watch_failure_rates(integer, timestamptz), public.claim_alerts(jsonb), public.finish_alerts(jsonb) from public, anon, authenticated;
grant execute on function private.watch_failure_rates(integer, timestamptz), public.claim_alerts(jsonb), public.finish_alerts(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012350'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
