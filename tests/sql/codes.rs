//! Every known error code on its channel, as the answer to a sending and as a report afterwards: what the message becomes,
//! whether the other channel carries it, whether it waits, what is learnt of its recipient, whether the provider gets a
//! pause, and who is told.

use ihuza_core::channel::Provider;
use ihuza_core::error_class::{Classified, ErrorClass, Evidence, classify};
use ihuza_core::status::DeliveryEvent;
use ihuza_core::{mtn, whatsapp};
use serde_json::{Value, json};

use crate::support::{Db, at, at_text, attempt, phone, text, token, unique, with};

/// So many failures that count open a breaker.
const FEW: i64 = 5;
const HOUR_MS: i64 = 3_600_000;

#[derive(Debug)]
struct Code {
    channel: &'static str,
    provider: Provider,
    code: String,
    class: String,
    evidence: Option<String>,
    counts: bool,
}

/// The codes of everybody who carries messages.
fn codes() -> Vec<Code> {
    let table: Value = serde_json::from_str(include_str!("../vectors/error_codes.json")).unwrap();
    let rows = table["codes"].as_array().unwrap().iter().map(|row| {
        let provider = Provider::parse(row[0].as_str().unwrap()).unwrap();
        let channel = match provider {
            Provider::Whatsapp => "whatsapp",
            Provider::Mtn | Provider::AfricasTalking | Provider::Twilio => "sms",
            Provider::Openai => return None,
        };
        let (code, class) = (text(row, "/1"), text(row, "/2"));
        let evidence = row[3].as_str().map(str::to_owned);
        Some(Code { channel, provider, code, class, evidence, counts: row[4].as_bool().unwrap() })
    });
    rows.flatten().collect()
}

impl Code {
    /// What the function makes of the vendor's answer.
    fn understood(&self) -> Classified {
        match self.provider {
            Provider::Whatsapp => {
                let body = json!({"error": {"message": "(#) Words", "code": self.code.parse::<i64>().unwrap(), "fbtrace_id": "trace"}});
                whatsapp::parse_send_response(400, body.to_string().as_bytes()).unwrap_err().classified
            }
            Provider::Mtn => {
                let body = json!({"statusCode": self.code, "statusMessage": "Words", "transactionId": "1"});
                mtn::parse_outbound_response(400, body.to_string().as_bytes(), "ref").unwrap_err().classified
            }
            Provider::AfricasTalking | Provider::Twilio | Provider::Openai => {
                classify(self.provider, Some(400), Some(&self.code))
            }
        }
    }

    /// The attempt as the function reports it.
    fn attempt(&self, now: i64) -> Value {
        let found = self.understood();
        let next = (found.class == ErrorClass::Retryable).then(|| at_text(now + 30_000));
        with(
            attempt(found.class.as_str(), now),
            json!({"error_code": self.code, "error_reason": found.reason, "http_status": 400, "next_attempt_at": next,
                   "breaker": found.breaker, "evidence": found.evidence.map(Evidence::as_str)}),
        )
    }

    /// By the design: status, carried by the other channel, looked at again.
    fn fate(&self) -> (&'static str, bool, bool) {
        let reaches_nobody = matches!(self.evidence.as_deref(), Some("not_on_whatsapp" | "opted_out"));
        match (self.class.as_str(), self.counts) {
            ("retryable", _) => ("sending", false, true),
            ("unknown", _) => ("unknown", false, true),
            // Of the account: nothing is lost, it waits for somebody to mend it.
            ("config", true) => ("queued", false, true),
            // Of this template or recipient.
            ("config", false) | ("bug", _) => ("failed", true, false),
            ("permanent", _) if reaches_nobody => ("undeliverable", true, false),
            ("permanent", _) => ("failed", true, false),
            other => panic!("no such class: {other:?}"),
        }
    }
}

/// Answers a new person on the channel; the id of the delivery.
async fn sent(db: &Db, code: &Code, attempt: Value, now: i64) -> String {
    let who = phone();
    let p = json!({"channel": code.channel, "provider": if code.channel == "sms" { "mtn" } else { "whatsapp" },
                   "provider_message_id": format!("in-{}", unique()), "from": who, "to": "8080", "text": "hello", "correlation_id": "c",
                   "lease_token": token(1), "now": at_text(now)});
    let turn = db.rpc("begin_sms_turn", p).await;
    let id = text(&turn, &format!("/delivery_ids/{}", code.channel));
    let delivery = json!({"id": id, "channel": code.channel, "provider": code.provider.as_str(), "recipient": who, "purpose": "reply",
                          "content": "Yes.", "payload": {"text": "Yes."}, "deadline_at": at_text(now + HOUR_MS), "attempt": attempt});
    let renditions = json!({"sms": {"text": "Yes."}, "whatsapp": {"kind": "text", "text": "Yes."}});
    let p = json!({"turn_id": turn["turn_id"], "lease_token": token(1), "outcome": "answered", "deliveries": [delivery], "now": at_text(now + 500),
                   "reply": {"content": "Yes.", "source": "model", "renditions": renditions}});
    db.rpc("finish_sms_turn", p).await;
    id
}

/// Status, number of fallbacks, whether it waits, stored code and class; and what is now held of the person.
async fn found(db: &Db, id: &str) -> Value {
    let sql = format!(
        "select jsonb_build_object('status', l.status, 'waits', l.next_attempt_at is not null, 'error', l.error_code || ' ' || l.error_class,
           'fallbacks', (select count(*) from public.message_delivery_log f where f.fallback_of = l.id and f.channel <> l.channel and f.next_attempt_at is not null),
           'not_on_whatsapp', not p.has_whatsapp and p.has_whatsapp_source = 'not_on_whatsapp', 'allows_sms', p.allows_sms)
           from public.message_delivery_log l join public.profiles p on p.id = l.profile_id where l.id = '{id}'"
    );
    db.value(&sql).await
}

async fn forget_health(db: &Db) {
    db.run("delete from public.provider_health; delete from public.alerts").await;
}

async fn is_open(db: &Db, provider: Provider) -> bool {
    let sql = format!(
        "select count(*) from public.provider_health where provider = '{}' and state = 'open'",
        provider.as_str()
    );
    db.count(&sql).await == 1
}

#[tokio::test]
async fn every_code_that_refuses_a_message() {
    let db = Db::new().await;
    for (n, code) in (1..).zip(codes()) {
        // An hour of its own: what failed before is not counted.
        let now = n * HOUR_MS;
        forget_health(&db).await;
        let understood = code.understood();
        assert_eq!(
            (understood.class.as_str(), understood.evidence.map(Evidence::as_str), understood.breaker),
            (code.class.as_str(), code.evidence.as_deref(), code.counts),
            "{code:?}"
        );
        let (status, carried, waits) = code.fate();
        for time in 0..FEW {
            let at_once = code.class == "config" && code.counts;
            assert_eq!(is_open(&db, code.provider).await, at_once && time > 0, "{code:?} before {time}");
            let now = now + time * 1_000;
            let id = sent(&db, &code, code.attempt(now + 500), now).await;
            if time > 0 {
                continue;
            }
            let expected = json!({"status": status, "waits": waits, "error": format!("{} {}", code.code, code.class),
                                  "fallbacks": i64::from(carried), "allows_sms": code.channel != "sms" || code.evidence.as_deref() != Some("opted_out")});
            let mut row = found(&db, &id).await;
            let learnt = row.as_object_mut().unwrap().remove("not_on_whatsapp");
            assert_eq!(row, expected, "{code:?}");
            assert_eq!(learnt == Some(json!(true)), code.evidence.as_deref() == Some("not_on_whatsapp"), "{code:?}");
        }
        assert_eq!(is_open(&db, code.provider).await, code.counts, "{code:?}: the breaker after {FEW}");
        let told = db.value("select coalesce(jsonb_agg(distinct kind order by kind), '[]') from public.alerts").await;
        let expected = match (code.class.as_str(), code.counts) {
            ("bug", _) => json!(["delivery_bug"]),
            ("config", true) => json!(["provider_config"]),
            (_, true) => json!(["provider_open"]),
            ("config", false) => told.clone(),
            (_, false) => json!([]),
        };
        assert_eq!(told, expected, "{code:?}");
        assert!(code.class != "config" || told != json!([]), "{code:?}: somebody must hear of it");
    }
}

/// A code that comes only afterwards, in a report: the message was accepted.
#[tokio::test]
async fn every_code_that_comes_in_a_report() {
    let db = Db::new().await;
    for (n, code) in (1..).zip(codes()) {
        let now = n * HOUR_MS;
        forget_health(&db).await;
        let provider_message_id = format!("wamid.{}", unique());
        let accepted = with(attempt("accepted", now + 500), json!({"provider_message_id": provider_message_id}));
        let id = sent(&db, &code, accepted, now).await;
        let Some(event) = report(&code, &id, &provider_message_id, now + 5_000) else { continue };
        let p =
            json!({"correlation_id": "r", "events": [event.to_value(), event.to_value()], "now": at_text(now + 6_000)});
        let heard = db.rpc("record_delivery_events", p.clone()).await;
        assert_eq!((&heard["applied"], &heard["duplicate"]), (&json!(1), &json!(1)), "{code:?}");
        assert_eq!(heard["fallbacks"].as_array().map(Vec::len), Some(1), "{code:?}: {heard}");
        db.rpc("record_delivery_events", p).await;
        let row = found(&db, &id).await;
        let reaches_nobody = code.provider == Provider::Whatsapp && code.evidence.as_deref() == Some("not_on_whatsapp");
        let status = if reaches_nobody { "undeliverable" } else { "failed" };
        assert_eq!(
            (text(&row, "/status"), &row["fallbacks"], &row["waits"]),
            (status.into(), &json!(1), &json!(false)),
            "{code:?}"
        );
        assert!(text(&row, "/error").starts_with(&code.code), "{code:?}: {row}");
        assert_eq!(row["not_on_whatsapp"] == true, reaches_nobody, "{code:?}");
        assert!(!is_open(&db, code.provider).await, "{code:?}: a report says nothing of the way to the provider");
    }
}

/// As the webhook reads it; nothing where we read no reports of that carrier.
fn report(code: &Code, id: &str, provider_message_id: &str, ms: i64) -> Option<DeliveryEvent> {
    match code.provider {
        Provider::Whatsapp => {
            let status = json!({"id": provider_message_id, "status": "failed", "timestamp": at(ms).timestamp().to_string(), "recipient_id": "250788000001",
                                "errors": [{"code": code.code.parse::<i64>().unwrap(), "title": "Words"}]});
            let body = json!({"entry": [{"changes": [{"field": "messages", "value": {"metadata": {"phone_number_id": "118"}, "statuses": [status]}}]}]});
            let mut updates = whatsapp::parse_webhook(body.to_string().as_bytes(), Some("118"), at(ms)).unwrap();
            assert_eq!(updates.unreadable, 0, "{code:?}");
            let event = updates.statuses.pop().unwrap();
            assert_eq!(event.error_class.map(ErrorClass::as_str), Some(code.class.as_str()), "{code:?}");
            assert_eq!(event.evidence.map(Evidence::as_str), code.evidence.as_deref(), "{code:?}");
            Some(event)
        }
        Provider::Mtn => {
            let body = json!({"clientCorrelatorId": id, "deliveryStatus": "REJECTED", "err": code.code});
            let mut reports = mtn::parse_delivery_reports(None, body.to_string().as_bytes(), at(ms)).unwrap();
            reports.events.pop()
        }
        Provider::AfricasTalking | Provider::Twilio | Provider::Openai => None,
    }
}
