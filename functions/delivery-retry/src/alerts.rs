//! Tells whoever keeps watch of open alerts, each once: `ALERT_WEBHOOK_URL` gets a POST. What cannot be told now is told by a
//! later cron; nothing waits for it.

use ihuza_core::{
    alert,
    json::{items_at, obj, str_at},
    json_text::to_text,
    log::{Event, Level},
    signature,
};
use ihuza_edge::{at_once, context::Cx, database, host, outgoing};
use serde_json::Value;

/// Alerts told in one go; the next minute goes on.
const LIMIT: u32 = 20;

pub async fn tell(cx: &Cx) {
    let url = cx.config.find("ALERT_WEBHOOK_URL");
    let lease_token = host::new_uuid();
    let p = obj(&mut [
        ("lease_token", (&lease_token).into()),
        ("lease_seconds", cx.config.number("LEASE_SECONDS").into()),
        // Without a webhook the database still looks whether something is wrong.
        ("limit", if url.is_some() { LIMIT } else { 0 }.into()),
        ("failure_percent", cx.config.number("ALERT_FAILURE_PERCENT").into()),
    ]);
    let claimed = match database::rpc(cx, "claim_alerts", &p).await {
        Ok(claimed) => claimed,
        Err(error) => return failed(cx, &error.to_string()),
    };
    let alerts = items_at(&claimed, "alerts");
    let Some(url) = url.filter(|_| !alerts.is_empty()) else {
        return;
    };
    let results: Vec<Value> = at_once::all(alerts.iter().map(|alert| post(cx, url, alert))).await;
    let p = obj(&mut [("lease_token", (&lease_token).into()), ("results", results.into())]);
    if let Err(error) = database::rpc(cx, "finish_alerts", &p).await {
        // They are told again when the lease is over, under the same ids.
        failed(cx, &error.to_string());
    }
}

/// One alert; whether the webhook took it.
async fn post(cx: &Cx, url: &str, alert: &Value) -> Value {
    let id = str_at(alert, "id").unwrap_or_default();
    let body = to_text(&alert::body(alert));
    let timestamp = (host::now_ms() / 1000).to_string();
    let signature =
        cx.config.find("ALERT_WEBHOOK_SECRET").map(|secret| signature::sign(secret, &timestamp, body.as_bytes()));
    let mut headers = vec![("content-type", "application/json"), (alert::ID_HEADER, id)];
    if let Some(signature) = &signature {
        headers.push((alert::TIMESTAMP_HEADER, &timestamp));
        headers.push((alert::SIGNATURE_HEADER, signature));
    }
    let timeout_ms = cx.config.number("PROVIDER_TIMEOUT_MS");
    let answer = outgoing::send(Some(cx.slots()), url, &outgoing::headers(&headers), &body, timeout_ms).await;
    let status = answer.as_ref().map_or(0, |answer| answer.status);
    let told = (200..300).contains(&status);
    let (level, event) = if told { (Level::Info, Event::AlertTold) } else { (Level::Warn, Event::AlertNotTold) };
    let said = if told {
        "the webhook took the alert"
    } else {
        "the webhook did not take the alert; a later cron tries again"
    };
    cx.log(
        level,
        event,
        said,
        &[("alert_id", id.into()), ("kind", str_at(alert, "kind").into()), ("http_status", u32::from(status).into())],
    );
    obj(&mut [("id", id.into()), ("told", told.into())])
}

fn failed(cx: &Cx, why: &str) {
    cx.log(Level::Warn, Event::DatabaseFailed, &["alerts wait for the next cron: ", why].concat(), &[]);
}
