//! What an SMS costs and sells for: counted by the rule of the core, priced by the list of its day, and the same for ever after.
//! All amounts are whole millionths here, as `numeric(12,6)` holds them; no float anywhere.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use ihuza_core::sms;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{Db, Dice, at, check_cases, in_full, root, seed, value};

/// Millionths of an amount as Postgres writes it.
fn millionths(amount: &str) -> i128 {
    let (sign, digits) = amount.strip_prefix('-').map_or((1, amount), |rest| (-1, rest));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    assert!(part.len() <= 6, "{amount} has more than six decimals");
    sign * (whole.parse::<i128>().unwrap() * 1_000_000 + format!("{part:0<6}").parse::<i128>().unwrap())
}

fn decimal(millionths: i128) -> String {
    format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000)
}

// ---------------------------------------------------------------------------------------------------- counting

const BASIC: &[char] = &['a', 'z', 'A', ' ', '\n', '@', '_', 'é', 'Ω', 'ß', '¡', '¿'];
const EXTENSION: &[char] = &['€', '[', ']', '{', '}', '\\', '~', '^', '|', '\u{c}'];
const WIDE: &[char] = &['ç', '`', 'ñ', 'ӿ', '中', '\t', '\u{ffff}', '\u{d7ff}', '\u{e000}'];
const PAIRS: &[char] = &['😀', '𝄞', '\u{10000}', '\u{10ffff}'];

/// A text whose length is near a border, with extension characters or surrogate pairs anywhere in it.
fn text(dice: &mut Dice) -> String {
    const BORDERS: [usize; 12] = [0, 1, 67, 70, 134, 153, 160, 201, 268, 306, 459, 612];
    let length = (BORDERS[dice.below(BORDERS.len())] + dice.below(5)).saturating_sub(2);
    let (ucs2, odd) = (dice.below(2) == 0, 1 + dice.below(60));
    let mut draw = |from: &[char]| from[dice.below(from.len())];
    let mut text: String = (0..length)
        .map(|n| match (n % odd == 0, ucs2) {
            (true, true) => draw(PAIRS),
            (true, false) => draw(EXTENSION),
            (false, _) => draw(BASIC),
        })
        .collect();
    if ucs2 && length > 0 {
        text.push(draw(WIDE));
    }
    text
}

async fn counted(client: &Client, texts: &[String]) -> Vec<(String, i32, i16)> {
    let sql = "select u.encoding, u.units, u.segments from unnest($1::text[]) with ordinality t (x, n), lateral private.sms_units(t.x) u order by t.n";
    let rows = client.query(sql, &[&texts]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

fn assert_counted(texts: &[String], found: &[(String, i32, i16)]) {
    assert_eq!(texts.len(), found.len());
    for (text, (encoding, units, segments)) in texts.iter().zip(found) {
        let count = sms::count(text);
        assert_eq!(
            (encoding.as_str(), *units as usize, *segments as usize),
            (count.encoding.as_str(), count.units, count.segments),
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn the_database_counts_segments_as_the_core_does() {
    let db = Db::new().await;
    let vectors = std::fs::read_to_string(root().join("tests/vectors/sms_segments.json")).unwrap();
    let vectors: Value = serde_json::from_str(&vectors).unwrap();
    let known: Vec<String> = ["rules", "billed"]
        .iter()
        .flat_map(|kind| vectors[kind].as_array().unwrap())
        .map(|vector| {
            let parts = vector["text"].as_array().unwrap().iter();
            parts.map(|part| part[0].as_str().unwrap().repeat(part[1].as_u64().unwrap() as usize)).collect()
        })
        .collect();
    assert!(known.len() > 20);
    assert_counted(&known, &counted(&db.admin, &known).await);

    let mut dice = Dice(seed());
    let (batches, each) = if in_full() { (1_000, 1_000) } else { (20, 500) };
    let mut longest = 0;
    for _ in 0..batches {
        let texts: Vec<String> = (0..each).map(|_| text(&mut dice)).collect();
        assert_counted(&texts, &counted(&db.admin, &texts).await);
        longest = longest.max(texts.iter().map(|text| sms::count(text).segments).max().unwrap());
    }
    assert!(longest > 5, "only short texts were tried");
    // Every character of the planes that there are, one by one.
    let step = if in_full() { 1 } else { 37 };
    let all: Vec<String> = (1..=0x1_0ffff_u32).step_by(step).filter_map(char::from_u32).map(String::from).collect();
    assert_counted(&all, &counted(&db.admin, &all).await);
    let first: Vec<String> =
        (1..=0x3ff_u32).chain(0x20a0..=0x20bf).filter_map(char::from_u32).map(String::from).collect();
    assert_counted(&first, &counted(&db.admin, &first).await);
    println!("counted {} texts in segments by the database as by the core", batches * each + all.len());
}

// ------------------------------------------------------------------------------------------------- price lists

const CLIENTS: [&str; 2] = ["00000000-0000-4000-8000-0000000000c1", "00000000-0000-4000-8000-0000000000c2"];
const PROVIDERS: [&str; 3] = ["mtn", "twilio", "any"];
const PREFIXES: [&str; 5] = ["", "+250", "+25078", "+250788", "+32"];
const NUMBERS: [&str; 6] =
    ["+250788123456", "+250728123456", "+250799123456", "+32470123456", "+15551234567", "+243998765432"];
const CURRENCIES: [&str; 3] = ["RWF", "USD", "EUR"];

#[derive(Clone, Debug)]
struct Listed {
    client: Option<usize>,
    side: &'static str,
    provider: &'static str,
    prefix: &'static str,
    country: Option<&'static str>,
    operator: Option<&'static str>,
    /// Days since the beginning.
    from: i64,
    until: Option<i64>,
    price: i128,
    currency: &'static str,
}

#[derive(Clone, Debug)]
struct Asked {
    client: usize,
    side: &'static str,
    provider: &'static str,
    number: &'static str,
    day: i64,
}

fn day(n: i64) -> DateTime<Utc> {
    at(0) + TimeDelta::days(n)
}

/// Country and operator of a number, by the ranges that the migrations know.
fn range_of(number: &str) -> (Option<&'static str>, Option<&'static str>) {
    let known = [
        ("+25078", "RW", Some("mtn")),
        ("+25079", "RW", Some("mtn")),
        ("+25072", "RW", Some("airtel")),
        ("+25073", "RW", Some("airtel")),
        ("+250", "RW", None),
        ("+243", "CD", None),
        ("+32", "BE", None),
    ];
    let found = known.iter().find(|(prefix, ..)| number.starts_with(prefix));
    (found.map(|(_, country, _)| *country), found.and_then(|(_, _, operator)| *operator))
}

/// The rule in Rust: what a list says of a number, and in which currency.
fn price_of(list: &[Listed], asked: &Asked) -> Option<(i128, &'static str)> {
    let (country, operator) = range_of(asked.number);
    let fits = |row: &&Listed| {
        row.side == asked.side
            && (row.provider == asked.provider || row.provider == "any")
            && row.client.is_none_or(|client| client == asked.client)
            && row.from <= asked.day
            && row.until.is_none_or(|until| asked.day < until)
            && asked.number.starts_with(row.prefix)
            && (row.country.is_none() || row.country == country)
            && (row.operator.is_none() || row.operator == operator)
    };
    let weight = |row: &&Listed| {
        let own = row.client.is_some();
        (own, row.prefix.len(), row.operator.is_some(), row.country.is_some(), row.provider != "any", row.from)
    };
    list.iter().filter(fits).max_by_key(weight).map(|row| (row.price, row.currency))
}

fn listed() -> impl Strategy<Value = Listed> {
    let place = prop_oneof![
        3 => prop::sample::select(PREFIXES.to_vec()).prop_map(|prefix| (prefix, None, None)),
        1 => prop::sample::select(vec!["RW", "BE", "CD"]).prop_map(|country| ("", Some(country), None)),
        1 => prop::sample::select(vec!["mtn", "airtel"]).prop_map(|operator| ("", Some("RW"), Some(operator))),
    ];
    (
        prop::option::of(0..2_usize),
        prop::sample::select(vec!["cost", "revenue"]),
        prop::sample::select(PROVIDERS.to_vec()),
        place,
        (0..6_i64, prop::option::of(1..6_i64)),
        (0..9_999_999_i128, prop::sample::select(CURRENCIES.to_vec())),
    )
        .prop_map(|(client, side, provider, (prefix, country, operator), (from, length), (price, currency))| {
            Listed {
                client,
                side,
                provider,
                prefix,
                country,
                operator,
                from,
                until: length.map(|length| from + length),
                price,
                currency,
            }
        })
}

/// What may stand in a list once.
fn without_repeats(rows: Vec<Listed>) -> Vec<Listed> {
    let mut seen = std::collections::BTreeSet::new();
    let key = |row: &Listed| (row.client, row.side, row.provider, row.prefix, row.country, row.operator, row.from);
    rows.into_iter().filter(|row| seen.insert(key(row))).collect()
}

async fn put_list(db: &Db, list: &[Listed]) {
    db.run(&format!(
        "insert into public.clients (id, slug, brand) values ('{}', 'one', 'One'), ('{}', 'two', 'Two') on conflict do nothing;
         delete from public.channel_prices",
        CLIENTS[0], CLIENTS[1]
    ))
    .await;
    let sql = "insert into public.channel_prices (client_id, side, provider, kind, prefix, country, operator, valid_from, valid_until, price, currency)
               values ($1::text::uuid, $2, $3, 'segment', $4, $5::text, $6, $7, $8, $9::text::numeric, $10::text)";
    for row in list {
        let client = row.client.map(|client| CLIENTS[client]);
        let (from, until) = (day(row.from), row.until.map(day));
        let price = decimal(row.price);
        db.admin
            .execute(
                sql,
                &[
                    &client,
                    &row.side,
                    &row.provider,
                    &row.prefix,
                    &row.country,
                    &row.operator,
                    &from,
                    &until,
                    &price,
                    &row.currency,
                ],
            )
            .await
            .unwrap();
    }
}

#[test]
fn a_price_is_the_one_that_the_rule_finds_in_any_list() {
    let asked = (
        0..2_usize,
        prop::sample::select(vec!["cost", "revenue"]),
        prop::sample::select(vec!["mtn", "twilio"]),
        prop::sample::select(NUMBERS.to_vec()),
        0..8_i64,
    )
        .prop_map(|(client, side, provider, number, day)| Asked { client, side, provider, number, day });
    let case = (prop::collection::vec(listed(), 1..30), prop::collection::vec(asked, 20));
    check_cases(if in_full() { 2_000 } else { 40 }, case, async |db, (list, questions)| {
        let list = without_repeats(list);
        put_list(db, &list).await;
        let sql =
            "select p.price::text, p.currency::text from private.price_of($1::text::uuid, $2, $3, 'segment', $4, $5) p";
        for asked in questions {
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&CLIENTS[asked.client], &asked.side, &asked.provider, &asked.number, &day(asked.day)];
            let row = db.admin.query_one(sql, &params).await.unwrap();
            let found = row.get::<_, Option<String>>(0).map(|price| (millionths(&price), row.get::<_, String>(1)));
            let expected = price_of(&list, &asked).map(|(price, currency)| (price, currency.to_owned()));
            prop_assert_eq!(found, expected, "{:?}", asked);
        }
        Ok(())
    });
}

#[test]
fn what_functions_compare_channels_by_is_the_price_that_the_rule_finds() {
    check_cases(if in_full() { 1_000 } else { 40 }, prop::collection::vec(listed(), 1..30), async |db, list| {
        put_list(db, &without_repeats(list)).await;
        // The lists begin and end around now; nothing else has a clock here.
        let shift = format!("- (timestamptz '{}' - now())", day(3).to_rfc3339());
        db.run(&format!(
            "update public.channel_prices set valid_from = valid_from {shift}, valid_until = valid_until {shift}"
        ))
        .await;
        let sql = format!(
            "select coalesce(jsonb_agg(jsonb_build_array(c.slug, p.provider, n.number, x.price, f.price)), '[]')
               from public.clients c
              cross join unnest('{{mtn,twilio,africas_talking}}'::text[]) p (provider) cross join unnest('{{{}}}'::text[]) n (number)
              cross join lateral private.price_of(c.id, 'cost', p.provider, 'segment', n.number, now()) x
               left join lateral (
                 select (e ->> 'price')::numeric as price, e ->> 'currency' as currency from jsonb_array_elements(private.prices_in_force(c.id)) e
                  where e ->> 'provider' = p.provider and e ->> 'kind' = 'segment' and starts_with(n.number, e ->> 'prefix')
                  order by length(e ->> 'prefix') desc limit 1) f on true
              where (x.price, x.currency::text) is distinct from (f.price, f.currency)",
            NUMBERS.join(",")
        );
        prop_assert_eq!(db.value(&sql).await, json!([]));
        Ok(())
    });
}

// ----------------------------------------------------------------------------------------------------- billing

/// A list of both sides with two changes of price, one client with a price of its own, and one country that is dearer.
fn the_list() -> Vec<Listed> {
    let row = |client, side, prefix, country, operator, from, price, currency| Listed {
        client,
        side,
        provider: "any",
        prefix,
        country,
        operator,
        from,
        until: None,
        price,
        currency,
    };
    vec![
        row(None, "cost", "", None, None, 0, 47_500, "USD"),
        row(None, "cost", "+250", None, None, 0, 10_123_457, "RWF"),
        row(None, "cost", "", Some("RW"), Some("airtel"), 2, 11_000_000, "RWF"),
        row(None, "cost", "+250", None, None, 4, 12_000_001, "RWF"),
        row(None, "revenue", "", None, None, 0, 20_000_000, "RWF"),
        row(None, "revenue", "+32", None, None, 0, 90_000_000, "RWF"),
        row(Some(1), "revenue", "", None, None, 3, 17_999_999, "RWF"),
    ]
}

/// Sums of cost and revenue by currency, as the database adds them up.
async fn sums(db: &Db) -> BTreeMap<String, i128> {
    let sql = "select 'cost ' || cost_currency, sum(cost)::text from public.agent_sms where cost is not null group by 1
               union all
               select 'revenue ' || revenue_currency, sum(revenue)::text from public.agent_sms where revenue is not null group by 1";
    let rows = db.admin.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), millionths(row.get(1)))).collect()
}

/// The same from what is stored of each message: text, status, number and day, and the list.
async fn recomputed(db: &Db, list: &[Listed]) -> BTreeMap<String, i128> {
    let mut sums = BTreeMap::new();
    let mut last = 0_i64;
    loop {
        let sql = "select (metadata ->> 'n')::bigint, message_content, segments, status, provider_message_sid is not null, phone_number,
                          (client_id = $2::text::uuid)::integer, extract(day from sent_at - $3)::bigint
                     from public.agent_sms where (metadata ->> 'n')::bigint > $1 order by 1 limit 20000";
        let rows = db.admin.query(sql, &[&last, &CLIENTS[1], &at(0)]).await.unwrap();
        let Some(end) = rows.last() else { return sums };
        last = end.get(0);
        for row in &rows {
            let segments = sms::count(row.get(1)).segments.max(1);
            assert_eq!(row.get::<_, i16>(2) as usize, segments);
            let (status, has_id): (&str, bool) = (row.get(3), row.get(4));
            let due = match status {
                "cancelled" => false,
                "failed" => has_id,
                _ => true,
            };
            let number: &str = row.get(5);
            let number = NUMBERS.iter().find(|known| **known == number).unwrap();
            for side in ["cost", "revenue"] {
                let asked =
                    Asked { client: row.get::<_, i32>(6) as usize, side, provider: "twilio", number, day: row.get(7) };
                let (price, currency) = price_of(list, &asked).unwrap();
                *sums.entry(format!("{side} {currency}")).or_default() +=
                    if due { price * segments as i128 } else { 0 };
            }
        }
    }
}

#[tokio::test]
async fn what_is_billed_is_what_text_segments_and_the_list_of_the_day_come_to() {
    let db = Db::new().await;
    let list = the_list();
    put_list(&db, &list).await;
    db.run("create index on public.agent_sms (((metadata ->> 'n')::bigint))").await;
    let (batches, each) = if in_full() { (500, 2_000) } else { (3, 1_000) };
    let mut dice = Dice(seed());
    let insert = "insert into public.agent_sms (client_id, phone_number, message_content, provider_message_sid, sent_at, provider_status, metadata)
                  select c::uuid, p, x, s, $6::timestamptz + make_interval(days => d), w, jsonb_build_object('n', n)
                    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $7::text[], $8::bigint[]) t (c, p, x, s, d, w, n)";
    for batch in 0..batches {
        let (mut c, mut p, mut x, mut s, mut d, mut w, mut n) =
            (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
        for row in 0..each {
            let number = batch as i64 * each as i64 + row as i64 + 1;
            c.push(CLIENTS[dice.below(2)]);
            p.push(NUMBERS[dice.below(NUMBERS.len())]);
            x.push(text(&mut dice));
            s.push((dice.below(5) > 0).then(|| format!("SM{number}")));
            d.push(dice.below(6) as i32);
            w.push(["queued", "sent", "delivered", "undelivered", "canceled"][dice.below(5)]);
            n.push(number);
        }
        db.service.execute(insert, &[&c, &p, &x, &s, &d, &at(0), &w, &n]).await.unwrap();
    }
    let billed = sums(&db).await;
    assert_eq!(billed, recomputed(&db, &list).await);
    assert!(billed.len() == 3 && billed.values().all(|sum| *sum > 0), "{billed:?}");

    // What becomes of them later changes what is due, and nothing else does.
    let status = "update public.agent_sms set provider_status = (array['delivered', 'failed', 'canceled'])[1 + (metadata ->> 'n')::bigint % 3]
                   where (metadata ->> 'n')::bigint % 2 = 0";
    db.service.execute(status, &[]).await.unwrap();
    let settled = sums(&db).await;
    assert_eq!(settled, recomputed(&db, &list).await);
    assert_ne!(settled, billed);

    // New prices, also for the past, and old ones gone: no message of before is touched, nor one that is written to.
    db.run("update public.channel_prices set price = price * 2; delete from public.channel_prices where prefix <> ''")
        .await;
    db.run("insert into public.channel_prices (side, provider, kind, price, currency) values ('cost', 'twilio', 'segment', 1, 'EUR')").await;
    db.service.execute("update public.agent_sms set metadata = metadata || '{\"seen\": true}', provider_status = 'read' where status = 'delivered'", &[]).await.unwrap();
    assert_eq!(sums(&db).await, settled);
    println!("counted {} SMS billed as text, segments and the list of their day come to", batches * each);
}

#[tokio::test]
async fn another_carrier_has_another_price_and_an_amount_that_is_told_stands() {
    let db = Db::new().await;
    db.run(
        "insert into public.channel_prices (side, provider, kind, price, currency)
         values ('cost', 'mtn', 'segment', 10, 'RWF'), ('cost', 'twilio', 'segment', 0.04, 'USD'), ('revenue', 'any', 'segment', 20, 'RWF');
         insert into public.agent_sms (client_id, provider, phone_number, message_content, provider_message_sid)
         values (private.default_client_id(), 'mtn', '0788123456', repeat('a', 161), 'one')",
    )
    .await;
    let amounts = "select jsonb_build_array(phone_number, segments, cost::text, cost_currency, cost_source, revenue::text, margin::text) from public.agent_sms";
    assert_eq!(
        db.value(amounts).await,
        json!(["+250788123456", 2, "20.000000", "RWF", "price_list", "40.000000", "20.000000"])
    );
    db.run("update public.agent_sms set provider = 'twilio'").await;
    assert_eq!(
        db.value(amounts).await,
        json!(["+250788123456", 2, "0.080000", "USD", "price_list", "40.000000", null])
    );
    db.run("update public.agent_sms set cost = 0.0831, cost_source = 'provider'").await;
    db.run("update public.agent_sms set provider_status = 'delivered'").await;
    assert_eq!(db.value(amounts).await, json!(["+250788123456", 2, "0.083100", "USD", "provider", "40.000000", null]));
    // The provider corrects itself; then somebody takes the amount back, and the list counts again.
    db.run("update public.agent_sms set cost = 0.0832").await;
    assert_eq!(db.value(amounts).await, json!(["+250788123456", 2, "0.083200", "USD", "provider", "40.000000", null]));
    db.run("update public.agent_sms set cost = null, cost_currency = null").await;
    assert_eq!(
        db.value(amounts).await,
        json!(["+250788123456", 2, "0.080000", "USD", "price_list", "40.000000", null])
    );
    // The text comes later than the row.
    db.run(
        "truncate public.agent_sms;
         insert into public.agent_sms (client_id, provider, phone_number, provider_message_sid) values (private.default_client_id(), 'mtn', '0788123456', 'two')",
    )
    .await;
    assert_eq!(db.value(amounts).await, json!(["+250788123456", null, null, null, null, null, null]));
    db.run("update public.agent_sms set message_content = 'short'").await;
    assert_eq!(
        db.value(amounts).await,
        json!(["+250788123456", 1, "10.000000", "RWF", "price_list", "20.000000", "10.000000"])
    );
}

#[tokio::test]
async fn a_margin_waits_for_its_rate_and_keeps_it() {
    let db = Db::new().await;
    db.run(
        "insert into public.channel_prices (side, provider, kind, price, currency, valid_from)
         values ('cost', 'any', 'segment', 0.0475, 'USD', '2026-01-01'), ('revenue', 'any', 'segment', 90, 'RWF', '2026-01-01');
         insert into public.agent_sms (client_id, phone_number, message_content, provider_message_sid, sent_at)
         select private.default_client_id(), '+250788123456', 'Muraho', 'SM' || n, timestamptz '2026-11-01 12:00Z' + make_interval(days => n)
           from generate_series(0, 3) n",
    )
    .await;
    let margins = "select jsonb_agg(jsonb_build_array(margin::text, fx_date) order by sent_at) from public.agent_sms";
    let unknown = json!([null, null]);
    assert_eq!(db.value(margins).await, json!([unknown, unknown, unknown, unknown]));
    db.run("insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'RWF', '2026-11-02', 1450.5)")
        .await;
    let first = json!(["21.101250", "2026-11-02"]);
    assert_eq!(db.value(margins).await, json!([unknown, first, first, first]));
    // Another pair, a later rate, a correction: who has a margin keeps it.
    db.run(
        "insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'EUR', '2026-10-01', 0.9), ('USD', 'RWF', '2026-11-03', 1500);
         update public.fx_rates set rate = 1 where quote = 'RWF'",
    )
    .await;
    assert_eq!(db.value(margins).await, json!([unknown, first, first, first]));
    db.run("insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'RWF', '2026-10-01', 1400)")
        .await;
    assert_eq!(db.value(margins).await, json!([["23.500000", "2026-10-01"], first, first, first]));
    // One that is written now takes the rate of its day at once.
    db.run(
        "insert into public.agent_sms (client_id, phone_number, message_content, provider_message_sid, sent_at)
         values (private.default_client_id(), '+250788123456', 'Muraho', 'SM9', '2026-10-05 12:00Z')",
    )
    .await;
    let sql =
        "select jsonb_build_array(margin::text, fx_date) from public.agent_sms where provider_message_sid = 'SM9'";
    assert_eq!(value(&db.admin, sql).await, json!(["23.500000", "2026-10-01"]));
}

// ------------------------------------------------------------------------------------------------ the documents

/// The cells of the tables whose head begins with `first`.
fn table(page: &str, first: &str) -> Vec<Vec<String>> {
    let lines = page.lines().skip_while(|line| !line.starts_with(&format!("| {first} |"))).skip(2);
    let lines = lines.take_while(|line| line.starts_with('|'));
    lines
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect())
        .collect()
}

#[tokio::test]
async fn the_worked_examples_of_the_pricing_page_are_what_the_database_says() {
    let db = Db::new().await;
    let page = std::fs::read_to_string(root().join("docs/pricing-model.md")).unwrap();
    let sql = page.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    db.run(sql).await;
    let messages = table(&page, "message");
    assert_eq!(messages.len(), 9);
    for (n, cells) in messages.iter().enumerate() {
        let [text, client, provider, to, day, status, segments, cost, revenue, margin] = &cells[..] else {
            panic!("{cells:?}")
        };
        let slug = if client == "K" { "'kigali-homes'" } else { "(select slug from public.clients where is_default)" };
        let sql = format!(
            "select public.log_agent_sms('{to}', '{text}', 'SM{n}', '{provider}', p_client_id => (select id from public.clients where slug = {slug}),
               p_status => '{status}', p_sent_at => '{day}')"
        );
        db.run(&sql).await;
        let sql = format!(
            "select jsonb_build_array(segments::text, concat_ws(' ', cost, cost_currency), concat_ws(' ', revenue, revenue_currency), coalesce(margin::text, ''))
               from public.agent_sms where provider_message_sid = 'SM{n}'"
        );
        assert_eq!(db.value(&sql).await, json!([segments, cost, revenue, margin]), "{cells:?}");
    }
    let calls = table(&page, "seconds");
    assert_eq!(calls.len(), 3);
    for (n, cells) in calls.iter().enumerate() {
        let [seconds, model, cost, revenue, margin] = &cells[..] else { panic!("{cells:?}") };
        let (amount, currency) = model.split_once(' ').unwrap();
        db.run(&format!(
            "insert into public.voice_calls (origin, provider_call_id, from_number, status, started_at, answered_at, ended_at, duration_seconds, cost, cost_currency)
             values ('mtn_sip', 'call-{n}', '+250788123456', 'completed', '2026-06-02', '2026-06-02', '2026-06-02 00:01', {seconds}, {amount}, '{currency}')"
        ))
        .await;
        let sql = format!(
            "select jsonb_build_array(concat_ws(' ', c.cost, c.cost_currency), concat_ws(' ', c.revenue, c.revenue_currency), c.margin::text)
               from public.agent_calls c join public.voice_calls v on v.id = c.voice_call_id where v.provider_call_id = 'call-{n}'"
        );
        assert_eq!(db.value(&sql).await, json!([cost, revenue, margin]), "{cells:?}");
    }
}

#[tokio::test]
async fn what_had_no_price_gets_that_of_its_day_once_there_is_one_and_nothing_else_changes() {
    let db = Db::new().await;
    db.run("insert into public.clients (slug, brand) values ('kigali', 'K'), ('huye', 'H')").await;
    let price = |client: &str, side: &str, price: &str, currency: &str, from: &str| {
        format!(
            "insert into public.channel_prices (client_id, side, provider, kind, price, currency, valid_from)
             select (select id from public.clients where slug = '{client}'), '{side}', 'twilio', 'segment', {price}, '{currency}', '{from}'"
        )
    };
    // One has a price on both sides when it is written; the others wait, some for one side only.
    let write = |client: &str, sid: &str, at: &str, more: &str| {
        format!(
            "insert into public.agent_sms (client_id, provider, provider_message_sid, phone_number, message_content, sent_at, status{})
             select id, 'twilio', '{sid}', '+32470123456', repeat('x', 161), '{at}', {} from public.clients where slug = '{client}'",
            if more.is_empty() { "" } else { ", cost, cost_currency" },
            if more.is_empty() { "'sent'".to_owned() } else { format!("'sent', {more}") },
        )
    };
    db.run(&price("huye", "cost", "0.07", "USD", "2026-05-01")).await;
    for (client, sid, at, more) in [
        ("kigali", "before", "2026-05-31T23:59:59Z", ""),
        ("kigali", "june", "2026-06-01T00:00:00Z", ""),
        ("kigali", "told", "2026-06-02T00:00:00Z", "0.01, 'USD'"),
        ("huye", "priced", "2026-06-03T00:00:00Z", ""),
        ("kigali", "july", "2026-07-02T00:00:00Z", ""),
    ] {
        db.run(&write(client, sid, at, more)).await;
    }
    db.run("insert into public.agent_sms (client_id, provider, provider_message_sid, phone_number, message_content, sent_at, status)
            select id, 'twilio', 'erased', null, null, '2026-06-04', 'failed' from public.clients where slug = 'kigali'").await;
    db.run("insert into public.agent_sms (client_id, provider, provider_message_sid, phone_number, message_content, sent_at, status)
            select id, 'mtn', 'other', '+32470123456', 'x', '2026-06-05', 'sent' from public.clients where slug = 'kigali'").await;
    let amounts = "select jsonb_object_agg(provider_message_sid, jsonb_build_array(unit_cost::text, cost::text, cost_source, revenue::text, revenue_source)) from public.agent_sms";
    let before = db.value(amounts).await;
    assert_eq!(before["priced"], json!(["0.070000", "0.140000", "price_list", null, null]));
    assert_eq!(before["june"], json!([null, null, null, null, null]));

    db.run(&price("kigali", "cost", "0.1", "USD", "2026-06-01")).await;
    db.run(&price("kigali", "cost", "0.2", "USD", "2026-07-01")).await;
    db.run("insert into public.channel_prices (side, provider, kind, price, currency, valid_from) values ('revenue', 'any', 'segment', 0.3, 'USD', '2026-06-01'), ('cost', 'twilio', 'segment', 9, 'USD', '2020-01-01')").await;
    let fill = async |limit: i32, later: &str| {
        let sql = "select private.price_what_is_unpriced($1, now() + $2::text::interval)";
        db.service.query_one(sql, &[&limit, &later]).await.unwrap().get::<_, i32>(0)
    };
    // Not at once: a message that is being written meanwhile has not seen the list.
    assert_eq!(fill(100, "0 s").await, 0);
    assert_eq!(db.value(amounts).await, before);
    let mut rounds = Vec::new();
    while db.count("select count(*) from public.channel_prices where fills_from is not null").await > 0 {
        rounds.push(fill(2, "1 minute").await);
        assert!(rounds.len() < 20, "{rounds:?}");
    }
    let after = db.value(amounts).await;
    let expected = json!({
        "before": ["9.000000", "18.000000", "price_list", null, null],
        "june": ["0.100000", "0.200000", "price_list", "0.600000", "price_list"],
        "told": [null, "0.010000", "writer", "0.600000", "price_list"],
        "priced": ["0.070000", "0.140000", "price_list", "0.600000", "price_list"],
        "july": ["0.200000", "0.400000", "price_list", "0.600000", "price_list"],
        "erased": [null, null, null, null, null],
        "other": [null, null, null, "0.300000", "price_list"],
    });
    assert_eq!(after, expected, "{rounds:?}");
    assert_eq!(fill(100, "1 hour").await, 0, "nothing is left to be looked at");
    assert_eq!(db.count("select count(*) from private.check_sms_rollups()").await, 0);

    // Many for whom nobody has entered anything are passed by in portions.
    db.run("insert into public.agent_sms (client_id, provider, provider_message_sid, phone_number, message_content, sent_at, status)
            select id, 'unheard_of', 'u' || n, '+32470123456', 'x', '2019-07-01', 'sent' from public.clients, generate_series(1, 50) n where slug = 'kigali'").await;
    db.run(&write("huye", "behind", "2019-07-02T00:00:00Z", "")).await;
    db.run(
        "insert into public.channel_prices (client_id, side, provider, kind, price, currency, valid_from)
            select id, 'cost', 'twilio', 'segment', 1, 'USD', '2019-01-01' from public.clients where slug = 'huye'",
    )
    .await;
    let mut portions = Vec::new();
    while db.count("select count(*) from public.channel_prices where fills_from is not null").await > 0 {
        portions.push(fill(2, "1 minute").await);
        assert!(portions.len() < 20, "{portions:?}");
    }
    assert_eq!(
        (portions[..2].to_vec(), portions.iter().sum::<i32>()),
        (vec![0, 0], 1),
        "twenty at a time: {portions:?}"
    );
    assert_eq!(db.value(amounts).await["behind"][1], "2.000000");
    db.run("delete from public.agent_sms where sent_at < '2020-01-01'").await;

    // A newer or corrected list changes no amount that is there.
    db.run("update public.channel_prices set price = price * 2").await;
    assert_eq!(fill(100, "1 hour").await, 0);
    assert_eq!(db.value(amounts).await, after);
    // And the sweep does it by itself.
    db.run("insert into public.agent_sms (client_id, provider, provider_message_sid, phone_number, message_content, status)
            select id, 'africas_talking', 'swept', '+32470123456', 'x', 'sent' from public.clients where slug = 'kigali'").await;
    db.run("insert into public.channel_prices (side, provider, kind, price, currency, valid_from)
            values ('cost', 'africas_talking', 'segment', 1, 'USD', now() - interval '1 day'), ('cost', 'mtn', 'minute', 1, 'USD', '2020-01-01')").await;
    let later = db.value("select to_jsonb(now() + interval '2 minutes')").await;
    assert_eq!(db.rpc("sweep", json!({"now": later})).await["sms_figures"]["priced"], 1);
    assert_eq!(db.value(amounts).await["swept"][1], "1.000000");
}

#[tokio::test]
async fn a_call_from_a_withheld_number_costs_what_the_list_says_of_all_numbers() {
    let db = Db::new().await;
    db.run("insert into public.channel_prices (side, provider, kind, prefix, price, currency, valid_from)
            values ('cost', 'mtn_sip', 'minute', '', 0.02, 'USD', '2020-01-01'), ('revenue', 'any', 'minute', '', 0.05, 'USD', '2020-01-01'),
                   ('cost', 'mtn_sip', 'minute', '+250', 0.5, 'USD', '2020-01-01')").await;
    db.run("insert into public.voice_calls (origin, provider_call_id, from_number, status, started_at, answered_at, ended_at, duration_seconds)
            values ('mtn_sip', 'withheld', null, 'completed', '2026-06-02', '2026-06-02', '2026-06-02 00:02', 61)").await;
    let sql = "select jsonb_build_array(phone_number, cost::text, revenue::text, margin::text) from public.agent_calls";
    assert_eq!(db.value(sql).await, json!([null, "0.040000", "0.100000", "0.060000"]));
}
