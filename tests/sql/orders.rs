//! Status events of one message in every order, with repeats, before and after its row is written: each step against a
//! small model written from the design and not from the code (`fold.rs` holds the same fold against that of the core).
//!
//! All sequences are a tree: each event is tried and undone before the next, so that every sequence costs one report.
//! `cargo xtask soak` walks the whole of it, `cargo xtask test` the tree of two words and a seeded sample of all.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{Db, at_text, attempt, in_full, phone, seed, text, token, unique, with};

const LONGEST: usize = 6;
/// Sequences that `cargo xtask test` looks at.
const SAMPLE: u32 = 400;
/// What carriers report; the first so many letters of [`LETTERS`].
const REPORTED: usize = 6;
/// Each status with the second at which it happened: an early status may have a late time, two have the same, and none that
/// of what we ourselves note.
const LETTERS: [(&str, i64); 10] = [
    ("delivered", 14),
    ("failed", 13),
    ("sent", 12),
    ("read", 11),
    ("undeliverable", 12),
    ("expired", 13),
    ("queued", 7),
    ("sending", 15),
    ("unknown", 13),
    ("suppressed", 12),
];
/// From the weakest to the strongest, as the design has it.
const LADDER: [&[&str]; 7] = [
    &["queued"],
    &["sending"],
    &["unknown"],
    &["sent"],
    &["expired", "failed", "suppressed", "undeliverable"],
    &["delivered"],
    &["read"],
];
const STARTED: i64 = 9;
const FINISHED: i64 = 10;

/// One report: which letter, and the second at which it says that it happened.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Report {
    letter: usize,
    second: i64,
}

impl Report {
    /// At an even place of the sequence a status has its own time, at an odd one a second more: a repeat is now the same
    /// report again and now another one with the same word.
    fn at(place: usize, letter: usize) -> Self {
        Self { letter, second: LETTERS[letter].1 + place as i64 % 2 }
    }

    fn status(self) -> &'static str {
        LETTERS[self.letter].0
    }

    fn code(self) -> Option<&'static str> {
        match self.status() {
            "failed" => Some("131000"),
            "undeliverable" => Some("131026"),
            "expired" => Some("late"),
            _ => None,
        }
    }

    /// By our id, or by the provider's.
    fn event(self, message: &Message) -> Value {
        let mut event =
            json!({"provider": "whatsapp", "status": self.status(), "occurred_at": at_text(self.second * 1000)});
        if let Some(code) = self.code() {
            event["error_code"] = json!(code);
            event["error_class"] = json!("permanent");
        }
        if self.letter.is_multiple_of(2) {
            event["provider_message_id"] = json!(message.provider_message_id);
        } else {
            event["delivery_ref"] = json!(message.id);
        }
        event
    }
}

/// What must be known of the message, by the design.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Status, second, code; each once.
    seen: Vec<(&'static str, i64, Option<&'static str>)>,
    written: bool,
    /// The SMS that carries the message instead: once it failed, for good.
    fell_back: bool,
}

impl Model {
    /// Whether the report was new.
    fn hear(&mut self, status: &'static str, second: i64, code: Option<&'static str>) -> bool {
        let is_new = !self.seen.contains(&(status, second, code));
        if is_new {
            self.seen.push((status, second, code));
        }
        self.look();
        is_new
    }

    fn write(&mut self) {
        self.written = true;
        for (status, second) in [("queued", STARTED), ("sending", STARTED), ("sent", FINISHED)] {
            if !self.seen.contains(&(status, second, None)) {
                self.seen.push((status, second, None));
            }
        }
        self.look();
    }

    fn look(&mut self) {
        self.fell_back |= self.written && ["failed", "undeliverable", "expired"].contains(&self.stands().0);
    }

    /// The strongest; of these the earliest; of these the first by name.
    fn stands(&self) -> (&'static str, i64) {
        let rungs = LADDER.iter().rev();
        let strongest = rungs.map(|rung| self.seen.iter().filter(|(status, ..)| rung.contains(status)));
        let mut of_rung: Vec<_> = strongest.map(Iterator::collect::<Vec<_>>).find(|rung| !rung.is_empty()).unwrap();
        of_rung.sort_by_key(|(status, second, _)| (*second, *status));
        (of_rung[0].0, of_rung[0].1)
    }

    fn first(&self, statuses: &[&str]) -> Option<i64> {
        self.seen.iter().filter(|(status, ..)| statuses.contains(status)).map(|(_, second, _)| *second).min()
    }

    /// All failures are on one rung: the earliest code, then the first by name; nothing that comes later forgets it.
    fn error(&self) -> Option<&'static str> {
        self.seen.iter().filter_map(|(_, second, code)| Some((*second, (*code)?))).min().map(|(_, code)| code)
    }

    fn row(&self) -> BTreeMap<&'static str, Value> {
        let (status, second) = self.stands();
        let mut row: BTreeMap<&'static str, Value> = [
            ("queued_at", self.first(&["queued"])),
            ("sending_at", self.first(&["sending"])),
            ("unknown_at", self.first(&["unknown"])),
            ("sent_at", self.first(&["sent"])),
            ("delivered_at", self.first(&["delivered"])),
            ("read_at", self.first(&["read"])),
            ("failed_at", self.first(&["failed", "undeliverable"])),
            ("expired_at", self.first(&["expired"])),
            ("status_at", Some(second)),
        ]
        .into_iter()
        .map(|(column, second)| (column, json!(second)))
        .collect();
        row.insert("status", json!(status));
        row.insert("error_code", json!(self.error()));
        row.insert("error_class", json!(self.error().map(|_| "permanent")));
        row.insert("fallbacks", json!(i64::from(self.fell_back)));
        row.insert("events", json!(self.seen.len()));
        row.insert("waits", json!(false));
        row
    }
}

/// A WhatsApp message claimed and not yet written, of which reports may already come.
struct Message {
    id: String,
    provider_message_id: String,
    /// What writes it.
    finish: Value,
}

async fn message(db: &Db) -> Message {
    let who = phone();
    let p = json!({"channel": "whatsapp", "provider": "whatsapp", "provider_message_id": format!("wamid.in{}", unique()), "from": who, "to": "118",
                   "text": "hello", "correlation_id": "c", "lease_token": token(1), "now": at_text(0)});
    let turn = db.rpc("begin_sms_turn", p).await;
    let id = text(&turn, "/delivery_ids/whatsapp");
    let provider_message_id = format!("wamid.Out{}", unique());
    let accepted = with(
        attempt("accepted", FINISHED * 1000),
        json!({"provider_message_id": provider_message_id, "started_at": at_text(STARTED * 1000)}),
    );
    let delivery = json!({"id": id, "channel": "whatsapp", "provider": "whatsapp", "recipient": who, "purpose": "reply", "content": "Yes.",
                          "payload": {"kind": "text", "text": "Yes."}, "deadline_at": at_text(3_600_000), "attempt": accepted});
    let renditions = json!({"sms": {"text": "Yes.", "encoding": "gsm7", "segments": 1}});
    let finish = json!({"turn_id": turn["turn_id"], "lease_token": token(1), "outcome": "answered", "deliveries": [delivery], "now": at_text(10_000),
                        "reply": {"content": "Yes.", "source": "model", "renditions": renditions}});
    Message { id, provider_message_id, finish }
}

/// Hears one report, or writes the row, and says what the log says then.
const STEP: &str = "
create function pg_temp.seconds(p_at timestamptz) returns bigint language sql as $$ select extract(epoch from p_at - '{begin}'::timestamptz)::bigint $$;
create function pg_temp.step(p jsonb, p_id uuid) returns jsonb language plpgsql as $$
declare
  v_answer jsonb;
begin
  if p ? 'events' then
    v_answer := public.record_delivery_events(p);
  else
    v_answer := public.finish_sms_turn(p);
  end if;
  return jsonb_build_object('answer', v_answer, 'row', (
    select jsonb_build_object('status', l.status, 'error_code', l.error_code, 'error_class', l.error_class, 'waits', l.next_attempt_at is not null,
             'status_at', pg_temp.seconds(l.status_at), 'queued_at', pg_temp.seconds(l.queued_at), 'sending_at', pg_temp.seconds(l.sending_at),
             'unknown_at', pg_temp.seconds(l.unknown_at), 'sent_at', pg_temp.seconds(l.sent_at), 'delivered_at', pg_temp.seconds(l.delivered_at),
             'read_at', pg_temp.seconds(l.read_at), 'failed_at', pg_temp.seconds(l.failed_at), 'expired_at', pg_temp.seconds(l.expired_at),
             'fallbacks', (select count(*) from public.message_delivery_log f where f.fallback_of = l.id),
             'events', (select count(*) from public.message_status_events e where e.delivery_id = l.id))
      from public.message_delivery_log l where l.id = p_id));
end
$$;";

/// All that may follow, `p_left` events deep; what each tries is undone before the next. `p_steps` are the reports of an even
/// and of an odd place; where `p_finish` is there, it is tried at the end of every sequence.
const TREE: &str = "
create function pg_temp.tree(p_steps jsonb, p_place integer, p_left integer, p_finish jsonb, p_id uuid) returns jsonb language plpgsql as $$
declare
  v_tree jsonb := jsonb_build_object('below', '[]'::jsonb);
  v_found jsonb;
  v_below jsonb;
  v_step jsonb;
begin
  if p_finish is not null then
    begin
      v_found := pg_temp.step(p_finish, p_id);
      raise exception using errcode = 'XX999';
    exception when sqlstate 'XX999' then
    end;
    v_tree := v_tree || jsonb_build_object('written', v_found);
  end if;
  if p_left > 0 then
    for v_step in select s from jsonb_array_elements(p_steps -> (p_place % 2)) s loop
      begin
        v_found := pg_temp.step(v_step, p_id);
        v_below := pg_temp.tree(p_steps, p_place + 1, p_left - 1, p_finish, p_id);
        raise exception using errcode = 'XX999';
      exception when sqlstate 'XX999' then
      end;
      v_tree := jsonb_insert(v_tree, '{below,-1}', jsonb_build_object('found', v_found, 'tree', v_below), true);
    end loop;
  end if;
  return v_tree;
end
$$;";

/// One transaction, in which a sequence of one message, or many, are tried.
struct Walk<'a> {
    client: &'a Client,
    message: &'a Message,
    sequences: u64,
}

impl Walk<'_> {
    fn report(&self, report: Report) -> Value {
        json!({"correlation_id": "r", "events": [report.event(self.message)], "now": at_text(20_000)})
    }

    async fn step(&self, p: &Value) -> Value {
        let sql = "select pg_temp.step($1, $2::text::uuid)";
        self.client.query_one(sql, &[&p, &self.message.id]).await.unwrap().get(0)
    }

    async fn hear(&self, model: &mut Model, path: &[Report]) {
        let found = self.step(&self.report(*path.last().unwrap())).await;
        heard(model, &found, path);
    }

    async fn write(&self, model: &mut Model, path: &[Report]) {
        let found = self.step(&self.message.finish).await;
        model.write();
        check(model, &found, path);
    }

    /// All that begins with `path`; where the row is not written yet, it is written at the end of every sequence.
    async fn below(&mut self, letters: usize, model: &Model, path: &mut Vec<Report>) {
        let steps = |place| (0..letters).map(|letter| self.report(Report::at(place, letter))).collect::<Vec<_>>();
        let steps = json!([steps(0), steps(1)]);
        let finish = (!model.written).then_some(&self.message.finish);
        let (place, left) = (path.len() as i32, (LONGEST - path.len()) as i32);
        let sql = "select pg_temp.tree($1, $2, $3, $4, $5::text::uuid)";
        let row = self.client.query_one(sql, &[&steps, &place, &left, &finish, &self.message.id]).await.unwrap();
        self.judge(&row.get(0), model, path);
    }

    fn judge(&mut self, tree: &Value, model: &Model, path: &mut Vec<Report>) {
        self.sequences += 1;
        if !model.written {
            let mut model = model.clone();
            model.write();
            check(&model, &tree["written"], path);
        }
        for (letter, next) in tree["below"].as_array().unwrap().iter().enumerate() {
            let mut model = model.clone();
            path.push(Report::at(path.len(), letter));
            heard(&mut model, &next["found"], path);
            self.judge(&next["tree"], &model, path);
            path.pop();
        }
    }
}

#[track_caller]
fn heard(model: &mut Model, found: &Value, path: &[Report]) {
    let report = path.last().unwrap();
    let is_new = model.hear(report.status(), report.second, report.code());
    let kind = match (is_new, model.written) {
        (false, _) => "duplicate",
        (true, true) => "applied",
        (true, false) => "orphaned",
    };
    assert_eq!(found["answer"][kind], 1, "{path:?}: {}", found["answer"]);
    check(model, found, path);
}

#[track_caller]
fn check(model: &Model, found: &Value, path: &[Report]) {
    let row = &found["row"];
    if !model.written {
        assert_eq!(row, &Value::Null, "{path:?}: the row is not written yet");
        return;
    }
    for (column, expected) in model.row() {
        assert_eq!(row[column], expected, "{column} after {path:?}: {row}");
    }
}

async fn walker(db: &Db) -> Client {
    let client = db.connect().await;
    client.batch_execute(&STEP.replace("{begin}", &at_text(0))).await.unwrap();
    client.batch_execute(TREE).await.unwrap();
    client
}

#[test]
fn a_sample_of_all_sequences_of_up_to_six_events_with_the_row_written_anywhere_between() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let db = runtime.block_on(Db::new());
    let client = runtime.block_on(walker(&db));
    let message = runtime.block_on(message(&db));
    let config = Config {
        cases: SAMPLE,
        rng_seed: RngSeed::Fixed(seed()),
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let sequences = (prop::collection::vec(0..LETTERS.len(), 1..=LONGEST), any::<prop::sample::Index>());
    let outcome = TestRunner::new(config).run(&sequences, |(letters, written)| {
        let written = written.index(letters.len() + 1);
        runtime.block_on(async {
            client.batch_execute("rollback; begin").await.unwrap();
            let walk = Walk { client: &client, message: &message, sequences: 0 };
            let (mut model, mut path) = (Model::default(), Vec::new());
            for (place, letter) in letters.iter().enumerate() {
                if place == written {
                    walk.write(&mut model, &path).await;
                }
                path.push(Report::at(place, *letter));
                walk.hear(&mut model, &path).await;
            }
            if written == letters.len() {
                walk.write(&mut model, &path).await;
            }
        });
        Ok(())
    });
    outcome.unwrap_or_else(|error| {
        panic!(
            "{error}
run again with IHUZA_SEED={}",
            seed()
        )
    });
}

/// All sequences over what carriers report, with the row written before the first event and after the last.
#[tokio::test]
async fn every_sequence_of_up_to_six_reports() {
    let letters = if in_full() { REPORTED } else { 2 };
    let db = Db::new().await;
    let client = walker(&db).await;
    let message = message(&db).await;
    for written in [true, false] {
        let mut sequences = 0;
        // Short transactions: what was undone can then be cleared away.
        for first in 0..letters {
            for second in 0..letters {
                client.batch_execute("begin").await.unwrap();
                let mut walk = Walk { client: &client, message: &message, sequences: 0 };
                let (mut model, mut path) = (Model::default(), Vec::new());
                if written {
                    walk.write(&mut model, &path).await;
                }
                for letter in [first, second] {
                    path.push(Report::at(path.len(), letter));
                    walk.hear(&mut model, &path).await;
                }
                walk.below(letters, &model, &mut path).await;
                sequences += walk.sequences;
                client.batch_execute("rollback").await.unwrap();
            }
        }
        assert_eq!(sequences, (2..=LONGEST as u32).map(|length| (letters as u64).pow(length)).sum::<u64>());
        println!("counted {sequences} sequences of status reports, in every order");
    }
    assert_eq!(db.count("select count(*) from public.message_status_events where source = 'provider'").await, 0);
}
