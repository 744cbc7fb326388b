//! A database that counts its SMS in the first pricing model (`provider_cost + voipia_margin = billed_cost`) is taken over: every amount
//! to its last decimal, rows that break our rules included, and workflows that still write the old columns go on working.

use ihuza_sim::migrate;
use serde_json::json;
use tokio_postgres::Client;

use crate::support::{Db, lines, root, value};

/// As the first migrations of the feature made it; `%BILLED%` is how the price of the client comes about.
const EARLIER: &str = "
create table public.agent_deployments (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  created_at timestamptz default now()
);
insert into public.agent_deployments (id, name) values ('dddddddd-0000-4000-8000-000000000001', 'louis-kigali');
create table public.agent_sms (
  id uuid primary key default gen_random_uuid(),
  deployment_id uuid not null references public.agent_deployments (id),
  phone_number text not null,
  message_content text not null,
  status text not null default 'sent',
  provider_status text,
  provider_message_sid text unique,
  provider_cost numeric(10,4) not null default 0,
  voipia_margin numeric(10,4) not null default 0,
  billed_cost numeric(10,4) %BILLED%,
  currency text default 'EUR',
  sent_at timestamptz default now(),
  delivered_at timestamptz,
  failure_reason text,
  created_at timestamptz default now()
);";

const ROWS: &str = "
insert into public.agent_sms (id, deployment_id, phone_number, message_content, status, provider_status, provider_message_sid, provider_cost, voipia_margin, %NAME% currency, sent_at)
select ('eeeeeeee-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'dddddddd-0000-4000-8000-000000000001',
       case n % 7 when 0 then '06 12 34 56 78' else '+3361234' || lpad(n::text, 4, '0') end,
       case n % 3 when 0 then 'Bonjour, ça va ? 😀' else 'Bonjour' end,
       (array['sent', 'delivered', 'undelivered', 'failed', 'queued'])[1 + n % 5], case n % 2 when 0 then 'delivered' end, 'SM' || n,
       (n * 0.0001 + 0.0475)::numeric(10,4), (n * 0.0003 + 0.02)::numeric(10,4), %VALUE%
       case n % 4 when 0 then 'USD' when 1 then null else 'EUR' end, timestamptz '2025-11-13' + make_interval(hours => n)
  from generate_series(1, 500) n;";

async fn taken_over(generated: bool) -> Client {
    let mut client = Db::empty().await;
    let (billed, name, amount) = if generated {
        ("generated always as (provider_cost + voipia_margin) stored", "", "")
    } else {
        ("not null", "billed_cost, ", "(n * 0.0001 + 0.0475)::numeric(10,4) + (n * 0.0003 + 0.02)::numeric(10,4),")
    };
    client.batch_execute(&EARLIER.replace("%BILLED%", billed)).await.unwrap();
    client.batch_execute(&ROWS.replace("%NAME%", name).replace("%VALUE%", amount)).await.unwrap();
    client.batch_execute("create table kept as select * from public.agent_sms").await.unwrap();
    let files = migrate::read(&root().join("migrations")).unwrap();
    migrate::apply(&mut client, &files, false).await.unwrap();
    client
}

/// Everything of a row that the first model knew, as text: before and after must be the same letters.
const BEFORE: &str = "select concat_ws('|', id, provider_cost, billed_cost, coalesce(currency, 'EUR'), phone_number, message_content, sent_at) from kept order by id";
const AFTER: &str = "select concat_ws('|', id, trim_scale(cost)::numeric(10,4), trim_scale(revenue)::numeric(10,4), cost_currency, phone_number, message_content, sent_at)
                       from public.agent_sms order by id";

#[tokio::test]
async fn every_row_of_the_first_model_is_kept_to_the_last_decimal() {
    for generated in [true, false] {
        let client = taken_over(generated).await;
        let kept = lines(&client, BEFORE).await;
        assert_eq!(kept.len(), 500);
        assert_eq!(lines(&client, AFTER).await, kept);
        let sql = "select count(*) from public.agent_sms s join kept k using (id)
                    where s.cost is distinct from k.provider_cost or s.revenue is distinct from k.billed_cost or s.margin is distinct from k.voipia_margin
                       or (s.cost_source, s.revenue_source, s.revenue_currency) is distinct from ('first_pricing', 'first_pricing', s.cost_currency)";
        assert_eq!(value(&client, sql).await, 0);
        let sums = "select jsonb_build_array((select sum(margin)::text from public.agent_sms), (select sum(voipia_margin)::numeric(12,6)::text from kept))";
        let sums = value(&client, sums).await;
        assert_eq!(sums[0], sums[1]);
        let statuses = "select jsonb_object_agg(s, n) from (select concat_ws(' ', s.status, k.status) as s, count(*) as n from public.agent_sms s join kept k using (id) group by 1) x";
        assert_eq!(
            value(&client, statuses).await,
            json!({"sent sent": 100, "delivered delivered": 100, "failed undelivered": 100, "failed failed": 100, "pending queued": 100})
        );
        let open = "select jsonb_agg(conname) from pg_constraint where conrelid = 'public.agent_sms'::regclass and not convalidated";
        assert_eq!(
            value(&client, open).await,
            json!(["agent_sms_phone_number_is_e164"]),
            "numbers of before that are none are kept as they are"
        );
        // What becomes of an old message moves its status and not its amounts.
        client
            .batch_execute("update public.agent_sms set provider_status = 'delivered' where phone_number like '+%'")
            .await
            .unwrap();
        assert_eq!(lines(&client, AFTER).await, kept);
    }
}

#[tokio::test]
async fn a_workflow_that_writes_the_old_columns_goes_on_working() {
    for generated in [true, false] {
        let client = taken_over(generated).await;
        client.batch_execute("set role service_role").await.unwrap();
        let (name, amount) = if generated { ("", "") } else { (", billed_cost", ", 0.0712") };
        let sql = format!(
            "insert into public.agent_sms (deployment_id, phone_number, message_content, status, provider_message_sid, provider_cost, voipia_margin{name})
             values ('dddddddd-0000-4000-8000-000000000001', '+33612345678', 'Bonjour', 'sent', 'SM-new', 0.0512, 0.02{amount})"
        );
        client.batch_execute(&sql).await.unwrap();
        client.batch_execute("update public.agent_sms set status = 'delivered', delivered_at = now() where provider_message_sid = 'SM-new'").await.unwrap();
        let sql = "select jsonb_build_array(status, cost::text, revenue::text, margin::text, cost_currency, cost_source, segments) from public.agent_sms where provider_message_sid = 'SM-new'";
        assert_eq!(
            value(&client, sql).await,
            json!(["delivered", "0.051200", "0.071200", "0.020000", "EUR", "writer", 1])
        );
        // Whoever names no amount pays by the list, as everybody does: the old table's default of nothing is not what anybody said.
        client
            .batch_execute(
                "insert into public.channel_prices (side, provider, kind, price, currency) values ('cost', 'twilio', 'segment', 0.0475, 'USD');
                 insert into public.agent_sms (deployment_id, phone_number, message_content, provider_message_sid)
                 values ('dddddddd-0000-4000-8000-000000000001', '+33612345678', 'Bonjour', 'SM-list');
                 select public.log_message_delivery('sms', p_recipient => '+33612345678', p_content => 'Bonjour', p_provider => 'twilio')",
            )
            .await
            .unwrap();
        let sql = "select jsonb_agg(jsonb_build_array(cost::text, cost_source, revenue)) from public.agent_sms where cost_source = 'price_list'";
        assert_eq!(
            value(&client, sql).await,
            json!([["0.047500", "price_list", null], ["0.047500", "price_list", null]])
        );
    }
}

#[tokio::test]
async fn amounts_that_would_be_rounded_stop_the_migration() {
    let mut client = Db::empty().await;
    let earlier = "create table public.agent_sms (id uuid primary key default gen_random_uuid(), phone_number text, provider_cost numeric, billed_cost numeric);
                   insert into public.agent_sms (provider_cost, billed_cost) values (0.0000001, 1)";
    client.batch_execute(earlier).await.unwrap();
    let files = migrate::read(&root().join("migrations")).unwrap();
    let said = migrate::apply(&mut client, &files, false).await.err().unwrap().to_string();
    assert!(said.contains("more than six decimals"), "{said}");
}

/// As [`EARLIER`], with rows that lack what ours demand: a time, a status.
async fn with_gaps() -> Client {
    let mut client = Db::empty().await;
    let earlier = EARLIER.replace("%BILLED%", "not null").replace("status text not null default 'sent'", "status text");
    client.batch_execute(&earlier).await.unwrap();
    let rows = "
        insert into public.agent_sms (deployment_id, phone_number, message_content, status, provider_status, provider_message_sid, billed_cost, sent_at, created_at)
        select 'dddddddd-0000-4000-8000-000000000001', case n when 3 then '06 12 34 56 78' else '+33612345678' end, 'Bonjour',
               case when n % 2 = 0 then 'sent' end, case n when 1 then 'delivered' end, 'SM' || n, 0.07, case when n < 5 then null else timestamptz '2025-11-13 09:00Z' end,
               case n when 4 then null else timestamptz '2025-11-13 08:00Z' end
          from generate_series(1, 6) n";
    client.batch_execute(rows).await.unwrap();
    let files = migrate::read(&root().join("migrations")).unwrap();
    migrate::apply(&mut client, &files, false).await.unwrap();
    client
}

#[tokio::test]
async fn rows_without_a_time_or_a_status_are_in_the_figures_and_can_be_written() {
    let client = with_gaps().await;
    let sql = "select jsonb_agg(jsonb_build_array(status, sent_at at time zone 'utc') order by provider_message_sid) from public.agent_sms where provider_message_sid <> 'SM4'";
    let (eight, nine) = ("2025-11-13T08:00:00", "2025-11-13T09:00:00");
    assert_eq!(
        value(&client, sql).await,
        json!([["delivered", eight], ["sent", eight], ["pending", eight], ["pending", nine], ["sent", nine]])
    );
    client.batch_execute("select private.fold_sms_changes()").await.unwrap();
    assert_eq!(
        value(&client, "select sum(messages)::bigint from public.agent_sms_rollups where grain = 'hour'").await,
        6
    );
    assert_eq!(value(&client, "select count(*) from private.check_sms_rollups()").await, 0);
    client
        .batch_execute(
            "set role service_role;
             update public.agent_sms set status = 'delivered' where provider_message_sid = 'SM1';
             update public.agent_sms set status = 'delivered' where provider_message_sid = 'SM2';
             delete from public.agent_sms where provider_message_sid = 'SM4';
             insert into public.agent_sms (deployment_id, phone_number, message_content, provider_message_sid)
             values ('dddddddd-0000-4000-8000-000000000001', '+33612345678', 'Bonjour', 'SM7')",
        )
        .await
        .unwrap();
    let sql = "select jsonb_build_array(status, sent_at is not null) from public.agent_sms where provider_message_sid = 'SM7'";
    assert_eq!(value(&client, sql).await, json!(["pending", true]));
    for column in ["sent_at", "status"] {
        let sql = format!("update public.agent_sms set {column} = null where provider_message_sid = 'SM7'");
        let code = client.batch_execute(&sql).await.unwrap_err().code().unwrap().code().to_owned();
        assert_eq!(code, "23502", "{column}");
    }
}

#[tokio::test]
async fn a_person_of_the_first_model_is_erased_and_ours_may_leave_out_what_it_demanded() {
    let client = taken_over(false).await;
    client
        .batch_execute(
            "insert into public.profiles (phone_number) values ('+33612340001');
             select private.erase_person((select id from public.profiles where phone_number = '+33612340001'), 'asked_by_person')",
        )
        .await
        .unwrap();
    let sql = "select jsonb_build_array(phone_number, message_content, provider_message_sid, trim_scale(revenue)::text) from public.agent_sms where id = 'eeeeeeee-0000-4000-8000-000000000001'";
    assert_eq!(value(&client, sql).await, json!([null, null, null, "0.0679"]));
    // A delivery without a text, to what is no number, is counted all the same.
    let sql = "insert into public.message_delivery_log (client_id, channel, direction, status, recipient, provider)
               values (private.default_client_id(), 'sms', 'outbound', 'queued', '12', 'mtn')";
    client.batch_execute(sql).await.unwrap();
    assert_eq!(
        value(&client, "select count(*) from public.agent_sms where delivery_id is not null and phone_number is null")
            .await,
        1
    );
    // Two providers may have used the same id.
    let sql =
        "insert into public.agent_sms (deployment_id, phone_number, message_content, provider, provider_message_sid)
               values ('dddddddd-0000-4000-8000-000000000001', '+33612345678', 'Bonjour', 'africas_talking', 'SM2')";
    client.batch_execute(sql).await.unwrap();
    assert_eq!(client.batch_execute(sql).await.unwrap_err().code().unwrap().code(), "23505");
}
