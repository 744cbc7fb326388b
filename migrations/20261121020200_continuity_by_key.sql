-- 20261121020200_continuity_by_key.sql
-- session_continuity looks each session up by its key. As a join it was the planner's choice, and where the sample of an ANALYZE made
-- the day look busier than it was, it read all sessions that ever were, each minute with the sweep.
-- Safe to run again. Locks no table. Undo: apply public.v_success_metrics of 20261121019530.
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
      cross join lateral (
        select s.id from public.omnichannel_sessions s
         where s.id = o.session_id and (s.ended_at is null or s.ended_at > i.occurred_at) limit 1) s
      where i.client_id = c.id and i.created_at > now() - interval '24 hours' and i.direction = 'inbound' and i.kind = 'conversation'
        and i.channel <> 'voice'
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
             select greatest(extract(epoch from coalesce(d.arrived_at, now()) - v.ended_at), 0) as seconds
               from public.voice_calls v
              -- The first of its messages to arrive; where a carrier reports no arrival, when it took the message.
              cross join lateral (
                select min(coalesce(least(l.delivered_at, l.read_at), l.sent_at)) as arrived_at, bool_or(l.status = 'suppressed') as suppressed
                  from public.message_delivery_log l
                 where l.call_id = v.id and l.direction = 'outbound' and l.purpose = 'call_summary') d
              where v.client_id = c.id and v.started_at > now() - interval '27 hours' and v.ended_at > now() - interval '24 hours'
                -- One that is missing after ten minutes has taken as long as it is missing. None is due to a withheld number, to nobody who
                -- answered, to who is erased, or where a rule held it back.
                and (d.arrived_at is not null
                  or v.ended_at < now() - interval '10 minutes' and v.status = 'completed' and v.erased_at is null and d.suppressed is not true
                     and case v.direction when 'outbound' then v.to_number else v.from_number end is not null)) t on true
          group by n.metric) x
   ) m;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121020200'::text $$;

notify pgrst, 'reload schema';
