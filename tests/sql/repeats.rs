//! A million repeated webhooks of every kind have no effect at all: not one row of any table differs afterwards.
//!
//! Carriers repeat what they were not thanked for, for days, in other batches and in another order. The copies are made and
//! counted inside the database, thousands a call. A million under `cargo xtask soak`, a seeded sample in `cargo xtask test`.

use serde_json::{Value, json};

use crate::support::{Db, Dice, at_text, attempt, in_full, lines, phone, seed, text, token, unique, with};

const COPIES: u64 = 1_000_000;
const SAMPLE: u64 = 3_000;
/// People, each with one webhook of every kind.
const PEOPLE: usize = 12;
/// Copies in one round, by kind: what costs most is repeated least.
const MESSAGES: u64 = 700;
const CALLS: u64 = 250;
const REPORTS: u64 = 50;
const NOW: i64 = 600_000;

/// Calls the function with one of these arguments so often, each time with another lease; how often it said what.
const REPEAT: &str = "
create function pg_temp.repeat(p_name text, p_all jsonb, p_count integer, p_seed double precision) returns table (said text, times bigint)
language plpgsql as $$
declare
  v_p jsonb;
  v_answer jsonb;
begin
  perform setseed(p_seed);
  create temp table if not exists heard (said text);
  truncate heard;
  for i in 1 .. p_count loop
    v_p := p_all -> floor(random() * jsonb_array_length(p_all))::integer;
    if p_name = 'begin_sms_turn' then
      v_answer := public.begin_sms_turn(v_p || jsonb_build_object('lease_token', gen_random_uuid()));
      insert into heard values (v_answer ->> 'decision');
    elsif p_name = 'record_delivery_events' then
      v_answer := public.record_delivery_events(v_p);
      insert into heard values (format('%s applied, %s orphaned, %s fallbacks', v_answer ->> 'applied', v_answer ->> 'orphaned', jsonb_array_length(v_answer -> 'fallbacks')));
    else
      v_answer := public.record_whatsapp_calls(v_p);
      insert into heard values (format('%s to notify', jsonb_array_length(v_answer -> 'notify')));
    end if;
  end loop;
  return query select h.said, count(*) from heard h group by 1;
end
$$;";

/// Everything that the tables hold, in one line a table, with when each row was written last.
async fn everything(db: &Db) -> Vec<String> {
    let tables = lines(
        &db.admin,
        "select format('select %L || '' '' || count(*) || '' '' || coalesce(md5(string_agg(md5(x.j), '''' order by md5(x.j))), '''') from (select to_jsonb(r)::text as j from %s r) x', c.relname, c.oid::regclass)
           from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' order by c.relname",
    )
    .await;
    let mut all = Vec::new();
    for table in tables {
        all.extend(lines(&db.admin, &table).await);
    }
    all
}

/// What has come once and was worked off: messages by SMS and on WhatsApp, reports on the answers, calls over WhatsApp.
struct Heard {
    messages: Vec<Value>,
    reports: Vec<Value>,
    calls: Vec<Value>,
}

async fn heard(db: &Db) -> Heard {
    let mut heard = Heard { messages: Vec::new(), reports: Vec::new(), calls: Vec::new() };
    for n in 0..PEOPLE {
        let (who, ms) = (phone(), 1_000 * n as i64);
        for channel in ["sms", "whatsapp"] {
            let provider = if channel == "sms" { "mtn" } else { "whatsapp" };
            let message = json!({"channel": channel, "provider": provider, "provider_message_id": format!("in-{}", unique()), "from": who, "to": "118",
                                 "text": "hello", "correlation_id": "c", "lease_token": token(1), "now": at_text(ms)});
            let turn = db.rpc("begin_sms_turn", message.clone()).await;
            heard.messages.push(with(message, json!({"now": at_text(NOW)})));
            let (id, named) = (text(&turn, &format!("/delivery_ids/{channel}")), format!("Out-{}", unique()));
            let accepted = with(attempt("accepted", ms + 10), json!({"provider_message_id": named}));
            let delivery = json!({"id": id, "channel": channel, "provider": provider, "recipient": who, "purpose": "reply", "content": "Yes.",
                                  "payload": {"text": "Yes."}, "deadline_at": at_text(3_600_000), "attempt": accepted});
            let p = json!({"turn_id": turn["turn_id"], "lease_token": token(1), "outcome": "answered", "deliveries": [delivery], "now": at_text(ms + 20),
                           "reply": {"content": "Yes.", "source": "model", "renditions": {"sms": {"text": "Yes."}, "whatsapp": {"kind": "text", "text": "Yes."}}}});
            db.rpc("finish_sms_turn", p).await;
            // Some fail after all, and the other channel carries them; of some nobody ever hears which message it was.
            let words = if n % 3 == 0 { ["sent", "failed"] } else { ["delivered", "read"] };
            let events = words.iter().zip(1..).map(|(status, second)| {
                let named = if n % 4 == 3 { format!("lost-{n}-{channel}") } else { named.clone() };
                json!({"provider": provider, "provider_message_id": named, "status": status, "occurred_at": at_text(ms + 1_000 * second),
                       "error_code": (*status == "failed").then_some("131026"), "error_class": (*status == "failed").then_some("permanent"),
                       "evidence": (*status == "failed" && channel == "whatsapp").then_some("not_on_whatsapp")})
            });
            heard.reports.extend(events);
        }
        let sid = format!("wacid.{}", unique());
        let call = |event: &str| {
            json!({"call_sid": sid, "event": event, "direction": "inbound", "phone": who, "phone_number_id": "118", "occurred_at": at_text(ms + 5_000),
                   "answered_at": at_text(ms + 2_000), "duration_seconds": 3})
        };
        heard.calls.extend([call("connect"), call("terminate")]);
    }
    let first = |events: &[Value]| json!({"correlation_id": "r", "events": events, "now": at_text(NOW)});
    db.rpc("record_delivery_events", first(&heard.reports)).await;
    db.rpc("record_whatsapp_calls", json!({"correlation_id": "w", "calls": heard.calls, "now": at_text(NOW)})).await;
    heard
}

/// The same items in other batches: of one, of some in another order, of one twice.
fn batches(items: &[Value], name: &str, dice: &mut Dice) -> Vec<Value> {
    (0..40)
        .map(|_| {
            let some: Vec<&Value> = (0..1 + dice.below(4)).map(|_| &items[dice.below(items.len())]).collect();
            json!({"correlation_id": "again", name: some, "now": at_text(NOW)})
        })
        .collect()
}

#[tokio::test]
async fn a_million_repeated_webhooks_change_nothing() {
    let copies = if in_full() { COPIES } else { SAMPLE };
    let db = Db::new().await;
    let heard = heard(&db).await;
    let mut dice = Dice(seed());
    let kinds = [
        ("begin_sms_turn", heard.messages.clone(), MESSAGES),
        ("record_delivery_events", batches(&heard.reports, "events", &mut dice), REPORTS),
        ("record_whatsapp_calls", batches(&heard.calls, "calls", &mut dice), CALLS),
    ];
    let client = db.connect().await;
    client.batch_execute(REPEAT).await.unwrap();
    let before = everything(&db).await;
    let mut done = 0;
    while done < copies {
        for (name, all, count) in &kinds {
            let sql = "select said, times from pg_temp.repeat($1, $2, $3, $4)";
            let (copies, dice) = (*count as i32, dice.below(1_000) as f64 / 1_000.0);
            let said = client.query(sql, &[name, &Value::from(all.clone()), &copies, &dice]).await.unwrap();
            let times: i64 = said.iter().map(|row| row.get::<_, i64>(1)).sum();
            assert_eq!(times as u64, *count);
            done += count;
            for said in said.iter().map(|row| row.get::<_, String>(0)) {
                match *name {
                    "begin_sms_turn" => assert_eq!(said, "duplicate"),
                    // The fallback that is still to be sent is told of again; the queue finds it claimed.
                    "record_delivery_events" => {
                        assert!(said.starts_with("0 applied, 0 orphaned, "), "{name} said {said}")
                    }
                    _ => {}
                }
            }
        }
    }
    let after = everything(&db).await;
    assert_eq!(after, before, "a copy had an effect");
    println!("counted {done} repeated webhooks without effect");
}
