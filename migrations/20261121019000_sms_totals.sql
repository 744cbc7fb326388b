-- 20261121019000_sms_totals.sql
-- Figures of everybody, and of a kind of agents, in as many rows as there are kinds: the sums of agent_sms_rollups a second time, without client
-- and deployment. Four hundred deployments are four hundred looks into an index for each piece of a period; a kind is one.
-- Only who sees all rows is answered from them (the service role); a client's member is answered from the sums of its deployments, as before.
-- Safe to run again. Reads agent_sms_rollups once, and no fold runs meanwhile. Undo: drop the trigger of agent_deployments, the table and the functions added here,
-- and apply the functions of 20261121013200 and 20261121013210 and private.purge_agent_sms of 20261121013230.
create table if not exists public.agent_sms_totals (
  grain text not null,
  starts_at timestamptz not null,
  agent_type_id uuid not null,
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
  constraint agent_sms_totals_pkey primary key (grain, starts_at, agent_type_id, cost_currency, revenue_currency),
  constraint agent_sms_totals_grain_is_known check (grain in ('hour', 'day', 'month'))
);
do $$
declare
  v_column record;
begin
  perform private.require_columns('public.agent_sms_totals', '{
    "grain": "text", "starts_at": "timestamp with time zone", "agent_type_id": "uuid", "cost_currency": "text", "revenue_currency": "text",
    "messages": "bigint", "pending": "bigint", "sent": "bigint", "delivered": "bigint", "failed": "bigint", "cancelled": "bigint",
    "accepted": "bigint", "replied": "bigint", "segments": "bigint", "cost": "numeric(20,6)", "revenue": "numeric(20,6)", "margin": "numeric(20,6)",
    "without_margin": "bigint",
    "created_at": "timestamp with time zone"}');
  -- They mean what they mean in agent_sms_rollups.
  for v_column in
    select t.attname as name, col_description(r.attrelid, r.attnum) as says
      from pg_catalog.pg_attribute t
      join pg_catalog.pg_attribute r on r.attrelid = 'public.agent_sms_rollups'::regclass and r.attname = t.attname
     where t.attrelid = 'public.agent_sms_totals'::regclass and t.attnum > 0 and col_description(r.attrelid, r.attnum) is not null
  loop
    execute format('comment on column public.agent_sms_totals.%I is %L', v_column.name, v_column.says);
  end loop;
end
$$;
-- No foreign key, as in agent_sms_rollups: rows follow those, and a key would be a lock that all share.
comment on table public.agent_sms_totals is
  'agent_sms_rollups summed up over all clients, a row for each kind of agents: what get_sms_metrics answers from where everybody is asked about. Written by the same fold.';
comment on column public.agent_sms_totals.agent_type_id is 'Kind of the deployments as it is now; zeros: deployments of no kind.';
alter table public.agent_sms_totals enable row level security;
drop policy if exists agent_sms_totals_select on public.agent_sms_totals;
create policy agent_sms_totals_select on public.agent_sms_totals for select to authenticated using (false);
revoke all on public.agent_sms_totals from public, anon, authenticated;
grant select, insert, update, delete on public.agent_sms_totals to service_role;

create or replace function private.kind_of_totals(p_agent_type_id uuid) returns uuid
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return coalesce(p_agent_type_id, '00000000-0000-0000-0000-000000000000');
end
$$;
comment on function private.kind_of_totals is 'As agent_sms_totals names a kind of agents: zeros for none.';

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
    insert into public.agent_sms_rollups as r (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency,
      messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select t.deployment_id, g.grain, date_trunc(g.grain, t.starts_at, 'UTC'), t.client_id, t.cost_currency, t.revenue_currency,
           sum(t.messages), sum(t.pending), sum(t.sent), sum(t.delivered), sum(t.failed), sum(t.cancelled), sum(t.accepted), sum(t.replied),
           sum(t.segments), sum(t.cost), sum(t.revenue), sum(t.margin), sum(t.without_margin)
      from taken t cross join (values ('hour'), ('day'), ('month')) g (grain)
     group by 1, 2, 3, 4, 5, 6
    on conflict (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency) do update
      set messages = r.messages + excluded.messages, pending = r.pending + excluded.pending, sent = r.sent + excluded.sent,
          delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed, cancelled = r.cancelled + excluded.cancelled,
          accepted = r.accepted + excluded.accepted, replied = r.replied + excluded.replied, segments = r.segments + excluded.segments,
          cost = r.cost + excluded.cost, revenue = r.revenue + excluded.revenue, margin = r.margin + excluded.margin,
          without_margin = r.without_margin + excluded.without_margin
  ), summed as (
    insert into public.agent_sms_totals as r (grain, starts_at, agent_type_id, cost_currency, revenue_currency,
      messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select g.grain, date_trunc(g.grain, t.starts_at, 'UTC'), private.kind_of_totals(d.agent_type_id), t.cost_currency, t.revenue_currency,
           sum(t.messages), sum(t.pending), sum(t.sent), sum(t.delivered), sum(t.failed), sum(t.cancelled), sum(t.accepted), sum(t.replied),
           sum(t.segments), sum(t.cost), sum(t.revenue), sum(t.margin), sum(t.without_margin)
      from taken t left join public.agent_deployments d on d.id = t.deployment_id cross join (values ('hour'), ('day'), ('month')) g (grain)
     group by 1, 2, 3, 4, 5
    on conflict (grain, starts_at, agent_type_id, cost_currency, revenue_currency) do update
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
  'Takes so many changes into agent_sms_rollups and agent_sms_totals, and answers how many there were; 0 as well while somebody else is at it.';

create or replace function private.move_sms_totals() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_to uuid;
begin
  if tg_op = 'UPDATE' then
    v_to := new.agent_type_id;
  end if;
  -- After a fold that still took the old kind, and before any that will take the new one.
  perform pg_advisory_xact_lock(hashtextextended('ihuza:sms_rollups', 20261121));
  insert into public.agent_sms_totals as r (grain, starts_at, agent_type_id, cost_currency, revenue_currency,
    messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
  select o.grain, o.starts_at, k.kind, o.cost_currency, o.revenue_currency,
         sum(k.sign * o.messages), sum(k.sign * o.pending), sum(k.sign * o.sent), sum(k.sign * o.delivered), sum(k.sign * o.failed),
         sum(k.sign * o.cancelled), sum(k.sign * o.accepted), sum(k.sign * o.replied), sum(k.sign * o.segments), sum(k.sign * o.cost),
         sum(k.sign * o.revenue), sum(k.sign * o.margin), sum(k.sign * o.without_margin)
    from public.agent_sms_rollups o
   cross join (values (private.kind_of_totals(old.agent_type_id), -1), (private.kind_of_totals(v_to), 1)) k (kind, sign)
   where o.deployment_id = old.id
   group by 1, 2, 3, 4, 5
  on conflict (grain, starts_at, agent_type_id, cost_currency, revenue_currency) do update
    set messages = r.messages + excluded.messages, pending = r.pending + excluded.pending, sent = r.sent + excluded.sent,
        delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed, cancelled = r.cancelled + excluded.cancelled,
        accepted = r.accepted + excluded.accepted, replied = r.replied + excluded.replied, segments = r.segments + excluded.segments,
        cost = r.cost + excluded.cost, revenue = r.revenue + excluded.revenue, margin = r.margin + excluded.margin,
        without_margin = r.without_margin + excluded.without_margin;
  return null;
end
$$;
comment on function private.move_sms_totals is
  'Trigger: where a deployment becomes one of another kind, or goes, its sums are counted there. Security definer: whoever may write agent_deployments needs no right to sums.';
drop trigger if exists agent_deployments_move_sms_totals on public.agent_deployments;
create trigger agent_deployments_move_sms_totals after update of agent_type_id on public.agent_deployments
  for each row when (old.agent_type_id is distinct from new.agent_type_id) execute function private.move_sms_totals();
drop trigger if exists agent_deployments_leave_sms_totals on public.agent_deployments;
create trigger agent_deployments_leave_sms_totals after delete on public.agent_deployments
  for each row when (old.agent_type_id is not null) execute function private.move_sms_totals();

create or replace function private.forget_sms_rollups() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  -- The changes first: a fold under way is waited for, and what it has folded goes with the statements after it.
  delete from public.agent_sms_changes;
  delete from public.agent_sms_rollups;
  delete from public.agent_sms_totals;
  return null;
end
$$;

create or replace function private.check_sms_totals(p_from timestamptz default '-infinity', p_until timestamptz default 'infinity')
returns setof public.agent_sms_totals language plpgsql stable set search_path = '' as $$
begin
  return query
  select x.grain, x.starts_at, x.agent_type_id, x.cost_currency, x.revenue_currency,
         sum(x.messages)::bigint, sum(x.pending)::bigint, sum(x.sent)::bigint, sum(x.delivered)::bigint, sum(x.failed)::bigint,
         sum(x.cancelled)::bigint, sum(x.accepted)::bigint, sum(x.replied)::bigint, sum(x.segments)::bigint, sum(x.cost)::numeric(20,6),
         sum(x.revenue)::numeric(20,6), sum(x.margin)::numeric(20,6), sum(x.without_margin)::bigint, null::timestamptz
    from (
      select o.grain, o.starts_at, private.kind_of_totals(d.agent_type_id) as agent_type_id, o.cost_currency, o.revenue_currency,
             o.messages, o.pending, o.sent, o.delivered, o.failed, o.cancelled, o.accepted, o.replied, o.segments, o.cost, o.revenue, o.margin,
             o.without_margin
        from public.agent_sms_rollups o left join public.agent_deployments d on d.id = o.deployment_id
       where o.starts_at >= p_from and o.starts_at < p_until
      union all
      select t.grain, t.starts_at, t.agent_type_id, t.cost_currency, t.revenue_currency,
             -t.messages, -t.pending, -t.sent, -t.delivered, -t.failed, -t.cancelled, -t.accepted, -t.replied, -t.segments, -t.cost, -t.revenue,
             -t.margin, -t.without_margin
        from public.agent_sms_totals t where t.starts_at >= p_from and t.starts_at < p_until
    ) x
   group by x.grain, x.starts_at, x.agent_type_id, x.cost_currency, x.revenue_currency
  having 0 <> any (array[sum(x.messages), sum(x.pending), sum(x.sent), sum(x.delivered), sum(x.failed), sum(x.cancelled), sum(x.accepted),
                         sum(x.replied), sum(x.segments), sum(x.cost), sum(x.revenue), sum(x.margin), sum(x.without_margin)]);
end
$$;
comment on function private.check_sms_totals is
  'What agent_sms_totals lacks of agent_sms_rollups, or has too much with a minus. No row: all is right. Reads sums, no message.';

-- The sums of deployments are mended first, see 20261121013200; what everybody''s lack of them is then added.
create or replace function private.rebuild_sms_rollups(p_from timestamptz default '-infinity', p_until timestamptz default 'infinity') returns integer
language plpgsql set search_path = '' as $$
declare
  v_found integer;
  v_more integer;
begin
  perform pg_advisory_xact_lock(hashtextextended('ihuza:sms_rollups', 20261121));
  -- One statement sees rows, sums and changes as of the same moment, and only adds what is missing: nobody who writes meanwhile is in the way.
  with found as materialized (
    select f.* from private.check_sms_rollups(p_from, p_until) f
  ), hours as (
    insert into public.agent_sms_changes (deployment_id, starts_at, client_id, cost_currency, revenue_currency,
      messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select f.deployment_id, f.starts_at, f.client_id, f.cost_currency, f.revenue_currency,
           f.messages, f.pending, f.sent, f.delivered, f.failed, f.cancelled, f.accepted, f.replied, f.segments, f.cost, f.revenue, f.margin,
           f.without_margin
      from found f where f.grain = 'hour'
  ), larger as (
    insert into public.agent_sms_rollups as r (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency,
      messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select f.deployment_id, f.grain, f.starts_at, f.client_id, f.cost_currency, f.revenue_currency,
           f.messages, f.pending, f.sent, f.delivered, f.failed, f.cancelled, f.accepted, f.replied, f.segments, f.cost, f.revenue, f.margin,
           f.without_margin
      from found f where f.grain <> 'hour'
    on conflict (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency) do update
      set messages = r.messages + excluded.messages, pending = r.pending + excluded.pending, sent = r.sent + excluded.sent,
          delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed, cancelled = r.cancelled + excluded.cancelled,
          accepted = r.accepted + excluded.accepted, replied = r.replied + excluded.replied, segments = r.segments + excluded.segments,
          cost = r.cost + excluded.cost, revenue = r.revenue + excluded.revenue, margin = r.margin + excluded.margin,
          without_margin = r.without_margin + excluded.without_margin
  )
  select count(*) into v_found from found;
  with found as materialized (
    -- Whole months, as the sums of deployments were mended.
    select f.* from private.check_sms_totals(date_trunc('month', p_from, 'UTC'),
      case when isfinite(p_until) then date_trunc('month', date_trunc('month', p_until, 'UTC') + interval '768 hours', 'UTC') else p_until end) f
  ), added as (
    insert into public.agent_sms_totals as r (grain, starts_at, agent_type_id, cost_currency, revenue_currency,
      messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
    select f.grain, f.starts_at, f.agent_type_id, f.cost_currency, f.revenue_currency,
           f.messages, f.pending, f.sent, f.delivered, f.failed, f.cancelled, f.accepted, f.replied, f.segments, f.cost, f.revenue, f.margin,
           f.without_margin
      from found f
    on conflict (grain, starts_at, agent_type_id, cost_currency, revenue_currency) do update
      set messages = r.messages + excluded.messages, pending = r.pending + excluded.pending, sent = r.sent + excluded.sent,
          delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed, cancelled = r.cancelled + excluded.cancelled,
          accepted = r.accepted + excluded.accepted, replied = r.replied + excluded.replied, segments = r.segments + excluded.segments,
          cost = r.cost + excluded.cost, revenue = r.revenue + excluded.revenue, margin = r.margin + excluded.margin,
          without_margin = r.without_margin + excluded.without_margin
  )
  select count(*) into v_more from found;
  return v_found + v_more;
end
$$;
comment on function private.rebuild_sms_rollups is
  'Mends what private.check_sms_rollups and private.check_sms_totals find, while others write; how many sums were wrong. After rows were loaded past the triggers, too.';

create or replace function private.purge_agent_sms(p_now timestamptz, p_limit integer default 2000) returns integer
language plpgsql set search_path = '' as $$
declare
  v_client record;
  v_round integer;
  v_purged integer := 0;
  v_oldest timestamptz;
begin
  for v_client in
    select c.id, p_now - make_interval(months => coalesce(
             case when c.settings ->> 'sms_retention_months' ~ '^[1-9][0-9]{0,3}$' then (c.settings ->> 'sms_retention_months')::integer end, 36)) as horizon
      from public.clients c order by c.id
  loop
    exit when v_purged >= p_limit;
    v_oldest := least(v_oldest, v_client.horizon);
    delete from public.agent_sms where id in (
      select s.id from public.agent_sms s where s.client_id = v_client.id and s.sent_at < v_client.horizon
       order by s.sent_at limit p_limit - v_purged for update skip locked);
    get diagnostics v_round = row_count;
    v_purged := v_purged + v_round;
    -- Sums that have come to nothing.
    delete from public.agent_sms_rollups r
     where r.client_id = v_client.id and r.grain in ('hour', 'day', 'month') and r.starts_at < v_client.horizon - interval '768 hours'
       and 0 = all (array[r.messages, r.pending, r.sent, r.delivered, r.failed, r.cancelled, r.accepted, r.replied, r.segments, r.cost, r.revenue,
                           r.margin, r.without_margin]);
  end loop;
  -- Everybody's, from the time on of which no client keeps anything.
  if v_purged < p_limit then
    delete from public.agent_sms_totals r
     where r.grain in ('hour', 'day', 'month') and r.starts_at < v_oldest - interval '768 hours'
       and 0 = all (array[r.messages, r.pending, r.sent, r.delivered, r.failed, r.cancelled, r.accepted, r.replied, r.segments, r.cost, r.revenue,
                           r.margin, r.without_margin]);
  end if;
  return v_purged;
end
$$;

create or replace function private.sms_pieces(p_from timestamptz, p_until timestamptz)
returns table (grain text, piece_from timestamptz, piece_until timestamptz, sign integer)
language plpgsql immutable rows 7 set search_path = '' as $$
declare
  -- Both ends to the nearest hour: of a begun hour the rows of its lesser part are counted, and added to the sums or taken from them.
  v_hours_from constant timestamptz := date_trunc('hour', p_from + interval '30 minutes', 'UTC');
  v_hours_until constant timestamptz := date_trunc('hour', p_until + interval '30 minutes', 'UTC');
  v_days_from timestamptz := date_trunc('day', v_hours_from, 'UTC');
  v_days_until timestamptz := date_trunc('day', v_hours_until, 'UTC');
  v_months_from timestamptz;
  v_months_until timestamptz;
begin
  if v_hours_from >= v_hours_until then
    return query select 'row', p_from, p_until, 1 where p_from < p_until;
    return;
  end if;
  -- What is whole is taken from sums, as large as they come: from .. hours .. days .. months .. days .. hours .. until.
  -- Lengths in hours: a day's length depends on the zone of whoever asks.
  if v_days_from < v_hours_from then
    v_days_from := v_days_from + interval '24 hours';
  end if;
  if v_days_from >= v_days_until then
    v_days_from := v_hours_until;
    v_days_until := v_hours_until;
  end if;
  v_months_from := date_trunc('month', v_days_from, 'UTC');
  v_months_until := date_trunc('month', v_days_until, 'UTC');
  if v_months_from < v_days_from then
    v_months_from := date_trunc('month', v_months_from + interval '768 hours', 'UTC');
  end if;
  if v_months_from >= v_months_until then
    v_months_from := v_days_until;
    v_months_until := v_days_until;
  end if;
  return query
  select * from (values ('month', v_months_from, v_months_until, 1), ('day', v_days_from, v_months_from, 1), ('day', v_months_until, v_days_until, 1),
                        ('hour', v_hours_from, v_days_from, 1), ('hour', v_days_until, v_hours_until, 1),
                        ('row', p_from, v_hours_from, 1), ('row', v_hours_from, p_from, -1),
                        ('row', v_hours_until, p_until, 1), ('row', p_until, v_hours_until, -1)) p (grain, piece_from, piece_until, sign)
   where p.piece_from < p.piece_until;
end
$$;
comment on function private.sms_pieces is
  'A period in as few pieces as sums allow: whole months, odd days, odd hours; row: what is missing at both ends, or with sign -1 too much, of which only the rows themselves can tell.';

create or replace function private.sms_sums(p_deployments uuid[], p_from timestamptz, p_until timestamptz) returns setof public.agent_sms_changes
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
  v_hours_from timestamptz;
  v_hours_until timestamptz;
begin
  select min(p.piece_from), max(p.piece_until) into v_hours_from, v_hours_until
    from private.sms_pieces(p_from, p_until) p where p.grain <> 'row';
  return query
  select null::bigint, null::uuid, p_from, null::uuid, x.cost_currency, x.revenue_currency,
         sum(x.messages)::bigint, sum(x.pending)::bigint, sum(x.sent)::bigint, sum(x.delivered)::bigint, sum(x.failed)::bigint,
         sum(x.cancelled)::bigint, sum(x.accepted)::bigint, sum(x.replied)::bigint, sum(x.segments)::bigint, sum(x.cost)::numeric(20,6),
         sum(x.revenue)::numeric(20,6), sum(x.margin)::numeric(20,6), sum(x.without_margin)::bigint, null::timestamptz
    from (
      select r.*
        from private.sms_pieces(p_from, p_until) p
       -- The offset keeps it one look into the index a piece.
       cross join lateral (
         select o.cost_currency, o.revenue_currency,
                o.messages, o.pending, o.sent, o.delivered, o.failed, o.cancelled, o.accepted, o.replied, o.segments, o.cost, o.revenue, o.margin,
                o.without_margin
           from public.agent_sms_rollups o
          where o.deployment_id = any (p_deployments) and o.grain = p.grain and o.starts_at >= p.piece_from and o.starts_at < p.piece_until
         offset 0) r
       where p.grain <> 'row'
      union all
      -- What no fold has taken up yet.
      select c.cost_currency, c.revenue_currency,
             c.messages, c.pending, c.sent, c.delivered, c.failed, c.cancelled, c.accepted, c.replied, c.segments, c.cost, c.revenue, c.margin,
             c.without_margin
        from public.agent_sms_changes c
       where c.deployment_id = any (p_deployments) and c.starts_at >= v_hours_from and c.starts_at < v_hours_until
      union all
      -- The begun hours at both ends, row by row.
      select e.cost_currency, e.revenue_currency,
             p.sign * e.messages, p.sign * e.pending, p.sign * e.sent, p.sign * e.delivered, p.sign * e.failed, p.sign * e.cancelled,
             p.sign * e.accepted, p.sign * e.replied, p.sign * e.segments, p.sign * e.cost, p.sign * e.revenue, p.sign * e.margin,
             p.sign * e.without_margin
        from private.sms_pieces(p_from, p_until) p
       cross join lateral private.recount_sms(p_deployments, p.piece_from, p.piece_until) e
       where p.grain = 'row'
    ) x
   group by x.cost_currency, x.revenue_currency
  having sum(x.messages) <> 0;
end
$$;

create or replace function private.sms_totals(p_kinds uuid[], p_from timestamptz, p_until timestamptz) returns setof public.agent_sms_changes
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
  v_hours_from timestamptz;
  v_hours_until timestamptz;
begin
  select min(p.piece_from), max(p.piece_until) into v_hours_from, v_hours_until
    from private.sms_pieces(p_from, p_until) p where p.grain <> 'row';
  return query
  select null::bigint, null::uuid, p_from, null::uuid, x.cost_currency, x.revenue_currency,
         sum(x.messages)::bigint, sum(x.pending)::bigint, sum(x.sent)::bigint, sum(x.delivered)::bigint, sum(x.failed)::bigint,
         sum(x.cancelled)::bigint, sum(x.accepted)::bigint, sum(x.replied)::bigint, sum(x.segments)::bigint, sum(x.cost)::numeric(20,6),
         sum(x.revenue)::numeric(20,6), sum(x.margin)::numeric(20,6), sum(x.without_margin)::bigint, null::timestamptz
    from (
      select r.*
        from private.sms_pieces(p_from, p_until) p
       cross join lateral (
         select o.cost_currency, o.revenue_currency,
                o.messages, o.pending, o.sent, o.delivered, o.failed, o.cancelled, o.accepted, o.replied, o.segments, o.cost, o.revenue, o.margin,
                o.without_margin
           from public.agent_sms_totals o
          where o.grain = p.grain and o.starts_at >= p.piece_from and o.starts_at < p.piece_until and (p_kinds is null or o.agent_type_id = any (p_kinds))
         offset 0) r
       where p.grain <> 'row'
      union all
      select c.cost_currency, c.revenue_currency,
             c.messages, c.pending, c.sent, c.delivered, c.failed, c.cancelled, c.accepted, c.replied, c.segments, c.cost, c.revenue, c.margin,
             c.without_margin
        from public.agent_sms_changes c
       where c.starts_at >= v_hours_from and c.starts_at < v_hours_until
         and (p_kinds is null or c.deployment_id in (select d.id from public.agent_deployments d where d.agent_type_id = any (p_kinds)))
      union all
      -- Row by row: first alike with alike, so that there is little to add up of each row.
      select coalesce(s.cost_currency, ''), coalesce(s.revenue_currency, ''), p.sign * s.rows, p.sign * case s.status when 'pending' then s.rows else 0 end,
             p.sign * case s.status when 'sent' then s.rows else 0 end, p.sign * case s.status when 'delivered' then s.rows else 0 end,
             p.sign * case s.status when 'failed' then s.rows else 0 end, p.sign * case s.status when 'cancelled' then s.rows else 0 end,
             p.sign * case when s.taken then s.rows else 0 end, p.sign * case when s.taken and s.answered then s.rows else 0 end,
             p.sign * coalesce(s.segments, 0), p.sign * coalesce(s.cost, 0), p.sign * coalesce(s.revenue, 0), p.sign * coalesce(s.margin, 0),
             p.sign * (s.rows - s.with_margin)
        from private.sms_pieces(p_from, p_until) p
       cross join lateral (
         select r.cost_currency::text, r.revenue_currency::text, r.status,
                r.status in ('sent', 'delivered') or r.status = 'failed' and r.provider_message_sid is not null as taken, r.replied_at is not null as answered,
                count(*) as rows, sum(r.segments) as segments, sum(r.cost) as cost, sum(r.revenue) as revenue, sum(r.margin) as margin, count(r.margin) as with_margin
           from public.agent_sms r
          where r.sent_at >= p.piece_from and r.sent_at < p.piece_until
            and (p_kinds is null or r.deployment_id in (select d.id from public.agent_deployments d where d.agent_type_id = any (p_kinds)))
          group by 1, 2, 3, 4, 5) s
       where p.grain = 'row'
    ) x
   group by x.cost_currency, x.revenue_currency
  having sum(x.messages) <> 0;
end
$$;
comment on function private.sms_totals is
  'What private.sms_sums says, of all deployments of some kinds; null: of everybody. Asks no policy of rows: for who sees all of them.';

create or replace function private.sms_figures(p_sums public.agent_sms_changes[], p_from timestamptz, p_until timestamptz) returns jsonb
language plpgsql immutable set search_path = '' as $$
declare
  v_answer jsonb;
begin
  select jsonb_build_object(
           'start', p_from, 'end', p_until,
           'messages', s.messages, 'pending', s.pending, 'sent', s.sent, 'delivered', s.delivered, 'failed', s.failed, 'cancelled', s.cancelled,
           'accepted', s.accepted, 'replied', s.replied, 'segments', s.segments,
           'accepted_rate', private.percent_of(s.accepted, s.sent + s.delivered + s.failed),
           'delivery_rate_of_accepted', private.percent_of(s.delivered, s.accepted),
           'delivery_rate_of_settled', private.percent_of(s.delivered, s.delivered + s.failed),
           'failure_rate', private.percent_of(s.failed, s.sent + s.delivered + s.failed),
           'response_rate', private.percent_of(s.replied, s.accepted),
           'without_margin', s.without_margin)
    into v_answer
    from (select coalesce(sum(u.messages), 0)::bigint as messages, coalesce(sum(u.pending), 0)::bigint as pending,
                 coalesce(sum(u.sent), 0)::bigint as sent, coalesce(sum(u.delivered), 0)::bigint as delivered,
                 coalesce(sum(u.failed), 0)::bigint as failed, coalesce(sum(u.cancelled), 0)::bigint as cancelled,
                 coalesce(sum(u.accepted), 0)::bigint as accepted, coalesce(sum(u.replied), 0)::bigint as replied,
                 coalesce(sum(u.segments), 0)::bigint as segments, coalesce(sum(u.without_margin), 0)::bigint as without_margin
            from unnest(p_sums) u) s;
  return v_answer || jsonb_build_object('by_currency', coalesce((
    select jsonb_object_agg(c.currency, jsonb_strip_nulls(jsonb_build_object(
             'cost', trim_scale(c.cost), 'revenue', trim_scale(c.revenue), 'margin', trim_scale(c.margin))))
      from (select m.currency, sum(m.cost) as cost, sum(m.revenue) as revenue, sum(m.margin) as margin
              from (select u.cost_currency as currency, u.cost, null::numeric as revenue, null::numeric as margin from unnest(p_sums) u
                    union all
                    select u.revenue_currency, null, u.revenue, case when u.without_margin < u.messages then u.margin end from unnest(p_sums) u) m
             where m.currency <> ''
             group by m.currency) c), '{}'));
end
$$;
comment on function private.sms_figures is 'One period of get_sms_metrics, from its sums; rates in percent, amounts by currency.';

create or replace function public.get_sms_metrics(
  p_start timestamptz, p_end timestamptz, p_client_id uuid default null, p_deployment_id text default null, p_agent_type_name text default null
) returns jsonb language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
  v_deployment_id constant uuid := private.uuid_or_null(p_deployment_id);
  v_deployments uuid[];
  v_before_start timestamptz;
  v_kinds uuid[];
  v_now jsonb;
  v_before jsonb;
  v_plain jsonb;
  v_plain_before jsonb;
  v_costs text[];
  v_revenues text[];
begin
  if p_start is null or p_end is null then
    raise exception using errcode = 'PT400', message = 'field p_start or p_end is missing';
  end if;
  if not isfinite(p_start) or not isfinite(p_end) or p_start >= p_end then
    raise exception using errcode = 'PT400', message = 'p_start must lie before p_end, and neither at infinity';
  end if;
  -- Whoever asks sees no deployment but those of their clients, and so no figure of others.
  v_deployments := array(
    select d.id from public.agent_deployments d
     where (p_client_id is null or d.client_id = p_client_id)
       and (p_deployment_id is null or d.id = v_deployment_id or v_deployment_id is null and d.name = p_deployment_id)
       and (p_agent_type_name is null or d.agent_type_id in (select t.id from public.agent_types t where t.name = lower(p_agent_type_name))));
  v_before_start := p_start - make_interval(secs => extract(epoch from p_end - p_start)::double precision);
  if p_client_id is null and p_deployment_id is null and not row_security_active('public.agent_sms') then
    -- All of them, or all of a kind: by whoever no policy narrows, for whom nothing has to be left out.
    if p_agent_type_name is not null then
      v_kinds := array(select t.id from public.agent_types t where t.name = lower(p_agent_type_name));
    end if;
    v_now := private.sms_figures(array(select s from private.sms_totals(v_kinds, p_start, p_end) s), p_start, p_end);
    v_before := private.sms_figures(array(select s from private.sms_totals(v_kinds, v_before_start, p_start) s), v_before_start, p_start);
  else
    v_now := private.sms_figures(array(select s from private.sms_sums(v_deployments, p_start, p_end) s), p_start, p_end);
    v_before := private.sms_figures(array(select s from private.sms_sums(v_deployments, v_before_start, p_start) s), v_before_start, p_start);
  end if;

  -- Amounts in one currency stand there plainly as well.
  select array_agg(distinct c.key) filter (where c.value ? 'cost'), array_agg(distinct c.key) filter (where c.value ? 'revenue')
    into v_costs, v_revenues
    from (select * from jsonb_each(v_now -> 'by_currency') union all select * from jsonb_each(v_before -> 'by_currency')) c;
  select jsonb_build_object('cost_currency', x.cost_currency, 'revenue_currency', x.revenue_currency,
           'cost', case when x.cost_currency is not null then coalesce(v_now #> array['by_currency', x.cost_currency, 'cost'], '0') end,
           'revenue', case when x.revenue_currency is not null then coalesce(v_now #> array['by_currency', x.revenue_currency, 'revenue'], '0') end,
           'margin', case when x.revenue_currency is not null and not v_now -> 'by_currency' ? x.revenue_currency then '0'
                          else v_now #> array['by_currency', x.revenue_currency, 'margin'] end),
         jsonb_build_object('cost_currency', x.cost_currency, 'revenue_currency', x.revenue_currency,
           'cost', case when x.cost_currency is not null then coalesce(v_before #> array['by_currency', x.cost_currency, 'cost'], '0') end,
           'revenue', case when x.revenue_currency is not null then coalesce(v_before #> array['by_currency', x.revenue_currency, 'revenue'], '0') end,
           'margin', case when x.revenue_currency is not null and not v_before -> 'by_currency' ? x.revenue_currency then '0'
                          else v_before #> array['by_currency', x.revenue_currency, 'margin'] end)
    into v_plain, v_plain_before
    from (select case when cardinality(v_costs) = 1 then v_costs[1] end as cost_currency,
                 case when cardinality(v_revenues) = 1 then v_revenues[1] end as revenue_currency) x;
  v_now := v_now || v_plain;
  v_before := v_before || v_plain_before;
  return v_now || jsonb_build_object(
    'deployments', cardinality(v_deployments),
    'previous', v_before,
    'change', (
      select jsonb_object_agg(k, private.change_since((v_now ->> k)::numeric, (v_before ->> k)::numeric))
        from unnest(array['messages', 'pending', 'sent', 'delivered', 'failed', 'cancelled', 'accepted', 'replied', 'segments', 'without_margin',
               'accepted_rate', 'delivery_rate_of_accepted', 'delivery_rate_of_settled', 'failure_rate', 'response_rate', 'cost', 'revenue', 'margin']) k)
      || jsonb_build_object('by_currency', coalesce((
        select jsonb_object_agg(c.currency, (
                 select jsonb_object_agg(a, private.change_since(coalesce((v_now #>> array['by_currency', c.currency, a])::numeric, 0),
                          coalesce((v_before #>> array['by_currency', c.currency, a])::numeric, 0)))
                   from unnest(array['cost', 'revenue', 'margin']) a
                  where v_now #> array['by_currency', c.currency, a] is not null or v_before #> array['by_currency', c.currency, a] is not null))
          from (select jsonb_object_keys(v_now -> 'by_currency') union select jsonb_object_keys(v_before -> 'by_currency')) c (currency)), '{}')));
end
$$;
drop function if exists private.sms_period(uuid[], timestamptz, timestamptz);

revoke execute on function private.kind_of_totals(uuid), private.fold_sms_changes(integer), private.move_sms_totals(), private.forget_sms_rollups(),
  private.check_sms_totals(timestamptz, timestamptz), private.rebuild_sms_rollups(timestamptz, timestamptz), private.purge_agent_sms(timestamptz, integer),
  private.sms_pieces(timestamptz, timestamptz), private.sms_sums(uuid[], timestamptz, timestamptz), private.sms_totals(uuid[], timestamptz, timestamptz),
  private.sms_figures(public.agent_sms_changes[], timestamptz, timestamptz), public.get_sms_metrics(timestamptz, timestamptz, uuid, text, text)
  from public, anon, authenticated;
grant execute on function private.kind_of_totals(uuid), private.fold_sms_changes(integer), private.move_sms_totals(), private.forget_sms_rollups(),
  private.check_sms_totals(timestamptz, timestamptz), private.rebuild_sms_rollups(timestamptz, timestamptz), private.purge_agent_sms(timestamptz, integer),
  private.sms_pieces(timestamptz, timestamptz), private.sms_sums(uuid[], timestamptz, timestamptz), private.sms_totals(uuid[], timestamptz, timestamptz),
  private.sms_figures(public.agent_sms_changes[], timestamptz, timestamptz), public.get_sms_metrics(timestamptz, timestamptz, uuid, text, text)
  to service_role;
grant execute on function private.sms_pieces(timestamptz, timestamptz), private.sms_sums(uuid[], timestamptz, timestamptz),
  private.sms_figures(public.agent_sms_changes[], timestamptz, timestamptz), public.get_sms_metrics(timestamptz, timestamptz, uuid, text, text)
  to authenticated;

-- What is folded already. No fold comes between: they all take this lock, and leave it to another minute where they do not get it.
select pg_advisory_xact_lock(hashtextextended('ihuza:sms_rollups', 20261121));
insert into public.agent_sms_totals as r (grain, starts_at, agent_type_id, cost_currency, revenue_currency,
  messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, cost, revenue, margin, without_margin)
select f.grain, f.starts_at, f.agent_type_id, f.cost_currency, f.revenue_currency,
       f.messages, f.pending, f.sent, f.delivered, f.failed, f.cancelled, f.accepted, f.replied, f.segments, f.cost, f.revenue, f.margin,
       f.without_margin
  from private.check_sms_totals() f
on conflict (grain, starts_at, agent_type_id, cost_currency, revenue_currency) do update
  set messages = r.messages + excluded.messages, pending = r.pending + excluded.pending, sent = r.sent + excluded.sent,
      delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed, cancelled = r.cancelled + excluded.cancelled,
      accepted = r.accepted + excluded.accepted, replied = r.replied + excluded.replied, segments = r.segments + excluded.segments,
      cost = r.cost + excluded.cost, revenue = r.revenue + excluded.revenue, margin = r.margin + excluded.margin,
      without_margin = r.without_margin + excluded.without_margin;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019000'::text $$;

notify pgrst, 'reload schema';
