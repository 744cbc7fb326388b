-- 20261121013230_success_metrics.sql
-- Whether the promises are kept: delivery rates, what success was said to be, and alerts where it is not reached; failures and costs of
-- SMS a client; and how long rows of agent_sms are kept.
-- Safe to run again. Locks no table. Undo: drop both views and the functions, and apply private.keep_sms_figures of 20261121013200.

create or replace view public.v_delivery_rates with (security_invoker = true) as
  select l.client_id, l.channel, count(*) as messages,
         count(*) filter (where l.status in ('queued', 'sending')) as waiting,
         count(*) filter (where l.status = 'suppressed') as suppressed,
         count(*) filter (where x.tried) as tried,
         count(*) filter (where x.accepted) as accepted,
         count(*) filter (where x.delivered) as delivered,
         count(*) filter (where x.failed) as failed,
         round(100.0 * count(*) filter (where x.accepted) / nullif(count(*) filter (where x.tried), 0), 2) as accepted_rate,
         round(100.0 * count(*) filter (where x.delivered) / nullif(count(*) filter (where x.accepted), 0), 2) as delivered_rate,
         round(100.0 * count(*) filter (where x.delivered) / nullif(count(*) filter (where x.delivered or x.failed), 0), 2) as delivered_rate_of_settled
    from public.message_delivery_log l
   cross join lateral (
     select l.status not in ('queued', 'sending', 'suppressed') as tried,
            l.status in ('sent', 'delivered', 'read') or l.status in ('failed', 'undeliverable', 'expired') and l.provider_message_id is not null as accepted,
            l.status in ('delivered', 'read') as delivered,
            l.status in ('failed', 'undeliverable', 'expired') as failed
   ) x
   where l.direction = 'outbound' and l.created_at > now() - interval '24 hours'
   group by l.client_id, l.channel;
comment on view public.v_delivery_rates is
  'Messages of the last 24 hours by client and channel: how many providers took (accepted_rate) and how many of these arrived (delivered_rate), in percent. A rate by status, which can only be 0 or 100, this is not.';
comment on column public.v_delivery_rates.messages is 'Outbound, written in the last 24 hours.';
comment on column public.v_delivery_rates.waiting is 'Not sent yet.';
comment on column public.v_delivery_rates.suppressed is 'Held back by a rule: opted out, quiet hours, budget, limits.';
comment on column public.v_delivery_rates.tried is 'All others.';
comment on column public.v_delivery_rates.accepted is 'Of those tried, what a provider took, whatever became of it.';
comment on column public.v_delivery_rates.delivered is 'Of those tried, what arrived.';
comment on column public.v_delivery_rates.failed is 'Of those tried, what did not arrive and will not.';
comment on column public.v_delivery_rates.accepted_rate is 'Percent: accepted of tried; null of nothing.';
comment on column public.v_delivery_rates.delivered_rate is 'Percent: delivered of accepted; null of nothing. What is on its way or never reported counts as not arrived.';
comment on column public.v_delivery_rates.delivered_rate_of_settled is 'Percent: delivered of delivered and failed; null of nothing.';

create or replace view public.v_success_metrics with (security_invoker = true) as
  select c.id as client_id, m.metric, round(m.value, 2) as value, m.unit, m.target, m.sample,
         case when m.value is null or m.target is null then null when m.unit = 'seconds' then m.value < m.target else m.value > m.target end as met,
         24 as window_hours
    from public.clients c
   cross join lateral (
     select 'delivery_rate' as metric, 100.0 * count(*) filter (where l.status in ('delivered', 'read')) / nullif(count(*), 0) as value,
            'percent' as unit, 95::numeric as target, count(*) as sample
       from public.message_delivery_log l
      where l.client_id = c.id and l.created_at > now() - interval '24 hours' and l.direction = 'outbound'
        and l.status in ('delivered', 'read', 'failed', 'undeliverable', 'expired')
     union all
     -- Of answers to something that we wrote, where the session it was written in still ran.
     select 'session_continuity', 100.0 * count(*) filter (where i.session_id = o.session_id) / nullif(count(*), 0), 'percent', 90, count(*)
       from public.conversation_messages i
      cross join lateral (
        select w.session_id from public.conversation_messages w
         where w.profile_id = i.profile_id and w.client_id = i.client_id and w.direction = 'outbound' and w.channel <> 'voice'
           and w.occurred_at < i.occurred_at and w.occurred_at > i.occurred_at - interval '72 hours'
         order by w.occurred_at desc, w.seq desc limit 1) o
       join public.omnichannel_sessions s on s.id = o.session_id
      where i.client_id = c.id and i.created_at > now() - interval '24 hours' and i.direction = 'inbound' and i.kind = 'conversation'
        and i.channel <> 'voice' and (s.ended_at is null or s.ended_at > i.occurred_at)
     union all
     select 'cross_channel_use', 100.0 * count(distinct s.profile_id) filter (where cardinality(s.active_channels) > 1) / nullif(count(distinct s.profile_id), 0),
            'percent', null, count(distinct s.profile_id)
       from public.omnichannel_sessions s
      where s.client_id = c.id and s.updated_at > now() - interval '24 hours'
     union all
     select x.metric, case x.metric when 'call_to_summary_seconds' then x.median else x.slow end, 'seconds',
            case x.metric when 'call_to_summary_seconds' then 10 end, x.sample
       from (
         select n.metric, percentile_disc(0.5) within group (order by t.seconds) as median,
                percentile_disc(0.95) within group (order by t.seconds) as slow, count(t.seconds) as sample
           from (values ('call_to_summary_seconds'), ('call_to_summary_seconds_p95')) n (metric)
           left join lateral (
             select greatest(extract(epoch from d.arrived_at - v.ended_at), 0) as seconds
               from public.voice_calls v
              -- The first of its messages to arrive; where a carrier reports no arrival, when it took the message.
              cross join lateral (
                select min(coalesce(least(l.delivered_at, l.read_at), l.sent_at)) as arrived_at
                  from public.message_delivery_log l
                 where l.call_id = v.id and l.direction = 'outbound' and l.purpose = 'call_summary') d
              where v.client_id = c.id and v.started_at > now() - interval '27 hours' and v.ended_at > now() - interval '24 hours'
                and d.arrived_at is not null) t on true
          group by n.metric) x
   ) m;
comment on view public.v_success_metrics is
  'What success was said to be, of each client over the last 24 hours: value beside target, met or missed. private.watch_success raises an alert where one is missed.';
comment on column public.v_success_metrics.metric is
  'delivery_rate: of messages settled, those that arrived. session_continuity: of answers to our messages, those in the same session. '
  'cross_channel_use: of people in a conversation, those who used more than one channel. call_to_summary_seconds: from the end of a call to the first summary that arrives, median; ..._p95: in 95 of 100 calls no longer.';
comment on column public.v_success_metrics.value is 'In unit; null: nothing to go by.';
comment on column public.v_success_metrics.unit is 'percent or seconds.';
comment on column public.v_success_metrics.target is 'More than that many percent, less than that many seconds; null: none was set.';
comment on column public.v_success_metrics.sample is 'How many messages, answers, people or calls it goes by.';
comment on column public.v_success_metrics.met is 'Null: no value, or no target.';
comment on column public.v_success_metrics.window_hours is 'How far it looks back.';

create or replace function private.watch_success(p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
  v_metric record;
  v_missed integer := 0;
begin
  for v_metric in
    select m.client_id, m.metric, m.value, m.unit, m.target, m.sample, m.met,
           format('success:%s:%s', m.metric, m.client_id) as dedupe_key
      from public.v_success_metrics m where m.target is not null
     order by m.client_id, m.metric
  loop
    if v_metric.met is false and v_metric.sample >= 20 then
      v_missed := v_missed + 1;
      perform private.raise_alert('success_missed', 'warning', v_metric.dedupe_key,
        format('%s of the last 24 hours is %s %s; the target is %s.', v_metric.metric, v_metric.value, v_metric.unit, v_metric.target),
        jsonb_build_object('metric', v_metric.metric, 'value', v_metric.value, 'target', v_metric.target, 'of', v_metric.sample), v_metric.client_id);
    else
      update public.alerts set resolved_at = p_now where dedupe_key = v_metric.dedupe_key and resolved_at is null;
    end if;
  end loop;
  return v_missed;
end
$$;
comment on function private.watch_success is
  'Raises an alert of each target of v_success_metrics that a client has missed (by 20 cases at least), and resolves it when that is over; how many are missed.';

create or replace function private.watch_sms_of_clients(p_percent integer, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
  v_client record;
  v_budget public.client_budgets;
  v_first timestamptz;
  v_cost numeric;
  v_kind text;
  v_raised integer := 0;
begin
  -- From sums of this hour and the one before it, so also what others send and write into agent_sms.
  for v_client in
    select c.id, coalesce(case when c.settings ->> 'sms_failure_percent' ~ '^[0-9]{1,3}$' then (c.settings ->> 'sms_failure_percent')::integer end, p_percent) as percent,
           coalesce(s.tried, 0) as tried, coalesce(s.failed, 0) as failed, 'sms_failure_rate:' || c.id as dedupe_key
      from public.clients c
     cross join lateral (
       select sum(x.sent + x.delivered + x.failed) as tried, sum(x.failed) as failed
         from (select r.sent, r.delivered, r.failed from public.agent_sms_rollups r
                where r.client_id = c.id and r.grain = 'hour' and r.starts_at > p_now - interval '2 hours' and r.starts_at <= p_now
               union all
               select a.sent, a.delivered, a.failed from public.agent_sms_changes a
                where a.client_id = c.id and a.starts_at > p_now - interval '2 hours' and a.starts_at <= p_now) x) s
     order by c.id
  loop
    if v_client.tried >= 20 and v_client.failed * 100 >= v_client.tried * v_client.percent then
      v_raised := v_raised + 1;
      perform private.raise_alert('sms_failure_rate', 'warning', v_client.dedupe_key,
        format('%s of the last %s SMS of a client failed.', v_client.failed, v_client.tried),
        jsonb_build_object('failed', v_client.failed, 'of', v_client.tried, 'percent', v_client.percent), v_client.id);
    else
      update public.alerts set resolved_at = p_now where dedupe_key = v_client.dedupe_key and resolved_at is null;
    end if;
  end loop;

  -- Budgets hold back what we send ourselves. What others send counts all the same, and somebody is to know.
  for v_budget in
    select b.* from public.client_budgets b where b.soft_limit is not null or b.hard_limit is not null order by b.client_id
  loop
    v_first := date_trunc('month', p_now at time zone v_budget.time_zone) at time zone v_budget.time_zone;
    select coalesce(sum(s.cost), 0) into v_cost
      from private.sms_sums(array(select d.id from public.agent_deployments d where d.client_id = v_budget.client_id), v_first, p_now) s
     where s.cost_currency = v_budget.currency;
    v_kind := case when v_cost > v_budget.hard_limit then 'sms_cost_hard' when v_cost > v_budget.soft_limit then 'sms_cost_soft' end;
    -- Once a month each, and not what the budget itself has told already.
    if v_kind is not null and not exists (
         select from public.alerts a where a.dedupe_key = format('%s:%s:%s', v_kind, v_budget.client_id, (v_first at time zone v_budget.time_zone)::date))
       and not (v_kind = 'sms_cost_soft' and exists (
         select from public.budget_months m
          where m.client_id = v_budget.client_id and m.month = (v_first at time zone v_budget.time_zone)::date and m.currency = v_budget.currency
            and m.soft_alerted_at is not null)) then
      v_raised := v_raised + 1;
      perform private.raise_alert(v_kind, case v_kind when 'sms_cost_hard' then 'critical' else 'warning' end,
        format('%s:%s:%s', v_kind, v_budget.client_id, (v_first at time zone v_budget.time_zone)::date),
        case v_kind when 'sms_cost_hard' then 'The SMS of a client have cost more than its budget of the month, those of other senders included.'
                    else 'The SMS of a client have passed the soft limit of its budget of the month, those of other senders included.' end,
        jsonb_build_object('month', (v_first at time zone v_budget.time_zone)::date, 'currency', v_budget.currency, 'cost', trim_scale(v_cost),
          'soft_limit', v_budget.soft_limit, 'hard_limit', v_budget.hard_limit), v_budget.client_id);
    end if;
  end loop;
  return v_raised;
end
$$;
comment on function private.watch_sms_of_clients is
  'Alerts of each client: so many percent of its SMS failed (20 at least; setting sms_failure_percent of clients), or they cost more in a month than client_budgets allows; how many hold.';

create or replace function private.purge_agent_sms(p_now timestamptz, p_limit integer default 2000) returns integer
language plpgsql set search_path = '' as $$
declare
  v_client record;
  v_round integer;
  v_purged integer := 0;
begin
  for v_client in
    select c.id, p_now - make_interval(months => coalesce(
             case when c.settings ->> 'sms_retention_months' ~ '^[1-9][0-9]{0,3}$' then (c.settings ->> 'sms_retention_months')::integer end, 36)) as horizon
      from public.clients c order by c.id
  loop
    exit when v_purged >= p_limit;
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
  return v_purged;
end
$$;
comment on function private.purge_agent_sms is
  'Deletes SMS older than 36 months, or as many as the setting sms_retention_months of clients says, the oldest first, so many at once; how many. Their sums go with them: export what is to be kept.';

create or replace function private.keep_sms_figures(p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_folded integer := 0;
  v_round integer;
  v_purged integer;
  v_watched integer := 0;
  -- The sweep has other things to do, and a limit of time; what is left waits a minute.
  v_ends constant timestamptz := clock_timestamp() + interval '2 seconds';
begin
  loop
    v_round := private.fold_sms_changes(5000);
    v_folded := v_folded + v_round;
    exit when v_round < 5000 or clock_timestamp() > v_ends;
  end loop;
  v_purged := private.purge_agent_sms(p_now);
  -- Every quarter of an hour: they change slowly, and cost a look at a day.
  if extract(minute from p_now)::integer % 15 = 0 then
    v_watched := private.watch_sms_of_clients(30, p_now) + private.watch_success(p_now);
  end if;
  return jsonb_build_object('folded', v_folded, 'purged', v_purged, 'alerts', v_watched);
exception when others then
  -- Figures can wait; what else the sweep has found cannot.
  perform private.raise_alert('sms_figures', 'warning', 'sms_figures', 'The figures of SMS could not be brought up to date.', jsonb_build_object('code', sqlstate));
  return jsonb_build_object('code', sqlstate);
end
$$;
comment on function private.keep_sms_figures is
  'What the sweep does for agent_sms: folds sums, deletes what is too old, and each quarter of an hour looks at targets, failures and costs; {folded, purged, alerts}, or {code} of what went wrong, with an alert.';

-- What is looked up of a person, newest first.
create index if not exists idx_conversation_messages_person on public.conversation_messages (profile_id, occurred_at desc);
drop index if exists public.idx_conversation_messages_profile;

revoke all on public.v_delivery_rates, public.v_success_metrics from public, anon, authenticated;
grant select on public.v_delivery_rates, public.v_success_metrics to authenticated, service_role;
revoke execute on function private.watch_success(timestamptz), private.watch_sms_of_clients(integer, timestamptz),
  private.purge_agent_sms(timestamptz, integer), private.keep_sms_figures(timestamptz) from public, anon, authenticated;
grant execute on function private.watch_success(timestamptz), private.watch_sms_of_clients(integer, timestamptz),
  private.purge_agent_sms(timestamptz, integer), private.keep_sms_figures(timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013230'::text $$;

notify pgrst, 'reload schema';
