//! Rows of agent_sms as three years of business leave them: few clients send most, people are written to by day, a part fails,
//! some reports come late and some never, and prices have changed meanwhile.
//!
//! Everything follows from the number of the row, so that a size is the same each time.

use std::fmt::Write as _;

use anyhow::Result;
use tokio_postgres::Client;

use crate::progress::Step;

/// Rows of one statement.
const PORTION: i64 = 500_000;

/// Who sends: 120 clients, the k-th with a share of 1/k, each with one to four deployments; what they pay and are paid; and
/// how many messages fall into each hour.
const BUSINESS: &str = "
create schema bench;
insert into public.clients (id, slug, brand)
select md5('client' || k)::uuid, 'client-' || k, 'Client ' || k from generate_series(1, 120) k;
insert into public.client_members (client_id, user_id) select md5('client' || k)::uuid, md5('user' || k)::uuid from generate_series(1, 120) k;
create table bench.deployments as
select md5('deployment' || k || '-' || d)::uuid as id, md5('client' || k)::uuid as client_id, md5('user' || k)::uuid as user_id,
       (array['louis', 'arthur', 'alexandra'])[1 + (k + d) % 3] as type_name, 1.0 / k / d as share, m.*
  from generate_series(1, 120) k, generate_series(1, 1 + k % 4) d,
       lateral (values
         (0, 'mtn', 'RWF', 8.5, 9.0, 'RWF', 12.0, 13.0, null::numeric), (1, 'twilio', 'USD', 0.0075, 0.0079, 'RWF', 18.0, 19.5, 1452.25),
         (2, 'twilio', 'USD', 0.0700, 0.0740, 'EUR', 0.0900, 0.0950, 0.92137), (3, 'africas_talking', 'USD', 0.0110, 0.0125, 'USD', 0.0200, 0.0220, null)
       ) m (market, provider, cost_currency, cost_before, cost_now, revenue_currency, revenue_before, revenue_now, fx_rate)
 where m.market = k % 4;
insert into public.agent_deployments (id, client_id, agent_type_id, name)
select d.id, d.client_id, t.id, d.type_name || '-' || row_number() over (partition by d.client_id) from bench.deployments d join public.agent_types t on t.name = d.type_name;
insert into public.channel_prices (client_id, side, provider, kind, prefix, price, currency, valid_from)
select distinct d.client_id, x.side, d.provider, 'segment', '', x.price, x.currency, x.since
  from bench.deployments d, lateral (values
    ('cost', d.cost_before, d.cost_currency, now() - interval '4 years'), ('cost', d.cost_now, d.cost_currency, now() - interval '1 year'),
    ('revenue', d.revenue_before, d.revenue_currency, now() - interval '4 years'), ('revenue', d.revenue_now, d.revenue_currency, now() - interval '1 year')
  ) x (side, price, currency, since);
insert into public.fx_rates (base, quote, valid_from, rate)
values ('USD', 'RWF', current_date - 1500, 1452.25), ('USD', 'EUR', current_date - 1500, 0.92137);
-- A table of shares to draw from: 4096 slots, each deployment with as many as its share.
create table bench.slots as
select s as slot, d.* from generate_series(0, 4095) s
  join (select d.*, sum(share) over w / sum(share) over () - share / sum(share) over () as low, sum(share) over w / sum(share) over () as high
          from bench.deployments d window w as (order by share desc, id)) d on s / 4096.0 >= d.low and s / 4096.0 < d.high;
insert into public.prospects (id, client_id, phone_number, full_name)
select md5('prospect' || p)::uuid, s.client_id, '+25078' || lpad(p::text, 7, '0'), 'Prospect ' || p
  from generate_series(0, 32767) p join bench.slots s on s.slot = p / 8;
create table bench.texts as
select row_number() over () - 1 as number, t.text, u.encoding, u.segments
  from (values
    ('Muraho! Your visit to the house in Kimironko is on Saturday at 10:00. Reply YES to confirm. Ref 00000000'),
    ('Thank you for your call. We found three apartments in Remera within your budget; your agent sends the details today. Reply STOP to hear no more. Ref 00000000'),
    ('Your code is 482913. Ref 00000000'),
    ('Bonjour, votre rendez-vous avec Louis est confirmé pour demain à 14 h 30. Répondez OUI pour confirmer, NON pour changer. Ref 00000000'),
    ('Bonjour, suite à notre échange voici le récapitulatif : appartement de trois pièces, budget de 250 000 RWF, quartier Kicukiro, visite possible dès lundi matin. Votre conseillère Alexandra reste à votre écoute. Ref 00000000'),
    ('Mwaramutse, murakoze guhamagara. Inzu ebyiri mu Gikondo ziraboneka. Ref 00000000'),
    ('🏠 New: a house with a garden in Kimironko, 300,000 RWF. Would you like to see it? Ref 00000000'),
    ('Arthur here: your order left the warehouse and will arrive between 9 and 12. Ref 00000000')
  ) t (text), private.sms_units(t.text) u;
create table bench.hours as
with weighted as (
  select at, (array[1,1,1,1,1,2,5,14,22,24,24,22,16,16,21,24,24,20,14,11,9,6,3,1])[1 + extract(hour from at at time zone 'Africa/Kigali')::int]
           * case extract(isodow from at) when 6 then 0.5 when 7 then 0.25 else 1 end
           * (0.6 + 0.8 * extract(epoch from at - (now() - interval '3 years')) / extract(epoch from interval '3 years')) as weight
    from generate_series(date_trunc('hour', now()) - interval '3 years', date_trunc('hour', now()) - interval '1 hour', interval '1 hour') at
), summed as (
  select at, (sum(weight) over w / sum(weight) over ())::numeric as upto, coalesce(sum(weight) over before / sum(weight) over (), 0)::numeric as after
    from weighted window w as (order by at), before as (order by at rows between unbounded preceding and 1 preceding)
)
select at, round(after * {rows})::bigint as first, (round(upto * {rows}) - round(after * {rows}))::bigint as count from summed;
alter table bench.slots add primary key (slot);
analyze bench.slots; analyze bench.texts; analyze bench.hours;
";

/// The messages of the hours whose first row is in the portion. One hash of the row's number is thrown for all its dice.
const MESSAGES: &str = "
with thrown as materialized (
  select n, at, hashint8extended(n, 1) & 4095 as slot, r & 1023 as fate, (r >> 10) & 1023 as haste, (r >> 20) & 7 as text, (r >> 24) & 7 as person,
         (r >> 28) & 1023 as reply, lpad(to_hex((n * 2654435761) % 4294967296), 8, '0') || lpad(to_hex(n), 8, '0') as mark
    from (select h.first + i as n, h.at + (i + 0.5) / h.count * interval '1 hour' as at, hashint8extended(h.first + i, 2) as r
            from bench.hours h, generate_series(0, h.count - 1) i where h.first >= {low} and h.first < {high}) x
), told as materialized (
  select t.*, s.client_id, s.deployment_id, s.provider, s.cost_currency, s.revenue_currency, s.fx_rate, x.encoding, x.segments,
         left(x.text, -8) || right(t.mark, 8) as message,
         case when t.at < now() - interval '1 year' then s.cost_before else s.cost_now end as unit_cost,
         case when t.at < now() - interval '1 year' then s.revenue_before else s.revenue_now end as unit_revenue,
         -- Most reports come within seconds; one in a hundred takes hours, up to three days.
         t.at + case when t.haste < 10 then t.haste * interval '7 hours' else -ln((t.haste + 1) / 1025.0::float8) * interval '9 seconds' + interval '1 second' end as reported_at
    from thrown t
    join (select slot, id as deployment_id, client_id, provider, cost_currency, cost_before, cost_now, revenue_currency, revenue_before, revenue_now, fx_rate from bench.slots) s
      on s.slot = t.slot
    join bench.texts x on x.number = t.text
), ended as materialized (
  select t.*, case when fate < 5 then 'cancelled' when fate < 15 then 'refused' when fate < 46 and reported_at < now() then 'failed'
                   when fate < 87 or reported_at >= now() then 'sent' else 'delivered' end as came_to from told t
)
insert into public.agent_sms (id, client_id, deployment_id, call_id, prospect_id, phone_number, message_content, encoding, segments, status, provider,
  provider_status, provider_message_sid, sent_at, delivered_at, failed_at, replied_at, failure_reason, unit_cost, cost, cost_currency, cost_source,
  unit_revenue, revenue, revenue_currency, revenue_source, fx_rate, fx_date, created_at, updated_at)
select md5('sms' || n)::uuid, client_id, deployment_id, case when n % 20 = 0 then md5('call' || n)::uuid end,
       case when reply & 3 > 0 then md5('prospect' || slot * 8 + person)::uuid end, '+25078' || lpad((slot * 8 + person)::text, 7, '0'), message, encoding, segments,
       case came_to when 'refused' then 'failed' else came_to end, provider,
       case came_to when 'refused' then 'failed' when 'failed' then 'undelivered' when 'cancelled' then 'suppressed' else came_to end,
       case when came_to not in ('refused', 'cancelled') then 'SM' || mark || mark end, at,
       case came_to when 'delivered' then reported_at end, case came_to when 'failed' then reported_at when 'refused' then at end,
       case when came_to = 'delivered' and reply < 120 then reported_at + reply * interval '41 seconds' end,
       case came_to when 'failed' then '30003' when 'refused' then '21211' when 'cancelled' then 'opted_out' end,
       unit_cost, case when came_to in ('refused', 'cancelled') then 0 else unit_cost * segments end, cost_currency, 'price_list',
       unit_revenue, case when came_to in ('refused', 'cancelled') then 0 else unit_revenue * segments end, revenue_currency, 'price_list',
       fx_rate, case when fx_rate is not null then current_date - 1500 end, at, coalesce(case when came_to in ('delivered', 'failed') then reported_at end, at)
  from ended order by n
";

/// Every twentieth message follows a call, which ended a few minutes before.
const CALLS: &str = "
insert into public.agent_calls (id, client_id, deployment_id, direction, phone_number, status, started_at, answered_at, ended_at, duration_seconds,
  cost, cost_currency, revenue, revenue_currency, fx_rate, fx_date, created_at, updated_at)
select call_id, client_id, deployment_id, 'inbound', phone_number, 'completed', sent_at - interval '5 minutes', sent_at - interval '5 minutes', sent_at - interval '2 minutes',
       180, 3 * unit_cost, cost_currency, 3 * unit_revenue, revenue_currency, fx_rate, fx_date, sent_at, sent_at
  from public.agent_sms where call_id is not null
";

/// Fills the tables of a migrated database. No trigger runs and no foreign key is looked up meanwhile, and indexes are made
/// afterwards.
pub async fn fill(owner: &Client, rows: i64) -> Result<()> {
    let step = Step::start("clients, deployments, prices", None);
    owner.batch_execute(&BUSINESS.replace("{rows}", &rows.to_string())).await?;
    step.finish();
    let mut step = Step::start(&format!("{rows} SMS"), Some("some minutes for tens of millions"));
    // What is emptied in the same transaction is not written to the log of changes.
    owner.batch_execute("begin; set local session_replication_role = replica; set local enable_nestloop = off; truncate public.agent_sms, public.agent_calls cascade").await?;
    let (drop, create) = indexes(owner).await?;
    owner.batch_execute(&drop).await?;
    // A trigger that does not run still has every row copied for it.
    let (drop, count_again) = counting(owner).await?;
    owner.batch_execute(&drop).await?;
    // A check calls a function for each row. Of the numbers here a plain one says the same, in a tenth of the time.
    let sql = "select pg_get_functiondef('private.is_e164(text)'::regprocedure)";
    let as_migrated: String = owner.query_one(sql, &[]).await?.get(0);
    owner
        .batch_execute(
            "create or replace function private.is_e164(p_text text) returns boolean language sql immutable parallel safe as $$ select p_text like '+%' $$",
        )
        .await?;
    let mut low = 0;
    while low < rows {
        let messages = MESSAGES.replace("{low}", &low.to_string()).replace("{high}", &(low + PORTION).to_string());
        owner.batch_execute(&messages).await?;
        low += PORTION;
        step.tick(&format!("{} of {rows}", low.min(rows)));
    }
    owner.batch_execute(CALLS).await?;
    step.finish();
    let mut step = Step::start(&format!("{} indexes", create.len()), None);
    for index in create {
        step.tick(&index);
        owner.batch_execute(&index).await?;
    }
    owner.batch_execute(&as_migrated).await?;
    owner.batch_execute(&count_again).await?;
    owner.batch_execute("commit").await?;
    step.finish();
    let step = Step::start("sums an hour, a day and a month, as after rows were loaded past the triggers", None);
    owner.query("select private.rebuild_sms_rollups()", &[]).await?;
    while owner.query_one("select private.fold_sms_changes(1000000)", &[]).await?.get::<_, i32>(0) > 0 {}
    step.finish();
    let step = Step::start("vacuum and statistics", None);
    owner.batch_execute("vacuum (analyze)").await?;
    step.finish();
    Ok(())
}

/// What drops the triggers that see whole statements, and what makes them again.
async fn counting(owner: &Client) -> Result<(String, String)> {
    let sql = "select tgname::text, pg_get_triggerdef(oid) from pg_trigger
                where tgrelid = 'public.agent_sms'::regclass and not tgisinternal and tgtype & 1 = 0";
    let (mut drop, mut create) = (String::new(), String::new());
    for row in owner.query(sql, &[]).await? {
        let _ = write!(drop, "drop trigger {} on public.agent_sms;", row.get::<_, String>(0));
        let _ = write!(create, "{};", row.get::<_, String>(1));
    }
    Ok((drop, create))
}

/// What drops the indexes of the two tables, and what makes them again. Those that are a table's key stay.
async fn indexes(owner: &Client) -> Result<(String, Vec<String>)> {
    let sql = "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index
                where indrelid in ('public.agent_sms'::regclass, 'public.agent_calls'::regclass)
                  and not exists (select from pg_constraint where conindid = indexrelid)";
    let (mut drop, mut create) = (String::new(), Vec::new());
    for row in owner.query(sql, &[]).await? {
        let _ = write!(drop, "drop index {};", row.get::<_, String>(0));
        create.push(row.get::<_, String>(1));
    }
    Ok((drop, create))
}
