-- 20261121013210_sms_metrics.sql
-- get_sms_metrics: the figures of a period beside those of the period before it, from sums rather than rows.
-- Safe to run again. Locks no table. Undo: drop the functions.

create or replace function private.sms_sums(p_deployments uuid[], p_from timestamptz, p_until timestamptz) returns setof public.agent_sms_changes
language plpgsql stable set search_path = '' as $$
declare
  v_hours_from timestamptz := date_trunc('hour', p_from, 'UTC');
  v_hours_until timestamptz := date_trunc('hour', p_until, 'UTC');
  v_days_from timestamptz;
  v_days_until timestamptz;
  v_months_from timestamptz;
  v_months_until timestamptz;
begin
  -- What is whole is taken from sums, as large as they come: from .. hours .. days .. months .. days .. hours .. until.
  -- Lengths in hours: a day's length depends on the zone of whoever asks.
  if v_hours_from < p_from then
    v_hours_from := v_hours_from + interval '1 hour';
  end if;
  if v_hours_from >= v_hours_until then
    v_hours_from := p_until;
    v_hours_until := p_until;
  end if;
  v_days_from := date_trunc('day', v_hours_from, 'UTC');
  v_days_until := date_trunc('day', v_hours_until, 'UTC');
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
  select null::bigint, null::uuid, p_from, null::uuid, x.cost_currency, x.revenue_currency, sum(x.messages)::bigint, sum(x.pending)::bigint,
         sum(x.sent)::bigint, sum(x.delivered)::bigint, sum(x.failed)::bigint, sum(x.cancelled)::bigint, sum(x.accepted)::bigint,
         sum(x.replied)::bigint, sum(x.segments)::bigint, sum(x.cost)::numeric(20,6), sum(x.revenue)::numeric(20,6), sum(x.margin)::numeric(20,6),
         sum(x.without_margin)::bigint, null::timestamptz
    from (
      select r.*
        from (values ('month', v_months_from, v_months_until), ('day', v_days_from, v_months_from), ('day', v_months_until, v_days_until),
                     ('hour', v_hours_from, v_days_from), ('hour', v_days_until, v_hours_until)) p (grain, piece_from, piece_until)
       -- The offset keeps it one look into the index a piece.
       cross join lateral (
         select o.cost_currency, o.revenue_currency, o.messages, o.pending, o.sent, o.delivered, o.failed, o.cancelled, o.accepted, o.replied,
                o.segments, o.cost, o.revenue, o.margin, o.without_margin
           from public.agent_sms_rollups o
          where o.deployment_id = any (p_deployments) and o.grain = p.grain and o.starts_at >= p.piece_from and o.starts_at < p.piece_until
         offset 0) r
       where p.piece_from < p.piece_until
      union all
      -- What no fold has taken up yet.
      select c.cost_currency, c.revenue_currency, c.messages, c.pending, c.sent, c.delivered, c.failed, c.cancelled, c.accepted, c.replied,
             c.segments, c.cost, c.revenue, c.margin, c.without_margin
        from public.agent_sms_changes c
       where c.deployment_id = any (p_deployments) and c.starts_at >= v_hours_from and c.starts_at < v_hours_until
      union all
      -- The begun hours at both ends, row by row.
      select e.cost_currency, e.revenue_currency, e.messages, e.pending, e.sent, e.delivered, e.failed, e.cancelled, e.accepted, e.replied,
             e.segments, e.cost, e.revenue, e.margin, e.without_margin
        from (select f.* from private.recount_sms(p_deployments, p_from, v_hours_from) f
              union all select t.* from private.recount_sms(p_deployments, v_hours_until, p_until) t) e
    ) x
   group by x.cost_currency, x.revenue_currency
  having sum(x.messages) <> 0;
end
$$;
comment on function private.sms_sums is
  'Sums of these deployments from a time until just before another, a row for each pair of currencies: exact, folded or not. Reads as many rows of sums as the period has months, odd days and odd hours, and the rows of two begun hours.';

create or replace function private.percent_of(p_part numeric, p_whole numeric) returns numeric
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return trim_scale(round(100 * p_part / nullif(p_whole, 0), 2));
end
$$;
comment on function private.percent_of is 'In percent, two decimals at most; null of nothing.';

create or replace function private.change_since(p_now numeric, p_before numeric) returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return jsonb_build_object('absolute', trim_scale(p_now - p_before), 'percent', private.percent_of(p_now - p_before, abs(p_before)));
end
$$;
comment on function private.change_since is '{absolute, percent}: nulls where one is not known, no percentage of nothing.';

create or replace function private.sms_period(p_deployments uuid[], p_from timestamptz, p_until timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_sums public.agent_sms_changes[] := array(select s from private.sms_sums(p_deployments, p_from, p_until) s);
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
            from unnest(v_sums) u) s;
  return v_answer || jsonb_build_object('by_currency', coalesce((
    select jsonb_object_agg(c.currency, jsonb_strip_nulls(jsonb_build_object(
             'cost', trim_scale(c.cost), 'revenue', trim_scale(c.revenue), 'margin', trim_scale(c.margin))))
      from (select m.currency, sum(m.cost) as cost, sum(m.revenue) as revenue, sum(m.margin) as margin
              from (select u.cost_currency as currency, u.cost, null::numeric as revenue, null::numeric as margin from unnest(v_sums) u
                    union all
                    select u.revenue_currency, null, u.revenue, case when u.without_margin < u.messages then u.margin end from unnest(v_sums) u) m
             where m.currency <> ''
             group by m.currency) c), '{}'));
end
$$;
comment on function private.sms_period is 'One period of get_sms_metrics; rates in percent, amounts by currency.';

create or replace function public.get_sms_metrics(
  p_start timestamptz, p_end timestamptz, p_client_id uuid default null, p_deployment_id text default null, p_agent_type_name text default null
) returns jsonb language plpgsql stable set search_path = '' as $$
declare
  v_deployment_id constant uuid := private.uuid_or_null(p_deployment_id);
  v_deployments uuid[];
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
  v_now := private.sms_period(v_deployments, p_start, p_end);
  v_before := private.sms_period(v_deployments, p_start - make_interval(secs => extract(epoch from p_end - p_start)::double precision), p_start);

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
comment on function public.get_sms_metrics is
  'RPC: figures of SMS sent from p_start until just before p_end, of a client, a deployment (its id or name) or a kind of agent; null: all that whoever asks may see. '
  '{messages, pending, sent, delivered, failed, cancelled, accepted, replied, segments, without_margin; in percent, null of nothing: accepted_rate (of those tried), '
  'delivery_rate_of_accepted, delivery_rate_of_settled (delivered or failed), failure_rate (of those tried), response_rate (of those accepted); by_currency {RWF: {cost, revenue, margin}}, '
  'and cost, revenue, margin plainly where there is one currency; previous: the same of the period of equal length before; change: {absolute, percent} of each}.';

revoke execute on function private.sms_sums(uuid[], timestamptz, timestamptz), private.percent_of(numeric, numeric), private.change_since(numeric, numeric),
  private.sms_period(uuid[], timestamptz, timestamptz), public.get_sms_metrics(timestamptz, timestamptz, uuid, text, text) from public, anon, authenticated;
grant execute on function private.sms_sums(uuid[], timestamptz, timestamptz), private.percent_of(numeric, numeric), private.change_since(numeric, numeric),
  private.sms_period(uuid[], timestamptz, timestamptz), public.get_sms_metrics(timestamptz, timestamptz, uuid, text, text) to authenticated, service_role;
grant execute on function private.uuid_or_null(text) to authenticated;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013210'::text $$;

notify pgrst, 'reload schema';
