//! Once a day we and the carriers compare notes: a carrier that lists its messages is asked for the day, and status and cost are
//! put right by the same events as a report brings. Where none lists, messages of whom nobody tells are closed by age.
//!
//! Each sweep asks whether there is a day to compare; the database gives each day to one of them.

use ihuza_core::{
    channel::Provider,
    json::{items_at, obj, str_at, string_at, u32_at},
    json_text::parse,
    log::{Event, Level},
    send::Refused,
    status::DeliveryEvent,
    twilio,
};
use ihuza_edge::{
    context::Cx,
    database::{self, DatabaseError},
    delivery, host,
    outgoing::{self, Answer},
};
use serde_json::Value;

/// How long a day may take before another sweep takes it up: as long as a cron has.
const LEASE_SECONDS: u32 = 900;
/// Pages of a day that are read, of two hundred messages each; an invocation has a thousand requests, and each page takes three.
const PAGES: u32 = 300;
/// Messages that one call of the database takes, so that its transaction stays short.
const SLICE: usize = 100;
/// It may repair every one of them, or look at all messages of a day, which takes longer than other calls.
const LONG_TIMEOUT_FACTOR: u32 = 3;
/// Rounds of asking for messages one by one, fifty at a time.
const ROUNDS: u32 = 4;

/// Compares a day, if one is due; how many messages were closed by age.
pub async fn reconcile(cx: &Cx) -> Result<u32, DatabaseError> {
    let config = &cx.config;
    let lists = config.find("TWILIO_ACCOUNT_SID").is_some() && config.find("TWILIO_AUTH_TOKEN").is_some();
    let providers = if lists { vec![Provider::Twilio.as_str()] } else { Vec::new() };
    let lease_token = host::new_uuid();
    let p = obj(&mut [
        ("lease_token", (&lease_token).into()),
        ("lease_seconds", LEASE_SECONDS.into()),
        ("settle_hours", config.number("RECONCILE_SETTLE_HOURS").into()),
        ("close_after_hours", config.number("RECONCILE_CLOSE_HOURS").into()),
        ("providers", providers.into()),
    ]);
    let timeout_ms = config.number("DATABASE_TIMEOUT_MS").saturating_mul(LONG_TIMEOUT_FACTOR);
    let claimed = database::rpc_within(cx, "claim_reconciliation", &p, timeout_ms).await?;
    if let (Some(id), Some(day)) = (string_at(&claimed, "id"), str_at(&claimed, "day")) {
        let job = Job { cx, id, lease_token };
        job.end(day, job.compare(day).await).await;
    }
    Ok(u32_at(&claimed, "closed").unwrap_or(0))
}

/// A day that we have the lease of. What breaks it off is a code; the day is taken up again an hour later.
struct Job<'a> {
    cx: &'a Cx,
    id: String,
    lease_token: String,
}

const DATABASE: &str = "database_unavailable";

impl Job<'_> {
    async fn compare(&self, day: &str) -> Result<(), &'static str> {
        let account = self.cx.config.text("TWILIO_ACCOUNT_SID");
        let mut path = twilio::list_path(account, day);
        for page in 1.. {
            let answer = answered(self.get(&path).await?)?;
            let found = twilio::parse_page(account, answer.body.as_bytes(), host::now());
            let found = found.map_err(|_| "unreadable_page")?;
            for slice in found.messages.chunks(SLICE) {
                self.record(slice.iter().map(DeliveryEvent::to_value).collect(), false).await?;
            }
            match found.next {
                Some(_) if page >= PAGES => return Err("too_many_pages"),
                Some(next) => path = next,
                None => break,
            }
        }
        // Sent around midnight, or never: each is asked for by its id before it is said to be unknown.
        let mut unseen = items_at(&self.record(Vec::new(), true).await?, "unseen").to_vec();
        for _ in 0..ROUNDS {
            if unseen.is_empty() {
                break;
            }
            let mut messages = Vec::new();
            for row in &unseen {
                messages.extend(self.ask_for(account, row).await?);
            }
            unseen = items_at(&self.record(messages, true).await?, "unseen").to_vec();
        }
        Ok(())
    }

    /// What Twilio says of one message of ours.
    async fn ask_for(&self, account: &str, row: &Value) -> Result<Option<Value>, &'static str> {
        let sid = str_at(row, "provider_message_id").unwrap_or_default();
        let missing = || Some(obj(&mut [("provider_message_id", sid.into()), ("missing", true.into())]));
        let Some(path) = twilio::message_path(account, sid) else {
            return Ok(missing());
        };
        let answer = self.get(&path).await?;
        if answer.status == 404 {
            return Ok(missing());
        }
        let answer = answered(answer)?;
        let message = parse(&answer.body).map_err(|_| "unreadable_message")?;
        let mut event = twilio::parse_message(&message, host::now()).ok_or("unreadable_message")?;
        // Under the id that we asked for, however Twilio spells it: else it would be asked for again.
        event.provider_message_id = Some(sid.to_owned());
        Ok(Some(event.to_value()))
    }

    async fn get(&self, path: &str) -> Result<Answer, &'static str> {
        let config = &self.cx.config;
        let authorization = twilio::authorization(config.text("TWILIO_ACCOUNT_SID"), config.text("TWILIO_AUTH_TOKEN"));
        let url = [config.text("TWILIO_BASE_URL").trim_end_matches('/'), path].concat();
        let headers = outgoing::headers(&[("authorization", &authorization), ("accept", "application/json")]);
        outgoing::get(Some(self.cx.slots()), &url, &headers, config.number("PROVIDER_TIMEOUT_MS"))
            .await
            .map_err(|failure| Refused::transport(Provider::Twilio, failure).classified.reason)
    }

    async fn record(&self, messages: Vec<Value>, unseen: bool) -> Result<Value, &'static str> {
        let p = obj(&mut [
            ("reconciliation_id", (&self.id).into()),
            ("lease_token", (&self.lease_token).into()),
            ("correlation_id", (&self.cx.correlation_id).into()),
            ("messages", messages.into()),
            ("unseen", unseen.into()),
        ]);
        let timeout_ms = self.cx.config.number("DATABASE_TIMEOUT_MS").saturating_mul(LONG_TIMEOUT_FACTOR);
        let recorded =
            database::rpc_within(self.cx, "record_reconciliation", &p, timeout_ms).await.map_err(|_| DATABASE)?;
        // A failure of which nobody had told: the other channel carries the message, if it may still.
        delivery::dispatch_fallbacks(self.cx, &recorded).await;
        Ok(recorded)
    }

    async fn end(&self, day: &str, compared: Result<(), &'static str>) {
        let error = compared.err();
        let p = obj(&mut [
            ("reconciliation_id", (&self.id).into()),
            ("lease_token", (&self.lease_token).into()),
            ("error", error.into()),
        ]);
        let finished = database::rpc(self.cx, "finish_reconciliation", &p).await;
        // A bare date looks like a telephone number to the log, which masks it.
        let day = [day, "T00:00:00Z"].concat();
        match (error, finished) {
            (None, Ok(counts)) => self.cx.log(
                Level::Info,
                Event::ReconciliationDone,
                "a day is compared with what the carrier says of it",
                &[("provider", Provider::Twilio.into()), ("period_start", (&day).into()), ("counts", (&counts).into())],
            ),
            (error, finished) => self.cx.log(
                Level::Warn,
                Event::ReconciliationFailed,
                "a day could not be compared; it is tried again",
                &[
                    ("provider", Provider::Twilio.into()),
                    ("period_start", (&day).into()),
                    ("error", error.unwrap_or(DATABASE).into()),
                    ("recorded", finished.is_ok().into()),
                ],
            ),
        }
    }
}

/// An answer that holds what was asked for; else why not, as code.
fn answered(answer: Answer) -> Result<Answer, &'static str> {
    match answer.status {
        200 => Ok(answer),
        status => {
            let code = twilio::error_code(answer.body.as_bytes());
            Err(Refused::answered(Provider::Twilio, status, code).classified.reason)
        }
    }
}
