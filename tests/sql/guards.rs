//! Circuit breaker and rate limit, against small references written from the design: at least 5 of the last 20 outcomes
//! in 60 s, open at half of them failed, 30 s doubling to 5 min, one leased probe; what is the recipient's own never counts.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Db, at, at_text, attempt, check_cases, phone, token, unique, with};

/// The breaker of one provider. Times are milliseconds.
struct Breaker {
    state: State,
    changed: i64,
    /// Outcomes that count, oldest first: when, and whether it went well.
    outcomes: Vec<(i64, bool)>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Closed,
    Open {
        until: i64,
        pause_s: i64,
        config: bool,
        /// Who may try after `until`, and until when nobody else.
        probe: Option<(u32, i64)>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Accepted,
    Retryable,
    Unknown,
    /// Retryable, and the recipient's own fault.
    OfRecipient,
    Permanent,
    Bug,
    /// Of the whole account.
    Config,
    /// Of one template or recipient.
    ConfigOfMessage,
}

impl Outcome {
    /// Whether a function says that it counts against the provider.
    fn counts(self) -> bool {
        !matches!(self, Outcome::OfRecipient | Outcome::ConfigOfMessage)
    }

    fn word(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::Retryable | Outcome::OfRecipient => "retryable",
            Outcome::Unknown => "unknown",
            Outcome::Permanent => "permanent",
            Outcome::Bug => "bug",
            Outcome::Config | Outcome::ConfigOfMessage => "config",
        }
    }
}

impl Breaker {
    fn new() -> Self {
        Self { state: State::Closed, changed: i64::MIN, outcomes: Vec::new() }
    }

    fn gate(&mut self, who: u32, may_probe: bool, now: i64) -> (&'static str, Option<i64>) {
        let State::Open { until, probe, .. } = &mut self.state else { return ("closed", None) };
        if now < *until {
            return ("open", Some(*until));
        }
        let held = probe.filter(|(_, probe_until)| *probe_until > now);
        match held {
            Some((holder, _)) if holder == who => ("probe", None),
            None if may_probe => {
                *probe = Some((who, now + 60_000));
                ("probe", None)
            }
            _ => {
                let soon = now + 5_000;
                ("open", Some(probe.map_or(soon, |(_, probe_until)| soon.max(probe_until))))
            }
        }
    }

    fn note(&mut self, who: u32, outcome: Outcome, now: i64) {
        let failed = matches!(outcome, Outcome::Retryable | Outcome::Unknown);
        if failed || outcome == Outcome::Accepted {
            self.outcomes.push((now, !failed));
        }
        match self.state {
            _ if outcome == Outcome::Config => {
                let waits_long =
                    matches!(self.state, State::Open { until, config: true, .. } if until >= now + 14 * 60_000);
                if !waits_long {
                    self.open(900, true, now);
                }
            }
            State::Closed if failed => {
                let since = self.changed.max(now - 60_000);
                let recent: Vec<bool> =
                    self.outcomes.iter().rev().filter(|(at, _)| *at > since).take(20).map(|(_, ok)| *ok).collect();
                let bad = recent.iter().filter(|ok| !**ok).count();
                if recent.len() >= 5 && bad * 2 >= recent.len() {
                    self.open(30, false, now);
                }
            }
            State::Open { probe: Some((holder, _)), pause_s, config, .. } if holder == who => {
                if failed {
                    let before = if config { 30 } else { pause_s };
                    self.open((before * 2).min(300), false, now);
                } else {
                    self.state = State::Closed;
                    self.changed = now;
                }
            }
            State::Closed | State::Open { .. } => {}
        }
    }

    fn open(&mut self, pause_s: i64, config: bool, now: i64) {
        self.state = State::Open { until: now + pause_s * 1000, pause_s, config, probe: None };
        self.changed = now;
    }

    fn release(&mut self, who: u32) {
        if let State::Open { probe, .. } = &mut self.state
            && probe.is_some_and(|(holder, _)| holder == who)
        {
            *probe = None;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A message was sent; its result gives unused probes back.
    Delivery(Outcome),
    /// The model was asked.
    ModelCall(Outcome),
    AskGate {
        may_probe: bool,
    },
    Release,
}

/// How much later a step comes.
#[derive(Clone, Copy, Debug)]
enum Pause {
    Ms(i64),
    /// So much after the end of the provider's pause, or as that many milliseconds where it has none.
    AfterOpening(i64),
}

/// Moves of a few steps each: alone, most cases would never see a second probe or the end of a window.
fn steps() -> impl Strategy<Value = Vec<(Pause, u32, Step)>> {
    use Outcome::{Accepted, Bug, Config, ConfigOfMessage, OfRecipient, Permanent, Retryable, Unknown};
    let outcome = || {
        let usual = prop_oneof![
            6 => Just(Accepted), 8 => Just(Retryable), 4 => Just(Unknown), 2 => Just(OfRecipient), 1 => Just(Permanent), 1 => Just(Bug),
            1 => Just(ConfigOfMessage)
        ];
        // A configuration error stops everything for a quarter of an hour, so few cases have one.
        prop_oneof![60 => usual, 1 => Just(Config)]
    };
    let who = || 1_u32..4;
    let pause = || {
        prop_oneof![
            6 => (1_i64..1_500).prop_map(Pause::Ms),
            2 => (1_500_i64..70_000).prop_map(Pause::Ms),
            2 => (0_i64..3_000).prop_map(Pause::AfterOpening),
        ]
    };
    let model = prop::sample::select(vec![Accepted, Retryable, Unknown, ConfigOfMessage]);
    let step = prop_oneof![
        6 => outcome().prop_map(Step::Delivery),
        2 => model.prop_map(Step::ModelCall),
        4 => any::<bool>().prop_map(|may_probe| Step::AskGate { may_probe }),
        1 => Just(Step::Release),
    ];
    let one = (pause(), who(), step).prop_map(|step| vec![step]);
    let run = (1_i64..2_000, who(), prop::sample::select(vec![Accepted, Accepted, Retryable, Unknown]), 1_usize..18)
        .prop_map(|(ms, who, outcome, count)| vec![(Pause::Ms(ms), who, Step::Delivery(outcome)); count]);
    // Somebody probes, and it or somebody else has a result or gives up.
    let last = prop_oneof![4 => outcome().prop_map(Step::Delivery), 1 => Just(Step::Release)];
    let probe = (0_i64..3_000, who(), 0_i64..70_000, prop_oneof![3 => Just(0), 1 => 1_u32..3], last).prop_map(
        |(late, who, ms, other, last)| {
            vec![
                (Pause::AfterOpening(late), who, Step::AskGate { may_probe: true }),
                (Pause::Ms(ms), 1 + (who - 1 + other) % 3, last),
            ]
        },
    );
    let moves = prop_oneof![4 => one, 3 => run, 4 => probe];
    prop::collection::vec(moves, 1..16).prop_map(|moves| moves.concat())
}

#[test]
fn the_breaker_moves_as_the_reference_does() {
    check_cases(60, steps(), async |db, steps| check_breaker(db, &steps).await);
}

async fn check_breaker(db: &Db, steps: &[(Pause, u32, Step)]) -> Result<(), TestCaseError> {
    let provider = format!("provider-{}", unique());
    db.run(&format!("insert into public.provider_health (provider) values ('{provider}')")).await;
    let mut breaker = Breaker::new();
    let mut now = 0;
    for (pause, who, step) in steps {
        now = match (pause, breaker.state) {
            (Pause::AfterOpening(ms), State::Open { until, .. }) => (until + ms).max(now + 1),
            (Pause::Ms(ms) | Pause::AfterOpening(ms), _) => now + ms.max(&1),
        };
        match step {
            Step::Delivery(outcome) => {
                send(db, &provider, *who, *outcome, now).await;
                breaker.note(*who, *outcome, now);
                breaker.release(*who);
            }
            Step::ModelCall(outcome) => {
                let calls = json!([{"provider": provider, "outcome": outcome.word(), "breaker": outcome.counts()}]);
                db.run(&format!("select private.note_provider_calls('{calls}', '{}', '{}')", token(*who), at(now)))
                    .await;
                breaker.note(*who, *outcome, now);
            }
            Step::AskGate { may_probe } => {
                let found = gate(db, &provider, *who, *may_probe, now).await;
                prop_assert_eq!(found, expected(breaker.gate(*who, *may_probe, now)), "asked by {} at {}", who, now);
            }
            Step::Release => {
                db.run(&format!("select private.release_probes('{}')", token(*who))).await;
                breaker.release(*who);
            }
        }
        let seen = gate(db, &provider, 9, false, now).await;
        prop_assert_eq!(seen, expected(breaker.gate(9, false, now)), "after {:?} at {}", step, now);
    }
    Ok(())
}

/// The result of one message, as the retrying function records it.
async fn send(db: &Db, provider: &str, who: u32, outcome: Outcome, now: i64) {
    let row = db
        .service
        .query_one(
            "insert into public.message_delivery_log (channel, provider) values ('sms', $1) returning id",
            &[&provider],
        )
        .await
        .unwrap();
    let mut attempt = attempt(outcome.word(), now);
    if !outcome.counts() {
        attempt = with(attempt, json!({"breaker": false}));
    }
    let results = json!([{"id": row.get::<_, Uuid>(0), "attempt": attempt}]);
    db.rpc(
        "record_delivery_results",
        json!({"lease_token": token(who), "correlation_id": "c", "results": results, "now": at_text(now)}),
    )
    .await;
}

async fn gate(db: &Db, provider: &str, who: u32, may_probe: bool, now: i64) -> Value {
    let mut found = db
        .value(&format!("select private.provider_gate('{provider}', {may_probe}, '{}', '{}')", token(who), at(now)))
        .await;
    if let Some(time) = found["open_until"].as_str() {
        let time = chrono::DateTime::parse_from_rfc3339(time).unwrap().to_utc();
        found["open_until"] = json!((time - at(0)).num_milliseconds());
    }
    found
}

fn expected((gate, open_until): (&str, Option<i64>)) -> Value {
    json!({"gate": gate, "open_until": open_until})
}

#[tokio::test]
async fn of_many_that_ask_at_once_one_may_probe() {
    let db = Db::new().await;
    db.run(&format!(
        "update public.provider_health set state = 'open', open_until = '{}' where provider = 'mtn'",
        at(0)
    ))
    .await;
    let here = &db;
    let asked = (1..=20).map(|n| async move {
        let client = here.connect().await;
        let sql = format!("select private.provider_gate('mtn', true, '{}', '{}') ->> 'gate'", token(n), at(1000));
        client.query_one(&sql, &[]).await.unwrap().get::<_, String>(0)
    });
    let gates = crate::support::all(asked).await;
    assert_eq!(gates.iter().filter(|gate| *gate == "probe").count(), 1, "{gates:?}");
    assert_eq!(gates.iter().filter(|gate| *gate == "open").count(), 19, "{gates:?}");
}

#[tokio::test]
async fn an_open_breaker_is_in_the_answer_of_a_claim_and_the_probe_goes_to_one_claim() {
    let db = Db::new().await;
    for n in 0..5 {
        send(&db, "mtn", 1, Outcome::Retryable, n * 100).await;
    }
    let turn = async |n: u32, now: i64| {
        let p = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": format!("m-{n}"), "from": phone(), "to": "8080",
                       "text": "hello", "lease_token": token(n), "now": at_text(now)});
        db.rpc("begin_sms_turn", p).await["providers"]["mtn"].clone()
    };
    let open = turn(10, 500).await;
    assert_eq!((&open["gate"], open["open_until"].as_str().unwrap()), (&json!("open"), "2030-01-01T08:00:30.4+00:00"));
    assert_eq!(turn(11, 30_400).await["gate"], "probe", "the first after the pause");
    assert_eq!(turn(12, 30_500).await["gate"], "open");
}

#[test]
fn the_rate_limit_counts_as_the_reference_does() {
    let takes = prop::collection::vec((0_u8..3, 0_i64..30_000), 1..40);
    check_cases(40, (1_i64..6, 10_i64..100, takes), async |db, (limit, window_s, takes)| {
        let case = unique();
        let mut taken: HashMap<(u8, i64), i64> = HashMap::new();
        let mut now = 0;
        for (bucket, pause) in takes {
            now += pause;
            // Windows begin at multiples of their length since the year 2000.
            let ms = at(now).timestamp_millis() - 946_684_800_000;
            let count = taken.entry((bucket, ms.div_euclid(window_s * 1000))).or_default();
            *count += 1;
            let allowed = *count <= limit;
            let left_ms = window_s * 1000 - ms.rem_euclid(window_s * 1000);
            let expected = json!({
                "allowed": allowed, "remaining": (limit - *count).max(0),
                "retry_after_s": if allowed { 0 } else { (left_ms + 999) / 1000 }
            });
            let p = json!({"bucket": format!("{case}:{bucket}"), "limit": limit, "window_seconds": window_s, "now": at_text(now)});
            prop_assert_eq!(db.rpc("take_rate_limit", p).await, expected);
        }
        Ok(())
    });
}

#[tokio::test]
async fn many_at_once_get_no_more_than_the_limit() {
    let db = Db::new().await;
    let takes = (0..20).map(|_| async {
        let client = db.connect().await;
        let mut allowed = 0;
        for _ in 0..10 {
            let p = json!({"bucket": "all", "limit": 77, "window_seconds": 3600, "now": at_text(0)});
            allowed += i32::from(crate::support::rpc(&client, "take_rate_limit", p).await["allowed"] == true);
        }
        allowed
    });
    assert_eq!(crate::support::all(takes).await.iter().sum::<i32>(), 77);
}
