-- 20261121013200_sms_rollups.sql
-- Figures of agent_sms that cost the same to ask for whether it holds a thousand rows or thirty-six million: sums an hour, a day and a
-- month (UTC), and beside them the changes that no fold has taken up yet. Both together always equal the rows: a change is written by
-- the statement that causes it, and a reader adds what waits.
-- Writers only ever append, so that none waits for another, of whatever deployment; the sweep folds.
-- Safe to run again. Locks agent_sms while its rows are counted (a minute for ten millions). Undo: drop the triggers, the functions and
-- both tables.
create table if not exists public.agent_sms_rollups (
  deployment_id uuid not null,
  grain text not null,
  starts_at timestamptz not null,
  client_id uuid not null,
  cost_currency text not null,
  revenue_currency text not null,
  messages bigint not null default 0,
  pending bigint not null default 0,
  sent bigint not null default 0,
  delivered bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0,
  accepted bigint not null default 0,
  replied bigint not null default 0,
  segments bigint not null default 0,
  cost numeric(20,6) not null default 0,
  revenue numeric(20,6) not null default 0,
  margin numeric(20,6) not null default 0,
  without_margin bigint not null default 0,
  created_at timestamptz not null default now(),
  constraint agent_sms_rollups_pkey primary key (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency),
  constraint agent_sms_rollups_grain_is_known check (grain in ('hour', 'day', 'month'))
);
create table if not exists public.agent_sms_changes (
  id bigint generated always as identity constraint agent_sms_changes_pkey primary key,
  deployment_id uuid not null,
  starts_at timestamptz not null,
  client_id uuid not null,
  cost_currency text not null,
  revenue_currency text not null,
  messages bigint not null default 0,
  pending bigint not null default 0,
  sent bigint not null default 0,
  delivered bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0,
  accepted bigint not null default 0,
  replied bigint not null default 0,
  segments bigint not null default 0,
  cost numeric(20,6) not null default 0,
  revenue numeric(20,6) not null default 0,
  margin numeric(20,6) not null default 0,
  without_margin bigint not null default 0,
  created_at timestamptz not null default now()
);
do $$
declare
  v_table text;
begin
  foreach v_table in array array['agent_sms_rollups', 'agent_sms_changes'] loop
    perform private.require_columns(format('public.%I', v_table)::regclass, '{
      "deployment_id": "uuid", "starts_at": "timestamp with time zone", "client_id": "uuid", "cost_currency": "text",
      "revenue_currency": "text", "messages": "bigint", "pending": "bigint", "sent": "bigint", "delivered": "bigint", "failed": "bigint",
      "cancelled": "bigint", "accepted": "bigint", "replied": "bigint", "segments": "bigint", "cost": "numeric(20,6)",
      "revenue": "numeric(20,6)", "margin": "numeric(20,6)", "without_margin": "bigint", "created_at": "timestamp with time zone"}');
    execute format('comment on column public.%I.deployment_id is ''Whom the messages count for.''', v_table);
    execute format('comment on column public.%I.cost_currency is ''ISO 4217, of cost; empty: none of them has one.''', v_table);
    execute format('comment on column public.%I.revenue_currency is ''ISO 4217, of revenue and margin; empty: none of them has one.''', v_table);
    execute format('comment on column public.%I.messages is ''How many rows of agent_sms.''', v_table);
    execute format('comment on column public.%I.pending is ''Of these, with this status.''', v_table);
    execute format('comment on column public.%I.sent is ''Of these, with this status: taken, and no report yet.''', v_table);
    execute format('comment on column public.%I.delivered is ''Of these, with this status.''', v_table);
    execute format('comment on column public.%I.failed is ''Of these, with this status.''', v_table);
    execute format('comment on column public.%I.cancelled is ''Of these, with this status.''', v_table);
    execute format('comment on column public.%I.accepted is ''Those that a provider took: sent, delivered, and failed with an id of the provider.''', v_table);
    execute format('comment on column public.%I.replied is ''Those accepted that the person answered.''', v_table);
    execute format('comment on column public.%I.segments is ''Sum of their segments.''', v_table);
    execute format('comment on column public.%I.cost is ''Sum, in cost_currency.''', v_table);
    execute format('comment on column public.%I.revenue is ''Sum, in revenue_currency.''', v_table);
    execute format('comment on column public.%I.margin is ''Sum of the margins that are known, in revenue_currency.''', v_table);
    execute format('comment on column public.%I.without_margin is ''How many have no margin: no price on one side, or no rate between the two.''', v_table);
  end loop;
  perform private.require_columns('public.agent_sms_rollups', '{"grain": "text"}');
  perform private.require_columns('public.agent_sms_changes', '{"id": "bigint"}');
end
$$;
create index if not exists idx_agent_sms_rollups_client on public.agent_sms_rollups (client_id, grain, starts_at);
create index if not exists idx_agent_sms_changes_client on public.agent_sms_changes (client_id, deployment_id, starts_at);
-- No foreign keys: rows come from agent_sms alone, which has them, and a key to a client that all write for would be a lock they share.
comment on table public.agent_sms_rollups is
  'agent_sms summed up, an hour, a day and a month, as of the last fold. Exact together with agent_sms_changes; get_sms_metrics and v_agent_sms_days add them.';
comment on column public.agent_sms_rollups.grain is 'hour, day or month: how long it is from starts_at on. Each is the whole sum, so add up one of them.';
comment on column public.agent_sms_rollups.starts_at is 'Beginning of the hour, day or month, UTC, by sent_at.';
comment on table public.agent_sms_changes is
  'What statements on agent_sms have changed of its sums since the last fold, with sign. Appended without a lock; private.fold_sms_changes takes the rows into agent_sms_rollups.';
comment on column public.agent_sms_changes.starts_at is 'Beginning of the hour that changed, UTC, by sent_at.';

create or replace function private.count_agent_sms() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_sign constant smallint := case tg_op when 'DELETE' then -1 else 1 end;
begin
  if tg_op = 'UPDATE' then
    -- The old rows away and the new ones in; where that comes to nothing, nothing is written.
    insert into public.agent_sms_changes (deployment_id, starts_at, client_id, cost_currency, revenue_currency, messages, pending, sent, delivered,
      failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select x.* from (
      select s.deployment_id, date_trunc('hour', s.sent_at, 'UTC'), s.client_id, coalesce(s.cost_currency, ''), coalesce(s.revenue_currency, ''),
             sum(s.sign) as messages,
             coalesce(sum(s.sign) filter (where s.status = 'pending'), 0) as pending,
             coalesce(sum(s.sign) filter (where s.status = 'sent'), 0) as sent,
             coalesce(sum(s.sign) filter (where s.status = 'delivered'), 0) as delivered,
             coalesce(sum(s.sign) filter (where s.status = 'failed'), 0) as failed,
             coalesce(sum(s.sign) filter (where s.status = 'cancelled'), 0) as cancelled,
             coalesce(sum(s.sign) filter (where s.taken), 0) as accepted,
             coalesce(sum(s.sign) filter (where s.taken and s.replied_at is not null), 0) as replied,
             sum(s.sign * coalesce(s.segments, 0)) as segments,
             sum(s.sign * coalesce(s.cost, 0)) as cost,
             sum(s.sign * coalesce(s.revenue, 0)) as revenue,
             sum(s.sign * coalesce(s.margin, 0)) as margin,
             coalesce(sum(s.sign) filter (where s.margin is null), 0) as without_margin
        from (select t.*, t.status in ('sent', 'delivered') or t.status = 'failed' and t.provider_message_sid is not null as taken
                from (select 1 as sign, n.* from changed n union all select -1, o.* from before o) t) s
       group by 1, 2, 3, 4, 5
    ) x
     where 0 <> any (array[x.messages, x.pending, x.sent, x.delivered, x.failed, x.cancelled, x.accepted, x.replied, x.segments, x.cost, x.revenue,
                       x.margin, x.without_margin]);
  else
    insert into public.agent_sms_changes (deployment_id, starts_at, client_id, cost_currency, revenue_currency, messages, pending, sent, delivered,
      failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select s.deployment_id, date_trunc('hour', s.sent_at, 'UTC'), s.client_id, coalesce(s.cost_currency, ''), coalesce(s.revenue_currency, ''),
           v_sign * count(*),
           v_sign * count(*) filter (where s.status = 'pending'),
           v_sign * count(*) filter (where s.status = 'sent'),
           v_sign * count(*) filter (where s.status = 'delivered'),
           v_sign * count(*) filter (where s.status = 'failed'),
           v_sign * count(*) filter (where s.status = 'cancelled'),
           v_sign * count(*) filter (where s.taken),
           v_sign * count(*) filter (where s.taken and s.replied_at is not null),
           v_sign * sum(coalesce(s.segments, 0)),
           v_sign * sum(coalesce(s.cost, 0)),
           v_sign * sum(coalesce(s.revenue, 0)),
           v_sign * sum(coalesce(s.margin, 0)),
           v_sign * count(*) filter (where s.margin is null)
      from (select c.*, c.status in ('sent', 'delivered') or c.status = 'failed' and c.provider_message_sid is not null as taken from changed c) s
     group by 1, 2, 3, 4, 5;
  end if;
  return null;
end
$$;
comment on function private.count_agent_sms is
  'Trigger: appends what a statement has changed of the sums. Security definer: whoever may write agent_sms needs no right to its sums.';

create or replace function private.forget_sms_rollups() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  -- The changes first: a fold under way is waited for, and what it has folded goes with the second statement.
  delete from public.agent_sms_changes;
  delete from public.agent_sms_rollups;
  return null;
end
$$;
comment on function private.forget_sms_rollups is 'Trigger: a truncated table has no sums. Security definer: as private.count_agent_sms.';

drop trigger if exists agent_sms_count_inserts on public.agent_sms;
create trigger agent_sms_count_inserts after insert on public.agent_sms
  referencing new table as changed for each statement execute function private.count_agent_sms();
drop trigger if exists agent_sms_count_updates on public.agent_sms;
create trigger agent_sms_count_updates after update on public.agent_sms
  referencing old table as before new table as changed for each statement execute function private.count_agent_sms();
drop trigger if exists agent_sms_count_deletes on public.agent_sms;
create trigger agent_sms_count_deletes after delete on public.agent_sms
  referencing old table as changed for each statement execute function private.count_agent_sms();
drop trigger if exists agent_sms_count_truncates on public.agent_sms;
create trigger agent_sms_count_truncates after truncate on public.agent_sms
  for each statement execute function private.forget_sms_rollups();

create or replace function private.fold_sms_changes(p_limit integer default 20000) returns integer
language plpgsql set search_path = '' as $$
declare
  v_folded integer;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('ihuza:sms_rollups', 20261121)) then
    return 0;
  end if;
  with taken as (
    delete from public.agent_sms_changes where id in (select c.id from public.agent_sms_changes c order by c.id limit p_limit) returning *
  ), folded as (
    insert into public.agent_sms_rollups as r (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency, messages, pending, sent,
      delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select t.deployment_id, g.grain, date_trunc(g.grain, t.starts_at, 'UTC'), t.client_id, t.cost_currency, t.revenue_currency, sum(t.messages),
           sum(t.pending), sum(t.sent), sum(t.delivered), sum(t.failed), sum(t.cancelled), sum(t.accepted), sum(t.replied), sum(t.segments),
           sum(t.cost), sum(t.revenue), sum(t.margin), sum(t.without_margin)
      from taken t cross join (values ('hour'), ('day'), ('month')) g (grain)
     group by 1, 2, 3, 4, 5, 6
    on conflict (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency) do update
      set messages = r.messages + excluded.messages, pending = r.pending + excluded.pending, sent = r.sent + excluded.sent,
          delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed, cancelled = r.cancelled + excluded.cancelled,
          accepted = r.accepted + excluded.accepted, replied = r.replied + excluded.replied, segments = r.segments + excluded.segments,
          cost = r.cost + excluded.cost, revenue = r.revenue + excluded.revenue, margin = r.margin + excluded.margin,
          without_margin = r.without_margin + excluded.without_margin
  )
  select count(*) into v_folded from taken;
  return v_folded;
end
$$;
comment on function private.fold_sms_changes is
  'Takes so many changes into agent_sms_rollups, and answers how many there were; 0 as well while somebody else is at it.';

create or replace function private.recount_sms(p_deployments uuid[], p_from timestamptz, p_until timestamptz) returns setof public.agent_sms_changes
language plpgsql stable set search_path = '' as $$
begin
  return query
  select null::bigint, s.deployment_id, date_trunc('hour', s.sent_at, 'UTC'), s.client_id, coalesce(s.cost_currency::text, ''),
         coalesce(s.revenue_currency::text, ''), count(*), count(*) filter (where s.status = 'pending'), count(*) filter (where s.status = 'sent'),
         count(*) filter (where s.status = 'delivered'), count(*) filter (where s.status = 'failed'),
         count(*) filter (where s.status = 'cancelled'), count(*) filter (where s.taken),
         count(*) filter (where s.taken and s.replied_at is not null), coalesce(sum(s.segments), 0)::bigint,
         coalesce(sum(s.cost), 0)::numeric(20,6), coalesce(sum(s.revenue), 0)::numeric(20,6), coalesce(sum(s.margin), 0)::numeric(20,6),
         count(*) filter (where s.margin is null), null::timestamptz
    from (select r.*, r.status in ('sent', 'delivered') or r.status = 'failed' and r.provider_message_sid is not null as taken
            from public.agent_sms r
           where r.deployment_id = any (p_deployments) and r.sent_at >= p_from and r.sent_at < p_until) s
   group by 2, 3, 4, 5, 6;
end
$$;
comment on function private.recount_sms is 'The sums of a period from the rows themselves, an hour each: for its edges, and to compare with.';

create or replace function private.check_sms_rollups(p_from timestamptz default '-infinity', p_until timestamptz default 'infinity')
returns setof public.agent_sms_rollups language plpgsql stable set search_path = '' as $$
declare
  -- Whole months, so that each of them can be compared with its hours.
  v_from constant timestamptz := date_trunc('month', p_from, 'UTC');
  v_until constant timestamptz := case when isfinite(p_until) then date_trunc('month', date_trunc('month', p_until, 'UTC') + interval '768 hours', 'UTC') else p_until end;
begin
  return query
  select x.deployment_id, x.grain, x.starts_at, x.client_id, x.cost_currency, x.revenue_currency, sum(x.messages)::bigint, sum(x.pending)::bigint,
         sum(x.sent)::bigint, sum(x.delivered)::bigint, sum(x.failed)::bigint, sum(x.cancelled)::bigint, sum(x.accepted)::bigint,
         sum(x.replied)::bigint, sum(x.segments)::bigint, sum(x.cost)::numeric(20,6), sum(x.revenue)::numeric(20,6), sum(x.margin)::numeric(20,6),
         sum(x.without_margin)::bigint, null::timestamptz
    from (
      select 'hour' as grain, c.*
        from private.recount_sms(array(select d.id from public.agent_deployments d), v_from, v_until) c
      union all
      select g.grain, null, r.deployment_id, date_trunc(g.grain, r.starts_at, 'UTC'), r.client_id, r.cost_currency, r.revenue_currency, r.messages,
             r.pending, r.sent, r.delivered, r.failed, r.cancelled, r.accepted, r.replied, r.segments, r.cost, r.revenue, r.margin,
             r.without_margin, null
        from public.agent_sms_rollups r cross join (values ('day'), ('month')) g (grain)
       where r.grain = 'hour' and r.starts_at >= v_from and r.starts_at < v_until
      union all
      select l.grain, null, l.deployment_id, l.starts_at, l.client_id, l.cost_currency, l.revenue_currency, -l.messages, -l.pending, -l.sent,
             -l.delivered, -l.failed, -l.cancelled, -l.accepted, -l.replied, -l.segments, -l.cost, -l.revenue, -l.margin, -l.without_margin, null
        from (
          select r.grain, r.deployment_id, r.starts_at, r.client_id, r.cost_currency, r.revenue_currency, r.messages, r.pending, r.sent, r.delivered,
                 r.failed, r.cancelled, r.accepted, r.replied, r.segments, r.cost, r.revenue, r.margin, r.without_margin
            from public.agent_sms_rollups r where r.starts_at >= v_from and r.starts_at < v_until
          union all
          select 'hour', c.deployment_id, c.starts_at, c.client_id, c.cost_currency, c.revenue_currency, c.messages, c.pending, c.sent, c.delivered,
                 c.failed, c.cancelled, c.accepted, c.replied, c.segments, c.cost, c.revenue, c.margin, c.without_margin
            from public.agent_sms_changes c where c.starts_at >= v_from and c.starts_at < v_until
        ) l
    ) x
   group by x.deployment_id, x.grain, x.starts_at, x.client_id, x.cost_currency, x.revenue_currency
  having 0 <> any (array[sum(x.messages), sum(x.pending), sum(x.sent), sum(x.delivered), sum(x.failed), sum(x.cancelled), sum(x.accepted),
                         sum(x.replied), sum(x.segments), sum(x.cost), sum(x.revenue), sum(x.margin), sum(x.without_margin)]);
end
$$;
comment on function private.check_sms_rollups is
  'What the sums lack, or have too much with a minus: hours beside the rows themselves, days and months beside their hours. No row: all is right. Reads every row of the period.';

create or replace function private.rebuild_sms_rollups(p_from timestamptz default '-infinity', p_until timestamptz default 'infinity') returns integer
language plpgsql set search_path = '' as $$
declare
  v_found integer;
begin
  perform pg_advisory_xact_lock(hashtextextended('ihuza:sms_rollups', 20261121));
  -- One statement sees rows, sums and changes as of the same moment, and only adds what is missing: nobody who writes meanwhile is in the way.
  with found as materialized (
    select f.* from private.check_sms_rollups(p_from, p_until) f
  ), hours as (
    insert into public.agent_sms_changes (deployment_id, starts_at, client_id, cost_currency, revenue_currency, messages, pending, sent, delivered,
      failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select f.deployment_id, f.starts_at, f.client_id, f.cost_currency, f.revenue_currency, f.messages, f.pending, f.sent, f.delivered, f.failed,
           f.cancelled, f.accepted, f.replied, f.segments, f.cost, f.revenue, f.margin, f.without_margin
      from found f where f.grain = 'hour'
  ), larger as (
    insert into public.agent_sms_rollups as r (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency, messages, pending, sent,
      delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select f.deployment_id, f.grain, f.starts_at, f.client_id, f.cost_currency, f.revenue_currency, f.messages, f.pending, f.sent, f.delivered,
           f.failed, f.cancelled, f.accepted, f.replied, f.segments, f.cost, f.revenue, f.margin, f.without_margin
      from found f where f.grain <> 'hour'
    on conflict (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency) do update
      set messages = r.messages + excluded.messages, pending = r.pending + excluded.pending, sent = r.sent + excluded.sent,
          delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed, cancelled = r.cancelled + excluded.cancelled,
          accepted = r.accepted + excluded.accepted, replied = r.replied + excluded.replied, segments = r.segments + excluded.segments,
          cost = r.cost + excluded.cost, revenue = r.revenue + excluded.revenue, margin = r.margin + excluded.margin,
          without_margin = r.without_margin + excluded.without_margin
  )
  select count(*) into v_found from found;
  return v_found;
end
$$;
comment on function private.rebuild_sms_rollups is
  'Mends what private.check_sms_rollups finds, while others write; how many sums were wrong. After rows were loaded past the triggers, too.';

create or replace function private.keep_sms_figures(p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_folded integer := 0;
  v_round integer;
begin
  for v_i in 1 .. 5 loop
    v_round := private.fold_sms_changes(20000);
    v_folded := v_folded + v_round;
    exit when v_round < 20000;
  end loop;
  return jsonb_build_object('folded', v_folded);
exception when others then
  -- Figures can wait; what else the sweep has found cannot.
  perform private.raise_alert('sms_figures', 'warning', 'sms_figures', 'The figures of SMS could not be brought up to date.', jsonb_build_object('code', sqlstate));
  return jsonb_build_object('code', sqlstate);
end
$$;
comment on function private.keep_sms_figures is 'What the sweep does for agent_sms: {folded}, or {code} of what went wrong, with an alert.';

alter table public.agent_sms_rollups enable row level security;
alter table public.agent_sms_changes enable row level security;
drop policy if exists agent_sms_rollups_select on public.agent_sms_rollups;
create policy agent_sms_rollups_select on public.agent_sms_rollups for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
drop policy if exists agent_sms_changes_select on public.agent_sms_changes;
create policy agent_sms_changes_select on public.agent_sms_changes for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
revoke all on public.agent_sms_rollups, public.agent_sms_changes from public, anon, authenticated;
grant select on public.agent_sms_rollups, public.agent_sms_changes to authenticated;
grant select, insert, update, delete on public.agent_sms_rollups, public.agent_sms_changes to service_role;
revoke execute on function private.count_agent_sms(), private.forget_sms_rollups(), private.fold_sms_changes(integer),
  private.recount_sms(uuid[], timestamptz, timestamptz), private.check_sms_rollups(timestamptz, timestamptz),
  private.rebuild_sms_rollups(timestamptz, timestamptz), private.keep_sms_figures(timestamptz) from public, anon, authenticated;
grant execute on function private.count_agent_sms(), private.forget_sms_rollups(), private.fold_sms_changes(integer),
  private.recount_sms(uuid[], timestamptz, timestamptz), private.check_sms_rollups(timestamptz, timestamptz),
  private.rebuild_sms_rollups(timestamptz, timestamptz), private.keep_sms_figures(timestamptz) to service_role;
grant execute on function private.recount_sms(uuid[], timestamptz, timestamptz) to authenticated;

-- Rows that were there before are counted now, in full.
select private.rebuild_sms_rollups();
do $$
begin
  while private.fold_sms_changes(100000) > 0 loop
  end loop;
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
  v_sms jsonb;
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
  v_sms := private.keep_sms_figures(v_now);

  return jsonb_build_object(
    'jobs', coalesce(v_jobs, '[]'),
    'notify', coalesce(v_calls, '[]') || coalesce(v_claims, '[]'),
    'turns', coalesce(v_turns, '[]') || coalesce(v_waiting, '[]'),
    'due_deliveries', v_due, 'expired_deliveries', v_expired, 'closed_sessions', v_closed, 'alerts', v_alerts, 'sms_figures', v_sms);
end
$$;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013200'::text $$;

notify pgrst, 'reload schema';
