-- 20261121019530_what_is_missing_counts.sql
-- A summary that never came counts as one that is late, and what functions compare channels by is what private.price_of says, also of prices for any
-- provider.
-- Safe to run again. Locks no table. Undo: apply public.v_success_metrics of 20261121013230 and private.prices_in_force of 20261121013010.

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
comment on view public.v_success_metrics is
  'What success was said to be, of each client over the last 24 hours: value beside target, met or missed. private.watch_success raises an alert where one is missed.';
comment on column public.v_success_metrics.metric is
  'delivery_rate: of messages settled, those that arrived. session_continuity: of answers to our messages, those in the same session. '
  'cross_channel_use: of people in a conversation, those who used more than one channel. call_to_summary_seconds: from the end of a call to the first summary that arrives, median, one that is missing for ten minutes counts as it stands; ..._p95: in 95 of 100 calls no longer.';
comment on column public.v_success_metrics.value is 'In unit; null: nothing to go by.';
comment on column public.v_success_metrics.unit is 'percent or seconds.';
comment on column public.v_success_metrics.target is 'More than that many percent, less than that many seconds; null: none was set.';
comment on column public.v_success_metrics.sample is 'How many messages, answers, people or calls it goes by.';
comment on column public.v_success_metrics.met is 'Null: no value, or no target.';
comment on column public.v_success_metrics.window_hours is 'How far it looks back.';


create or replace function private.prices_in_force(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return coalesce((
    with listed as materialized (
      select r.client_id, r.provider, r.kind, r.prefix, r.country, r.operator, r.price, r.currency, r.valid_from
        from public.channel_prices r
       where r.side = 'cost' and (r.client_id = p_client_id or r.client_id is null)
         and r.valid_from <= now() and (r.valid_until is null or now() < r.valid_until)
    ), beginnings as (
      -- Numbers that begin alike, up to the next of these, cost alike.
      select l.prefix from listed l
      union
      select n.prefix from public.number_ranges n where n.country in (select l.country from listed l)
    ), places as materialized (
      select b.prefix, r.country, r.operator
        from beginnings b
        left join lateral (
          select n.country, n.operator from public.number_ranges n where starts_with(b.prefix, n.prefix) order by length(n.prefix) desc limit 1) r on true
    ), found as (
      -- As private.prices_of chooses, a provider that is named and a beginning each.
      select distinct on (p.provider, p.kind, b.prefix) p.provider, p.kind, b.prefix, l.price, l.currency
        from (
          select l.provider, l.kind from listed l
          union
          -- What holds for any holds for those that we send by.
          select k.provider, l.kind
            from listed l join (values ('mtn', true), ('twilio', true), ('africas_talking', true), ('whatsapp', false)) k (provider, sms)
              on l.provider = 'any' and l.kind <> 'minute' and k.sms = (l.kind = 'segment')) p
       cross join places b
        join listed l on l.kind = p.kind and l.provider in (p.provider, 'any') and starts_with(b.prefix, l.prefix)
                     and (l.country is null or l.country = b.country) and (l.operator is null or l.operator = b.operator)
       order by p.provider, p.kind, b.prefix, (l.client_id is null), length(l.prefix) desc, (l.operator is null), (l.country is null),
                (l.provider = 'any'), l.valid_from desc
    )
    select jsonb_agg(jsonb_build_object('provider', x.provider, 'kind', x.kind, 'prefix', x.prefix, 'price', trim_scale(x.price), 'currency', x.currency)
             order by x.provider, x.kind, x.prefix)
      from (
        select f.* from found f
         -- What the next shorter beginning says already is left out.
         where not exists (
           select from (select o.price, o.currency from found o
                         where o.provider = f.provider and o.kind = f.kind and o.prefix <> f.prefix and starts_with(f.prefix, o.prefix)
                         order by length(o.prefix) desc limit 1) s
            where s.price = f.price and s.currency = f.currency)
         order by f.provider, f.kind, f.prefix limit 500) x), '[]');
end
$$;
comment on function private.prices_in_force is
  'What counts for a client now on the side of cost, one price a provider, kind and prefix, the longest prefix first: what private.price_of says, for every provider that a list names and, where a list says any, for those that we send by.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019530'::text $$;

notify pgrst, 'reload schema';
