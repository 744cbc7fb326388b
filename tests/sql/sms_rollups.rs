//! Sums of agent_sms: they equal the rows at every moment, whatever is written, late, at once or past the triggers.

use std::sync::atomic::{AtomicBool, Ordering};

use ihuza_sim::migrate;
use serde_json::json;
use tokio_postgres::Client;

use crate::support::{Db, Dice, all, in_full, lines, refusal, root, seed, value};

/// Two clients; the first with three deployments, the second with one.
pub const CLIENTS: &str = "
insert into public.clients (slug, brand) values ('kigali', 'K'), ('huye', 'H');
insert into public.agent_deployments (client_id, agent_type_id, name)
select c.id, t.id, t.name from public.clients c, public.agent_types t where c.slug = 'kigali' and t.name in ('louis', 'arthur');";

const WRONG: &str = "select row_to_json(c)::text from private.check_sms_rollups() c
    union all select 'of all: ' || row_to_json(t)::text from private.check_sms_totals() t";

async fn wrong(client: &Client) -> Vec<String> {
    lines(client, WRONG).await
}

/// One of a few hours around borders of days and months.
fn moment(dice: &mut Dice) -> String {
    let at =
        ["2026-10-31 23:59:59.999999+00", "2026-11-01 00:00:00+00", "2026-11-01 00:59:59+00", "2026-11-02 12:30:00+00"];
    at[dice.below(at.len())].to_owned()
}

/// Any statement that a writer may come with; about few rows, so that they meet.
fn statement(dice: &mut Dice) -> String {
    let row = format!("provider_message_sid = 'SM{}'", dice.below(30));
    let status = ["pending", "sent", "delivered", "failed", "cancelled"][dice.below(5)];
    let currency = ["RWF", "USD", "EUR"][dice.below(3)];
    let deployment = format!(
        "(select id from public.agent_deployments where client_id in (select id from public.clients where not is_default) order by id offset {} limit 1)",
        dice.below(4)
    );
    let cost = format!("{}.{:06}", dice.below(30), dice.below(1_000_000));
    match dice.below(14) {
        0..=3 => format!(
            "insert into public.agent_sms (deployment_id, phone_number, message_content, provider_message_sid, status, sent_at, cost, cost_currency, revenue, revenue_currency)
             values ({deployment}, '+250788111111', repeat('x', {}), 'SM{}', '{status}', '{}', {}, {})
             on conflict (provider_message_sid, provider) where provider_message_sid is not null do update set status = excluded.status",
            dice.below(400),
            dice.below(30),
            moment(dice),
            if dice.below(3) == 0 { "null, null".to_owned() } else { format!("{cost}, '{currency}'") },
            if dice.below(3) == 0 { "null, null".to_owned() } else { format!("{cost}, 'RWF'") },
        ),
        4 => format!(
            "insert into public.agent_sms (deployment_id, message_content, status) select {deployment}, 'many', '{status}' from generate_series(1, {})",
            dice.below(5)
        ),
        5 => format!("update public.agent_sms set status = '{status}'"),
        6 | 7 => format!("update public.agent_sms set status = '{status}', replied_at = now() where {row}"),
        8 => format!("update public.agent_sms set cost = {cost}, cost_currency = '{currency}' where {row}"),
        9 => format!("update public.agent_sms set sent_at = '{}' where {row}", moment(dice)),
        // Whoever counts as one of another kind takes the sums of before along.
        10 => format!(
            "update public.agent_deployments set agent_type_id = (select id from public.agent_types where name = '{}') where id = {deployment}",
            ["louis", "arthur", "nobody"][dice.below(3)]
        ),
        11 => format!("update public.agent_sms set revenue = null, revenue_currency = null, segments = 3 where {row}"),
        _ => format!("delete from public.agent_sms where {row}"),
    }
}

#[tokio::test]
async fn sums_equal_the_rows_after_every_statement() {
    let db = Db::new().await;
    db.run(CLIENTS).await;
    let mut dice = Dice(seed());
    for step in 0..if in_full() { 2_000 } else { 300 } {
        let sql = statement(&mut dice);
        if let Err(error) = db.service.batch_execute(&sql).await {
            panic!("{}\n  in: {sql}", refusal(&error).message);
        }
        if dice.below(4) == 0 {
            let limit = 1 + dice.below(20) as i32;
            db.service.query_one("select private.fold_sms_changes($1)", &[&limit]).await.unwrap();
        }
        let wrong = wrong(&db.service).await;
        assert!(wrong.is_empty(), "step {step}, IHUZA_SEED={}: {sql}\n{}", seed(), wrong.join("\n"));
    }
    assert!(db.count("select count(*) from public.agent_sms").await > 0);
    assert!(db.count("select count(*) from public.agent_sms_rollups where grain = 'month' and messages > 0").await > 1);
}

#[tokio::test]
async fn an_update_that_changes_nothing_that_counts_leaves_no_trace() {
    let db = Db::new().await;
    db.run("insert into public.agent_sms (client_id, message_content, status) select private.default_client_id(), 'x', 'sent' from generate_series(1, 3)").await;
    let changes = "select count(*) from public.agent_sms_changes";
    assert_eq!(db.count(changes).await, 1, "three rows of an hour by one statement are one change");
    db.run("update public.agent_sms set metadata = '{\"seen\": true}', provider_status = 'buffered'; update public.agent_sms set status = status").await;
    assert_eq!(db.count(changes).await, 1);
    db.run("update public.agent_sms set status = 'delivered'").await;
    assert_eq!(db.count(changes).await, 2);
}

#[tokio::test]
async fn late_statuses_from_many_writers_are_counted_while_sums_are_folded_and_read() {
    let db = Db::new().await;
    db.run(CLIENTS).await;
    let done = AtomicBool::new(false);
    let writers = all((0..12).map(|_| db.connect())).await;
    let (folder, reader) = (db.connect().await, db.connect().await);
    let each = if in_full() { 200 } else { 25 };
    let (writers, done) = (&writers, &done);
    let write = async move {
        all(writers.iter().enumerate().map(|(n, client)| async move {
            let mut dice = Dice(seed() * 1_000 + n as u64);
            for _ in 0..each {
                let sql = statement(&mut dice);
                // A statement about many rows may meet another that has them in another order.
                match client.batch_execute(&sql).await.map_err(|error| refusal(&error)) {
                    Ok(()) => {}
                    Err(refusal) if refusal.code == "40P01" => {}
                    Err(refusal) => panic!("{}\n  in: {sql}", refusal.message),
                }
            }
        }))
        .await;
        done.store(true, Ordering::Relaxed);
    };
    let fold = async {
        let mut folded = 0;
        while !done.load(Ordering::Relaxed) {
            folded += folder.query_one("select private.fold_sms_changes(7)", &[]).await.unwrap().get::<_, i32>(0);
        }
        folded
    };
    let read = async {
        let mut looks = 0;
        while !done.load(Ordering::Relaxed) {
            let wrong = wrong(&reader).await;
            assert!(wrong.is_empty(), "in the midst of it: {}", wrong.join("\n"));
            looks += 1;
        }
        looks
    };
    let ((), folded, looks) = tokio::join!(write, fold, read);
    assert!(folded > 20, "{folded} changes were folded meanwhile");
    assert!(looks > 5, "{looks} looks");
    assert_eq!(wrong(&reader).await, Vec::<String>::new());
    while folder.query_one("select private.fold_sms_changes()", &[]).await.unwrap().get::<_, i32>(0) > 0 {}
    assert_eq!(wrong(&reader).await, Vec::<String>::new());
    assert_eq!(db.count("select count(*) from public.agent_sms_changes").await, 0);
}

#[tokio::test]
async fn no_writer_waits_for_another_and_a_fold_waits_for_none() {
    let db = Db::new().await;
    let insert = "insert into public.agent_sms (client_id, message_content) values (private.default_client_id(), 'x')";
    let other = db.connect().await;
    for client in [&db.service, &other] {
        client.batch_execute("set lock_timeout = '5s'").await.unwrap();
    }
    other.batch_execute(&format!("begin; {insert}")).await.unwrap();
    db.service.batch_execute(insert).await.unwrap();
    let folded = db.service.query_one("select private.fold_sms_changes()", &[]).await.unwrap();
    assert_eq!(folded.get::<_, i32>(0), 1, "the one that is committed");
    assert_eq!(wrong(&db.service).await, Vec::<String>::new());
    other.batch_execute("commit").await.unwrap();
    assert_eq!(wrong(&db.service).await, Vec::<String>::new());
    assert_eq!(db.count("select count(*) from public.agent_sms_changes").await, 1);

    // And while a fold is not committed, writers write, and another fold leaves it at that.
    other.batch_execute("begin; select private.fold_sms_changes()").await.unwrap();
    db.service.batch_execute(insert).await.unwrap();
    let folded = db.service.query_one("select private.fold_sms_changes()", &[]).await.unwrap();
    assert_eq!(folded.get::<_, i32>(0), 0);
    assert_eq!(wrong(&db.service).await, Vec::<String>::new());
    other.batch_execute("rollback").await.unwrap();
    assert_eq!(wrong(&db.service).await, Vec::<String>::new());
}

#[tokio::test]
async fn rows_that_came_past_the_triggers_are_found_and_the_sums_mended() {
    let db = Db::new().await;
    db.run(CLIENTS).await;
    let mut dice = Dice(seed());
    for _ in 0..60 {
        db.run(&statement(&mut dice)).await;
    }
    db.run("select private.fold_sms_changes()").await;
    db.run("set session_replication_role = replica; update public.agent_sms set status = 'failed', cost = 3, cost_currency = 'RWF'; set session_replication_role = origin;
            update public.agent_sms_rollups set delivered = delivered + 1 where grain = 'day'; delete from public.agent_sms_rollups where grain = 'month'").await;
    let found = wrong(&db.admin).await.join("\n");
    for grain in ["hour", "day", "month"] {
        assert!(found.contains(&format!("\"grain\":\"{grain}\"")), "{grain}: {found}");
    }
    assert!(found.contains("of all: "), "{found}");
    db.run("select private.rebuild_sms_rollups()").await;
    assert_eq!(wrong(&db.admin).await, Vec::<String>::new());
    db.run("select private.fold_sms_changes()").await;
    assert_eq!(wrong(&db.admin).await, Vec::<String>::new());
    assert_eq!(db.value("select private.rebuild_sms_rollups()").await, 0, "there is nothing left to mend");
}

#[tokio::test]
async fn the_migration_counts_the_rows_that_were_there_once() {
    let mut db = Db::new().await;
    db.run("set session_replication_role = replica").await;
    db.run(
        "insert into public.agent_sms (client_id, deployment_id, message_content, status, segments)
         select d.client_id, d.id, 'x', 'sent', 2 from public.agent_deployments d, generate_series(1, 40)",
    )
    .await;
    db.run("set session_replication_role = origin").await;
    assert_ne!(wrong(&db.admin).await, Vec::<String>::new());
    for _ in 0..2 {
        for file in ["20261121013200_sms_rollups.sql", "20261121019000_sms_totals.sql"] {
            migrate::run_file(&mut db.admin, &root().join("migrations").join(file)).await.unwrap();
        }
        assert_eq!(wrong(&db.admin).await, Vec::<String>::new());
    }
    let sums = "select jsonb_build_array(messages, sent, segments) from public.agent_sms_rollups where grain = 'month'";
    assert_eq!(db.value(sums).await, json!([40, 40, 80]));
}

#[tokio::test]
async fn a_truncated_table_has_no_sums() {
    let db = Db::new().await;
    let insert = "insert into public.agent_sms (client_id, message_content) values (private.default_client_id(), 'x')";
    db.run(&format!("{insert}; select private.fold_sms_changes(); {insert}; truncate public.agent_sms")).await;
    assert_eq!(wrong(&db.admin).await, Vec::<String>::new());
    assert_eq!(db.count("select count(*) from public.agent_sms_rollups").await, 0);
    assert_eq!(db.count("select count(*) from public.agent_sms_totals").await, 0);
}

#[tokio::test]
async fn a_deployment_of_another_kind_takes_its_sums_along_and_leaves_none_when_it_goes() {
    let db = Db::new().await;
    db.run(CLIENTS).await;
    let louis = "(select id from public.agent_deployments where name = 'louis')";
    let months = "select coalesce(jsonb_object_agg(coalesce(k.name, 'none'), t.messages), '{}')
        from public.agent_sms_totals t left join public.agent_types k on k.id = t.agent_type_id where t.grain = 'month' and t.messages <> 0";
    db.run(&format!(
        "insert into public.agent_sms (deployment_id, message_content) select {louis}, 'x' from generate_series(1, 3)"
    ))
    .await;
    // Not folded yet: it goes where the deployment is when it is.
    let become_kind = |kind: &str| {
        format!(
            "update public.agent_deployments set agent_type_id = (select id from public.agent_types where name = '{kind}') where id = {louis}"
        )
    };
    db.run(&become_kind("alexandra")).await;
    db.run("select private.fold_sms_changes()").await;
    assert_eq!(db.value(months).await, json!({"alexandra": 3}));
    db.run(&become_kind("arthur")).await;
    assert_eq!(db.value(months).await, json!({"arthur": 3}));
    let asked = async |kind: &str| {
        let sql = format!(
            "select public.get_sms_metrics(now() - interval '1 hour', now() + interval '1 hour', null, null, {kind}) -> 'messages'"
        );
        let row = db.service.query_one(&sql, &[]).await.unwrap();
        row.get::<_, serde_json::Value>(0)
    };
    assert_eq!(asked("'alexandra'").await, 0);
    assert_eq!((asked("'Arthur'").await, asked("null").await), (json!(3), json!(3)));
    db.run(&become_kind("nobody")).await;
    assert_eq!(db.value(months).await, json!({"none": 3}));
    assert_eq!((asked("'arthur'").await, asked("null").await), (json!(0), json!(3)));
    assert_eq!(wrong(&db.admin).await, Vec::<String>::new());

    db.run(&become_kind("louis")).await;
    db.run(&format!("delete from public.agent_sms; delete from public.agent_deployments where id = {louis}")).await;
    db.run("select private.fold_sms_changes()").await;
    assert_eq!(db.value(months).await, json!({}));
    assert_eq!(wrong(&db.admin).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_change_of_kind_waits_for_the_fold_that_still_counts_it_as_the_old_one() {
    let db = Db::new().await;
    db.run(CLIENTS).await;
    db.run("insert into public.agent_sms (deployment_id, message_content) select id, 'x' from public.agent_deployments where name = 'louis'").await;
    let other = db.connect().await;
    other.batch_execute("begin; select private.fold_sms_changes()").await.unwrap();
    let change = "update public.agent_deployments set agent_type_id = null where name = 'louis'";
    db.service.batch_execute("set lock_timeout = '300ms'").await.unwrap();
    assert_eq!(refusal(&db.service.batch_execute(change).await.unwrap_err()).code, "55P03", "it waits");
    other.batch_execute("commit").await.unwrap();
    db.service.batch_execute("reset lock_timeout").await.unwrap();
    db.service.batch_execute(change).await.unwrap();
    assert_eq!(wrong(&db.admin).await, Vec::<String>::new());
}

#[tokio::test]
async fn the_sweep_folds() {
    let db = Db::new().await;
    db.run("insert into public.agent_sms (client_id, message_content) values (private.default_client_id(), 'x')").await;
    assert_eq!(db.rpc("sweep", json!({})).await["sms_figures"]["folded"], 1);
    assert_eq!(db.count("select count(*) from public.agent_sms_changes").await, 0);
    // What goes wrong with figures is told, and keeps nobody's message waiting.
    db.run(
        "alter table public.agent_sms_rollups add constraint offence check (messages < 1) not valid;
            insert into public.agent_sms (client_id, message_content) values (private.default_client_id(), 'x')",
    )
    .await;
    let swept = db.rpc("sweep", json!({})).await;
    assert_eq!(swept["sms_figures"]["code"], "23514");
    assert_eq!(swept["jobs"], json!([]));
    assert_eq!(db.value("select kind from public.alerts").await, "sms_figures");
    assert_eq!(db.count("select count(*) from public.agent_sms_changes").await, 1, "still to be folded");
}

#[tokio::test]
async fn a_lock_or_the_end_of_its_time_stops_the_figures_and_not_the_sweep() {
    let db = Db::new().await;
    db.run("insert into public.agent_sms (client_id, message_content, status, segments) values (private.default_client_id(), 'x', 'sent', 1)").await;
    let other = db.connect().await;
    other
        .batch_execute("reset role; begin; lock table public.agent_sms_changes in access exclusive mode")
        .await
        .unwrap();
    for (limit, code) in [("1s", "57014"), ("60s", "55P03")] {
        db.run("delete from public.alerts").await;
        db.service.batch_execute(&format!("set statement_timeout = '{limit}'")).await.unwrap();
        let swept = db.rpc("sweep", json!({})).await;
        assert_eq!(swept["sms_figures"]["code"], code);
        // What it did is kept, and so is the alert.
        assert_eq!(db.value("select kind from public.alerts").await, "sms_figures", "{code}");
    }
    assert_eq!(value(&db.service, "select to_jsonb(current_setting('lock_timeout'))").await, "0");
    other.batch_execute("rollback").await.unwrap();
    assert_eq!(db.rpc("sweep", json!({})).await["sms_figures"]["folded"], 1);
}
