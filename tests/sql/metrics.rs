//! get_sms_metrics beside a reference in Rust that goes by the rows alone: any period, filter, currency and fold.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::sms_rollups::CLIENTS;
use crate::support::{Db, Dice, in_full, refusal, seed};

const HOUR: i64 = 3_600_000_000;
/// 2026-08-01T00:00:00Z in microseconds, and the beginnings of the next months.
const MONTHS: [i64; 4] = [1_785_542_400_000_000, 1_788_220_800_000_000, 1_790_812_800_000_000, 1_793_491_200_000_000];

/// A row as the reference sees it; amounts in millionths.
struct Sms {
    client: Uuid,
    deployment: Uuid,
    name: String,
    kind: Option<String>,
    at: i64,
    status: String,
    has_sid: bool,
    replied: bool,
    segments: i64,
    cost: Option<(i64, String)>,
    revenue: Option<(i64, String)>,
    margin: Option<i64>,
}

async fn rows(db: &Db) -> Vec<Sms> {
    let sql = "
        select s.client_id, s.deployment_id, d.name, t.name, (extract(epoch from s.sent_at) * 1000000)::bigint, s.status, s.provider_message_sid is not null,
               s.replied_at is not null, s.segments::bigint, (s.cost * 1000000)::bigint, s.cost_currency::text, (s.revenue * 1000000)::bigint,
               s.revenue_currency::text, (s.margin * 1000000)::bigint
          from public.agent_sms s join public.agent_deployments d on d.id = s.deployment_id left join public.agent_types t on t.id = d.agent_type_id";
    let rows = db.admin.query(sql, &[]).await.unwrap();
    let sms = |row: &tokio_postgres::Row| Sms {
        client: row.get(0),
        deployment: row.get(1),
        name: row.get(2),
        kind: row.get(3),
        at: row.get(4),
        status: row.get(5),
        has_sid: row.get(6),
        replied: row.get(7),
        segments: row.get(8),
        cost: row.get::<_, Option<i64>>(9).zip(row.get(10)),
        revenue: row.get::<_, Option<i64>>(11).zip(row.get(12)),
        margin: row.get(13),
    };
    rows.iter().map(sms).collect()
}

/// What is asked for.
#[derive(Clone, Debug)]
struct Filter {
    start: i64,
    end: i64,
    client: Option<Uuid>,
    deployment: Option<String>,
    kind: Option<String>,
}

impl Filter {
    fn takes(&self, sms: &Sms, start: i64, end: i64) -> bool {
        sms.at >= start
            && sms.at < end
            && self.client.is_none_or(|client| client == sms.client)
            && self.deployment.as_ref().is_none_or(|named| *named == sms.name || *named == sms.deployment.to_string())
            && self.kind.as_ref().is_none_or(|kind| sms.kind.as_ref() == Some(kind))
    }
}

/// Exact: a number of JSON with as many decimals as it needs, of so many parts of a whole.
fn decimal(value: i128, places: u32) -> Value {
    let scale = 10_i128.pow(places);
    let text = format!(
        "{}{}.{:0width$}",
        if value < 0 { "-" } else { "" },
        value.abs() / scale,
        value.abs() % scale,
        width = places as usize
    );
    let text = text.trim_end_matches('0').trim_end_matches('.');
    serde_json::from_str(if text == "-0" { "0" } else { text }).unwrap()
}

/// In hundredths of a percent, half away from zero; none of nothing.
fn percent(part: i128, whole: i128) -> Option<i128> {
    (whole != 0).then(|| {
        let (double, sign) = (part.abs() * 20_000 / whole.abs(), if (part < 0) != (whole < 0) { -1 } else { 1 });
        sign * (double / 2 + double % 2)
    })
}

/// Value and how many decimals it has; `None` is null.
type Figure = Option<(i128, u32)>;

#[derive(Default)]
struct Period {
    figures: BTreeMap<&'static str, Figure>,
    currencies: BTreeMap<String, BTreeMap<&'static str, i128>>,
}

fn period(rows: &[Sms], filter: &Filter, start: i64, end: i64) -> Period {
    let rows: Vec<&Sms> = rows.iter().filter(|sms| filter.takes(sms, start, end)).collect();
    let count = |is: &dyn Fn(&Sms) -> bool| rows.iter().filter(|sms| is(sms)).count() as i128;
    let status = |status: &'static str| count(&|sms: &Sms| sms.status == status);
    let accepted =
        |sms: &Sms| ["sent", "delivered"].contains(&sms.status.as_str()) || (sms.status == "failed" && sms.has_sid);
    let (sent, delivered, failed) = (status("sent"), status("delivered"), status("failed"));
    let (taken, tried) = (count(&accepted), sent + delivered + failed);
    let replied = count(&|sms: &Sms| accepted(sms) && sms.replied);
    let mut found = Period::default();
    for (name, value) in [
        ("messages", rows.len() as i128),
        ("pending", status("pending")),
        ("sent", sent),
        ("delivered", delivered),
        ("failed", failed),
        ("cancelled", status("cancelled")),
        ("accepted", taken),
        ("replied", replied),
        ("segments", rows.iter().map(|sms| i128::from(sms.segments)).sum()),
        ("without_margin", count(&|sms: &Sms| sms.margin.is_none())),
    ] {
        found.figures.insert(name, Some((value, 0)));
    }
    for (name, part, whole) in [
        ("accepted_rate", taken, tried),
        ("delivery_rate_of_accepted", delivered, taken),
        ("delivery_rate_of_settled", delivered, delivered + failed),
        ("failure_rate", failed, tried),
        ("response_rate", replied, taken),
    ] {
        found.figures.insert(name, percent(part, whole).map(|value| (value, 2)));
    }
    for sms in rows {
        let mut add = |currency: &str, name, amount: i64| {
            *found.currencies.entry(currency.to_owned()).or_default().entry(name).or_default() += i128::from(amount);
        };
        if let Some((cost, currency)) = &sms.cost {
            add(currency, "cost", *cost);
        }
        if let Some((revenue, currency)) = &sms.revenue {
            add(currency, "revenue", *revenue);
            if let Some(margin) = sms.margin {
                add(currency, "margin", margin);
            }
        }
    }
    found
}

fn show(figure: Figure) -> Value {
    figure.map_or(Value::Null, |(value, places)| decimal(value, places))
}

fn change(now: Figure, before: Figure) -> Value {
    let Some(((now, places), (before, _))) = now.zip(before) else { return json!({"absolute": null, "percent": null}) };
    json!({"absolute": decimal(now - before, places), "percent": show(percent(now - before, before.abs()).map(|value| (value, 2)))})
}

/// What the answer should be.
fn reference(rows: &[Sms], filter: &Filter) -> Value {
    let length = filter.end - filter.start;
    let mut now = period(rows, filter, filter.start, filter.end);
    let mut before = period(rows, filter, filter.start - length, filter.start);
    // Plain amounts where there is one currency.
    let the_one = |name: &str| {
        let mut all: Vec<&String> = now
            .currencies
            .iter()
            .chain(&before.currencies)
            .filter(|(_, amounts)| amounts.contains_key(name))
            .map(|(key, _)| key)
            .collect();
        all.sort();
        all.dedup();
        (all.len() == 1).then(|| all[0].clone())
    };
    let (cost, revenue) = (the_one("cost"), the_one("revenue"));
    for period in [&mut now, &mut before] {
        let amount = |currency: &Option<String>, name: &str, otherwise: Option<i128>| {
            let amounts = period.currencies.get(currency.as_ref()?);
            amounts.map_or(Some(0), |amounts| amounts.get(name).copied().or(otherwise)).map(|value| (value, 6))
        };
        let plain = [
            ("cost", amount(&cost, "cost", Some(0))),
            ("revenue", amount(&revenue, "revenue", Some(0))),
            ("margin", amount(&revenue, "margin", None)),
        ];
        period.figures.extend(plain);
    }
    let by_currency = |period: &Period| {
        let amounts = |amounts: &BTreeMap<&str, i128>| {
            amounts.iter().map(|(&name, &value)| (name.to_owned(), decimal(value, 6))).collect::<Map<_, _>>()
        };
        Value::Object(period.currencies.iter().map(|(currency, all)| (currency.clone(), amounts(all).into())).collect())
    };
    let whole = |period: &Period| {
        let mut all: Map<String, Value> =
            period.figures.iter().map(|(&name, &figure)| (name.to_owned(), show(figure))).collect();
        all.insert("by_currency".to_owned(), by_currency(period));
        all.insert("cost_currency".to_owned(), json!(cost));
        all.insert("revenue_currency".to_owned(), json!(revenue));
        all
    };
    let mut changes: Map<String, Value> =
        now.figures.iter().map(|(&name, &figure)| (name.to_owned(), change(figure, before.figures[name]))).collect();
    let mut of_currencies = Map::new();
    for currency in now.currencies.keys().chain(before.currencies.keys()) {
        let none = BTreeMap::new();
        let (one, other) =
            (now.currencies.get(currency).unwrap_or(&none), before.currencies.get(currency).unwrap_or(&none));
        let figure = |amounts: &BTreeMap<&str, i128>, name| Some((amounts.get(name).copied().unwrap_or_default(), 6));
        let names = one.keys().chain(other.keys());
        let all: Map<_, _> =
            names.map(|&name| (name.to_owned(), change(figure(one, name), figure(other, name)))).collect();
        of_currencies.insert(currency.clone(), all.into());
    }
    changes.insert("by_currency".to_owned(), of_currencies.into());
    let mut answer = whole(&now);
    answer.insert("previous".to_owned(), whole(&before).into());
    answer.insert("change".to_owned(), changes.into());
    answer.into()
}

/// The answer of the database, without what only repeats the question; numbers without needless zeros.
async fn asked(client: &Client, filter: &Filter) -> Value {
    let sql = "select public.get_sms_metrics(timestamptz 'epoch' + $1 * interval '1 microsecond', timestamptz 'epoch' + $2 * interval '1 microsecond', $3, $4, $5)";
    let p: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&(filter.start as f64), &(filter.end as f64), &filter.client, &filter.deployment, &filter.kind];
    let mut answer: Value = match client.query_one(sql, &p).await {
        Ok(row) => row.get(0),
        Err(error) => panic!("{filter:?}: {}", refusal(&error).message),
    };
    for pointer in ["", "/previous"] {
        let part = answer.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        assert!(part.remove("start").is_some() && part.remove("end").is_some());
    }
    assert!(answer.as_object_mut().unwrap().remove("deployments").is_some());
    plain(answer)
}

fn plain(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, plain(value))).collect(),
        Value::Number(number) => {
            let text = number.to_string();
            let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
            serde_json::from_str(text).unwrap()
        }
        other => other,
    }
}

/// On a border of an hour, a day or a month, half past it, a microsecond beside it, or anywhere.
fn moment(dice: &mut Dice) -> i64 {
    let month = MONTHS[dice.below(4)];
    let at = match dice.below(5) {
        0 => month,
        3 => month + HOUR * dice.below(24 * 30) as i64 + HOUR / 2,
        1 => month + 24 * HOUR * dice.below(30) as i64,
        2 => month + HOUR * dice.below(24 * 30) as i64,
        _ => month + dice.below(30 * 24 * 3_600) as i64 * 1_000_000 + dice.below(1_000_000) as i64,
    };
    at + [0, 0, 1, -1][dice.below(4)]
}

async fn fill(db: &Db, dice: &mut Dice, count: usize) {
    db.run(CLIENTS).await;
    db.run("insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'RWF', '2026-01-01', 1432.123456789)").await;
    let mut values = Vec::new();
    for n in 0..count {
        let (cost, revenue) = (dice.below(40_000_000), dice.below(60_000_000));
        let money =
            |amount: usize, currency: &str| format!("{}.{:06}, '{currency}'", amount / 1_000_000, amount % 1_000_000);
        values.push(format!(
            "({}, 'SM{n}', '{}', timestamptz 'epoch' + {} * interval '1 microsecond', {}, {}, {}, {})",
            dice.below(5),
            ["pending", "sent", "sent", "delivered", "delivered", "delivered", "failed", "cancelled"][dice.below(8)],
            moment(dice),
            1 + dice.below(4),
            if dice.below(5) == 0 { "now()" } else { "null" },
            if dice.below(4) == 0 {
                "null, null".to_owned()
            } else {
                money(cost, ["RWF", "RWF", "USD"][dice.below(3)])
            },
            if dice.below(4) == 0 { "null, null".to_owned() } else { money(revenue, "RWF") },
        ));
    }
    for values in values.chunks(500) {
        db.run(&format!(
            "insert into public.agent_sms (deployment_id, provider_message_sid, status, sent_at, segments, replied_at, cost, cost_currency, revenue, revenue_currency, message_content)
             select (select id from public.agent_deployments order by name, id offset v.n limit 1), case when v.status <> 'pending' and length(v.sid) % 3 > 0 then v.sid end,
                    v.status, v.at, v.segments, v.replied, v.cost, v.cost_currency, v.revenue, v.revenue_currency, 'x'
               from (values (0, '', '', now(), 0, null::timestamptz, 0::numeric, '', 0::numeric, ''), {}) v (n, sid, status, at, segments, replied, cost, cost_currency, revenue, revenue_currency)
              where v.sid <> ''",
            values.join(", ")
        ))
        .await;
        let limit = dice.below(300) as i32;
        db.admin.query_one("select private.fold_sms_changes($1)", &[&limit]).await.unwrap();
    }
    // Late words about some of them, of which some are folded.
    db.run("update public.agent_sms set status = 'delivered' where status = 'sent' and segments = 2").await;
    db.run(
        "select private.fold_sms_changes(50); delete from public.agent_sms where segments = 4 and status = 'failed'",
    )
    .await;
}

#[tokio::test]
async fn the_metrics_are_those_of_the_rows_themselves() {
    let db = Db::new().await;
    let mut dice = Dice(seed());
    let (count, questions) = if in_full() { (20_000, 600) } else { (1_500, 150) };
    fill(&db, &mut dice, count).await;
    let rows = rows(&db).await;
    assert!(rows.len() > count * 9 / 10, "{}", rows.len());
    let (mut compared, mut empty) = (0, 0);
    for n in 0..questions {
        let (one, other) = (moment(&mut dice), moment(&mut dice));
        if one == other {
            continue;
        }
        let some = &rows[dice.below(rows.len())];
        let filter = Filter {
            start: one.min(other),
            end: one.max(other),
            client: (dice.below(3) == 0).then_some(some.client),
            deployment: match dice.below(4) {
                0 => Some(some.deployment.to_string()),
                1 if n % 3 == 0 => Some(some.name.clone()),
                2 if n % 7 == 0 => Some("xxx".to_owned()),
                _ => None,
            },
            kind: (dice.below(3) == 0).then(|| ["louis", "arthur", "alexandra", "nobody"][dice.below(4)].to_owned()),
        };
        // The length of a day is nobody's zone's.
        let zone = ["UTC", "Europe/Brussels", "Asia/Kathmandu", "America/New_York"][n % 4];
        db.service.batch_execute(&format!("set timezone = '{zone}'")).await.unwrap();
        let expected = reference(&rows, &filter);
        let found = asked(&db.service, &filter).await;
        assert_eq!(found, expected, "{filter:?} in {zone}, IHUZA_SEED={}", seed());
        compared += 1;
        empty += usize::from(expected["messages"] == 0);
    }
    assert!(compared > questions / 2 && empty < compared / 2, "{compared} compared, {empty} of them of nothing");
}

#[tokio::test]
async fn where_nothing_was_sent_there_is_no_rate_and_no_percentage() {
    let db = Db::new().await;
    let sql = "select public.get_sms_metrics('2026-11-01', '2026-11-08')";
    let none = db.value(sql).await;
    assert_eq!(
        (&none["messages"], &none["delivery_rate_of_accepted"], &none["failure_rate"]),
        (&json!(0), &Value::Null, &Value::Null)
    );
    assert_eq!(none["change"]["messages"], json!({"absolute": 0, "percent": null}));
    assert_eq!((&none["cost"], &none["previous"]["start"]), (&Value::Null, &json!("2026-10-25T00:00:00+00:00")));
    db.run("insert into public.agent_sms (client_id, message_content, status, sent_at, cost, cost_currency) values
              (private.default_client_id(), 'x', 'delivered', '2026-11-01', 7.5, 'RWF'), (private.default_client_id(), 'x', 'sent', '2026-11-07 23:59:59.999999+00', 2.5, 'RWF'),
              (private.default_client_id(), 'x', 'failed', '2026-11-08', 100, 'RWF')").await;
    let some = db.value(sql).await;
    assert_eq!((&some["messages"], &some["cost"], &some["cost_currency"]), (&json!(2), &json!(10), &json!("RWF")));
    assert_eq!((&some["delivery_rate_of_accepted"], &some["delivery_rate_of_settled"]), (&json!(50), &json!(100)));
    assert_eq!(
        (&some["previous"]["cost"], &some["change"]["cost"]),
        (&json!(0), &json!({"absolute": 10, "percent": null}))
    );
}

#[tokio::test]
async fn a_period_that_is_none_is_refused() {
    let db = Db::new().await;
    for period in [
        "null, now()",
        "now(), null",
        "now(), now()",
        "'2026-11-02', '2026-11-01'",
        "'-infinity', now()",
        "now(), 'infinity'",
    ] {
        let error = db.service.query_one(&format!("select public.get_sms_metrics({period})"), &[]).await.unwrap_err();
        assert_eq!(refusal(&error).code, "PT400", "{period}");
    }
}

/// Becomes somebody signed in, who is a member of the client of this slug.
async fn member(db: &Db, client: &Client, slug: &str) {
    let user = Uuid::new_v4();
    db.run(&format!("insert into public.client_members (client_id, user_id) select id, '{user}' from public.clients where slug = '{slug}'")).await;
    let claims = json!({"sub": user, "role": "authenticated"});
    client
        .batch_execute(&format!("reset role; set role authenticated; set request.jwt.claims = '{claims}'"))
        .await
        .unwrap();
}

#[tokio::test]
async fn members_see_the_figures_of_their_client_and_nobody_elses() {
    let db = Db::new().await;
    fill(&db, &mut Dice(seed()), 300).await;
    let all = rows(&db).await;
    let (start, end) = (MONTHS[0] - HOUR, MONTHS[3] + 31 * 24 * HOUR);
    let everything = Filter { start, end, client: None, deployment: None, kind: None };
    let client = db.connect().await;
    for (slug, other) in [("kigali", "huye"), ("huye", "kigali")] {
        let id = async |slug: &str| {
            let id = db.value(&format!("select id from public.clients where slug = '{slug}'")).await;
            serde_json::from_value::<Uuid>(id).unwrap()
        };
        let (own, other) = (id(slug).await, id(other).await);
        member(&db, &client, slug).await;
        let mine: Vec<&Sms> = all.iter().filter(|sms| sms.client == own).collect();
        assert!(mine.len() > 10);
        let theirs = Filter { client: Some(own), ..everything.clone() };
        assert_eq!(asked(&client, &everything).await, reference(&all, &theirs), "{slug} without a filter");
        assert_eq!(asked(&client, &theirs).await, reference(&all, &theirs), "{slug} by name");
        let somebody = all.iter().find(|sms| sms.client == other).unwrap();
        for denied in [
            Filter { client: Some(other), ..everything.clone() },
            Filter { deployment: Some(somebody.deployment.to_string()), ..everything.clone() },
        ] {
            assert_eq!(asked(&client, &denied).await["messages"], 0, "{slug}: {denied:?}");
            assert_ne!(asked(&db.service, &denied).await["messages"], 0, "there is something to be denied");
        }
        for view in ["agent_sms", "v_agent_sms_enriched", "v_agent_communications"] {
            let count = |condition: &str| format!("select count(*) from public.{view} where {condition}");
            let seen = async |sql: String| client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0);
            assert_eq!(seen(count("true")).await, mine.len() as i64, "{slug} in {view}");
            assert_eq!(seen(count(&format!("client_id = '{other}'"))).await, 0, "{slug} in {view}");
            assert!(db.count(&count(&format!("client_id = '{other}'"))).await > 0);
        }
        let days = client.query_one("select sum(messages)::bigint from public.v_agent_sms_days", &[]).await.unwrap();
        assert_eq!(days.get::<_, i64>(0), mine.len() as i64, "{slug} in v_agent_sms_days");
    }
    // Somebody who is signed in and no member of anything; and somebody who is not signed in.
    let claims = json!({"sub": Uuid::new_v4(), "role": "authenticated"});
    client.batch_execute(&format!("set request.jwt.claims = '{claims}'")).await.unwrap();
    assert_eq!(asked(&client, &everything).await["messages"], 0);
    client.batch_execute("reset role; set role anon").await.unwrap();
    for sql in [
        "select public.get_sms_metrics(now() - interval '1 day', now())",
        "select count(*) from public.v_agent_sms_enriched",
    ] {
        assert_eq!(refusal(&client.query_one(sql, &[]).await.unwrap_err()).code, "42501", "{sql}");
    }
}

#[tokio::test]
async fn calls_and_sms_stand_in_one_timeline_and_pages_follow_each_other() {
    let db = Db::new().await;
    db.run(CLIENTS).await;
    db.run(
        "insert into public.agent_sms (deployment_id, message_content, sent_at)
         select d.id, 'sms ' || n, timestamptz '2026-11-01' + n / 3 * interval '1 minute' from public.agent_deployments d, generate_series(1, 40) n where d.name = 'louis';
         insert into public.agent_calls (client_id, deployment_id, started_at, duration_seconds)
         select d.client_id, d.id, timestamptz '2026-11-01' + n * interval '2 minutes', 60 from public.agent_deployments d, generate_series(1, 7) n where d.name = 'louis'",
    )
    .await;
    let whole = "select jsonb_agg(x.id order by x.occurred_at desc, x.id desc) from public.v_agent_communications x where x.agent_type_name = 'louis'";
    let whole = db.value(whole).await;
    assert_eq!(whole.as_array().unwrap().len(), 47);
    let mut seen: Vec<Value> = Vec::new();
    let mut after = String::new();
    loop {
        let sql = format!(
            "select to_jsonb(x) from public.v_agent_communications x join public.agent_deployments d on d.id = x.deployment_id
              where d.name = 'louis' {after} order by x.occurred_at desc, x.id desc limit 10"
        );
        let page: Vec<Value> = db.service.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let Some(last) = page.last() else { break };
        after = format!(
            "and (x.occurred_at, x.id) < ('{}', '{}')",
            last["occurred_at"].as_str().unwrap(),
            last["id"].as_str().unwrap()
        );
        seen.extend(page.iter().map(|row| row["id"].clone()));
    }
    assert_eq!(json!(seen), whole, "each once, in order, whatever happened at the same time");
    let call = db.value("select to_jsonb(x) from public.v_agent_communications x where kind = 'call' limit 1").await;
    assert_eq!(
        (&call["call_id"], &call["duration_seconds"], &call["client_slug"]),
        (&call["id"], &json!(60), &json!("kigali"))
    );
}
