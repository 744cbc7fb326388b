//! Delivery reports of carriers that report one message at a time: Twilio, which signs its callbacks, and Africa's Talking,
//! which knows a secret address.

use ihuza_sim::twilio::{form_of, signature, with_query};
use ihuza_sim::verbs::Answered;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stage::{Row, Stage};

const FUNCTION: &str = "delivery-status-webhook";
const OLD_TWILIO: &str = "the-twilio-token-before-the-rotation";
const OLD_AFRICASTALKING: &str = "the-africas-talking-secret-before-the-rotation";
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn rotating() -> WorldConfig {
    WorldConfig::default()
        .var("TWILIO_AUTH_TOKEN_PREVIOUS", OLD_TWILIO)
        .var("AFRICASTALKING_WEBHOOK_SECRET_PREVIOUS", OLD_AFRICASTALKING)
}

pub async fn stage() -> Stage {
    Stage::shared("carriers", rotating).await
}

/// Twilio's id of a message.
pub fn sid() -> String {
    format!("SM{}", Uuid::new_v4().simple())
}

/// An SMS that the carrier accepted under this id.
async fn sent(stage: &Stage, provider: &str, provider_message_id: &str) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "insert into message_delivery_log (id, channel, provider, provider_message_id, recipient, status, status_at, sent_at)
               values ($1, 'sms', $2, $3, $4, 'sent', now() - interval '1 minute', now() - interval '1 minute')";
    stage.execute(sql, &[&id, &provider, &provider_message_id, &stage.stranger()]).await.unwrap();
    let sql = "insert into message_status_events (delivery_id, delivery_ref, source, status, occurred_at, dedupe_key)
               select id, id::text, 'own', 'sent', sent_at, 'own:' || id || ':sent' from message_delivery_log where id = $1";
    stage.execute(sql, &[&id]).await.unwrap();
    id
}

/// A callback as Twilio posts it: all parameters, in an order of its own.
pub async fn callback(stage: &Stage, sid: &str, more: &[(&str, &str)], query: &str) -> Answered {
    let mut parameters = vec![
        ("To", "+250788123456"),
        ("MessageSid", sid),
        ("SmsSid", sid),
        ("From", "+12025550123"),
        ("ApiVersion", "2010-04-01"),
        ("AccountSid", ihuza_sim::twilio::ACCOUNT_SID),
    ];
    parameters.extend_from_slice(more);
    let signature = stage.twilio().signature(query, &parameters);
    let path = if query.is_empty() { "/twilio".to_owned() } else { format!("/twilio?{query}") };
    stage.post(FUNCTION, &path, &[FORM, ("x-twilio-signature", &signature)], form_of(&parameters)).await.unwrap()
}

/// A delivery report as Africa's Talking posts it.
async fn report(stage: &Stage, id: &str, status: &str, more: &[(&str, &str)]) -> Answered {
    let mut parameters =
        vec![("id", id), ("status", status), ("phoneNumber", "+250788123456"), ("networkCode", "63510")];
    parameters.extend_from_slice(more);
    let path = format!("/africastalking/{}", stage.secret("AFRICASTALKING_WEBHOOK_SECRET").unwrap());
    stage.post(FUNCTION, &path, &[FORM], form_of(&parameters)).await.unwrap()
}

#[track_caller]
pub fn accepted(answer: &Answered) {
    assert_eq!((answer.status, &answer.body), (200, &json!({"status": "accepted", "reports": 1, "unreadable": 0})));
}

/// Waits until so many events of the provider are with the delivery; the delivery then.
async fn after(stage: &Stage, id: Uuid, count: usize) -> Row {
    stage
        .until(&format!(
            "select count(*) = {count} from message_status_events where delivery_id = '{id}' and source = 'provider'"
        ))
        .await;
    let columns = "status, error_code, error_class, cost::text as cost, cost_currency";
    stage.row(&format!("select {columns} from message_delivery_log where id = '{id}'")).await
}

#[tokio::test]
async fn twilios_callbacks_lead_to_the_same_status_in_any_order() {
    let stage = stage().await;
    let orders: [(&[&str], &str); 6] = [
        (&["queued", "sending", "sent", "delivered"], "delivered"),
        (&["delivered", "sent", "sending", "queued"], "delivered"),
        (&["read", "delivered", "sent"], "read"),
        (&["sent", "undelivered"], "failed"),
        (&["undelivered", "sent", "delivered"], "delivered"),
        (&["canceled", "accepted"], "failed"),
    ];
    for (words, last) in orders {
        let sid = sid();
        let id = sent(&stage, "twilio", &sid).await;
        for word in words {
            // Each twice, as a callback that was not answered in time.
            for _ in 0..2 {
                accepted(&callback(&stage, &sid, &[("MessageStatus", word), ("SmsStatus", word)], "").await);
            }
        }
        assert_eq!(after(&stage, id, words.len()).await["status"], last, "{words:?}");
    }
}

#[tokio::test]
async fn an_error_of_twilios_is_kept_with_its_class() {
    let stage = stage().await;
    for (code, status, class) in
        [("30003", "failed", "retryable"), ("21610", "undeliverable", "permanent"), ("39999", "failed", "unknown")]
    {
        let sid = sid();
        let id = sent(&stage, "twilio", &sid).await;
        accepted(&callback(&stage, &sid, &[("MessageStatus", "undelivered"), ("ErrorCode", code)], "").await);
        let row = after(&stage, id, 1).await;
        assert_eq!(
            (&row["status"], &row["error_code"], &row["error_class"]),
            (&json!(status), &json!(code), &json!(class))
        );
    }
}

#[tokio::test]
async fn an_id_in_other_letters_is_the_same_message() {
    let stage = stage().await;
    let twilio = sid();
    let id = sent(&stage, "twilio", &twilio).await;
    accepted(&callback(&stage, &twilio.to_uppercase(), &[("MessageStatus", "delivered")], "").await);
    assert_eq!(after(&stage, id, 1).await["status"], "delivered");
    let other = format!("ATXid_{}", Uuid::new_v4().simple());
    let id = sent(&stage, "africas_talking", &other).await;
    accepted(&report(&stage, &other.to_lowercase(), "Success", &[]).await);
    assert_eq!(after(&stage, id, 1).await["status"], "delivered");
}

#[tokio::test]
async fn a_callback_that_names_our_delivery_brings_its_id_and_those_that_waited_for_it() {
    let stage = stage().await;
    let sid = sid();
    // Nobody knows this id yet.
    accepted(&callback(&stage, &sid, &[("MessageStatus", "delivered")], "").await);
    let orphan = format!(
        "select count(*) = 1 from message_status_events where provider_message_id = '{sid}' and delivery_id is null"
    );
    stage.until(&orphan).await;
    let id = sent(&stage, "twilio", "the answer was lost").await;
    stage.execute("update message_delivery_log set provider_message_id = null where id = $1", &[&id]).await.unwrap();
    accepted(&callback(&stage, &sid, &[("MessageStatus", "sent")], &format!("ref={id}")).await);
    assert_eq!(after(&stage, id, 2).await["status"], "delivered");
    let known = stage.value(&format!("select provider_message_id from message_delivery_log where id = '{id}'")).await;
    assert_eq!(known, json!(sid));
}

#[tokio::test]
async fn a_word_that_nobody_knows_is_kept_and_told_and_changes_nothing() {
    let stage = stage().await;
    let sid = sid();
    let id = sent(&stage, "twilio", &sid).await;
    let answer = callback(&stage, &sid, &[("MessageStatus", "teleported")], "").await;
    accepted(&answer);
    assert_eq!(after(&stage, id, 1).await["status"], "sent");
    let kept = stage
        .row(&format!(
            "select status, raw_status from message_status_events where delivery_id = '{id}' and source = 'provider'"
        ))
        .await;
    assert_eq!(Value::Object(kept), json!({"status": "unknown", "raw_status": "teleported"}));
    let told = async || {
        let lines = stage.logs().unwrap();
        let mut lines = lines.iter().map(ihuza_sim::edge::LogLine::json);
        Ok(lines
            .any(|line| line["event"] == "DELIVERY_STATUS_UNREADABLE" && line["raw_status"] == "teleported")
            .then_some(()))
    };
    stage.wait_for("a line about the word", crate::stage::SOON, told).await.unwrap();
}

#[tokio::test]
async fn africas_talkings_reports_lead_to_the_same_status_in_any_order_and_name_the_cost() {
    let stage = stage().await;
    let orders: [(&[&str], &str); 6] = [
        (&["Sent", "Submitted", "Buffered", "Success"], "delivered"),
        (&["Success", "Sent"], "delivered"),
        (&["Failed", "Sent"], "failed"),
        (&["AbsentSubscriber", "Buffered"], "undeliverable"),
        (&["Expired", "Success"], "delivered"),
        (&["Rejected"], "failed"),
    ];
    for (words, last) in orders {
        let provider_message_id = format!("ATXid_{}", Uuid::new_v4().simple());
        let id = sent(&stage, "africas_talking", &provider_message_id).await;
        for word in words {
            for _ in 0..2 {
                accepted(&report(&stage, &provider_message_id, word, &[("cost", "RWF 10.0000")]).await);
            }
        }
        let row = after(&stage, id, words.len()).await;
        assert_eq!(row["status"], last, "{words:?}");
        assert_eq!((&row["cost"], &row["cost_currency"]), (&json!("10.000000"), &json!("RWF")));
    }
    let id = sent(&stage, "africas_talking", "ATXid_barred").await;
    accepted(&report(&stage, "ATXid_barred", "Failed", &[("failureReason", "UserInBlackList")]).await);
    let row = after(&stage, id, 1).await;
    assert_eq!(
        (&row["status"], &row["error_code"], &row["error_class"]),
        (&json!("undeliverable"), &json!("UserInBlackList"), &json!("permanent"))
    );
}

#[tokio::test]
async fn only_what_twilio_signed_is_believed() {
    let stage = stage().await;
    let token = stage.secret("TWILIO_AUTH_TOKEN").unwrap();
    let sid = sid();
    let parameters = [("MessageSid", sid.as_str()), ("MessageStatus", "failed"), ("To", "+250788123456")];
    let post = async |path: &str, signature: Option<&str>, kind: &'static str, body: String| {
        let mut headers = vec![("content-type", kind)];
        headers.extend(signature.map(|signature| ("x-twilio-signature", signature)));
        stage.post(FUNCTION, path, &headers, body).await.unwrap().status
    };
    let form = async |path: &str, signature: &str, body: String| post(path, Some(signature), FORM.1, body).await;
    let good = stage.twilio().signature("", &parameters);
    let body = form_of(&parameters);
    assert_eq!(form("/twilio", &good, body.clone()).await, 200);
    let mut turned = parameters;
    turned.reverse();
    assert_eq!(form("/twilio", &good, form_of(&turned)).await, 200, "whatever the order");
    let url = with_query("");
    assert_eq!(
        form("/twilio", &signature(OLD_TWILIO, &url, &parameters), body.clone()).await,
        200,
        "the token of before"
    );
    let port = url.replace(".rw/", ".rw:443/");
    assert_eq!(form("/twilio", &signature(token, &port, &parameters), body.clone()).await, 200, "with its port");

    let forged = [
        ("another token", form("/twilio", &signature("guess", &url, &parameters), body.clone()).await),
        ("one parameter more", form("/twilio", &good, format!("{body}&Price=0")).await),
        ("one parameter less", form("/twilio", &good, form_of(&parameters[..2])).await),
        ("another status", form("/twilio", &good, body.replace("failed", "read")).await),
        ("a query that was not signed", form("/twilio?ref=x", &good, body.clone()).await),
        ("half a signature", form("/twilio", &good[..14], body.clone()).await),
        ("no padding", form("/twilio", good.trim_end_matches('='), body.clone()).await),
        ("an empty signature", form("/twilio", "", body.clone()).await),
        ("no signature", post("/twilio", None, FORM.1, body.clone()).await),
        ("the address of the function itself", {
            let own = format!("{}/{FUNCTION}/twilio", stage.edge().unwrap().url(FUNCTION).unwrap());
            form("/twilio", &signature(token, &own, &parameters), body.clone()).await
        }),
        ("a form under the name of JSON", post("/twilio", Some(&good), "application/json", body.clone()).await),
        ("no body", form("/twilio", &good, String::new()).await),
    ];
    for (what, status) in forged {
        assert_eq!(status, 401, "{what}");
    }

    // JSON is signed through its digest in the address.
    let body = json!({"MessageSid": sid, "MessageStatus": "failed"}).to_string();
    let digest = ring_sha256(&body);
    let query = format!("bodySHA256={digest}");
    let good = stage.twilio().signature(&query, &[]);
    let json = async |query: &str, body: String| {
        post(&format!("/twilio?{query}"), Some(&good), "application/json", body).await
    };
    assert_eq!(json(&query, body.clone()).await, 200);
    assert_eq!(json(&query, body.replace("failed", "read")).await, 401);
    assert_eq!(json(&query.replace("SHA256", "SHA1"), body.clone()).await, 401);

    // Signed, and no report.
    let good = stage.twilio().signature("", &[("Hello", "world")]);
    assert_eq!(form("/twilio", &good, "Hello=world".to_owned()).await, 400);
}

fn ring_sha256(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn only_who_knows_the_address_reports_for_africas_talking() {
    let stage = stage().await;
    let secret = stage.secret("AFRICASTALKING_WEBHOOK_SECRET").unwrap();
    let post =
        async |path: &str| stage.post(FUNCTION, path, &[FORM], "id=ATXid_door&status=Success").await.unwrap().status;
    assert_eq!(post(&format!("/africastalking/{secret}")).await, 200);
    assert_eq!(post(&format!("/africastalking/{OLD_AFRICASTALKING}")).await, 200);
    let mtn = stage.secret("MTN_WEBHOOK_SECRET").unwrap();
    for wrong in ["guess", &secret[1..], &format!("{secret}x"), &format!("{secret}/x"), mtn] {
        assert_eq!(post(&format!("/africastalking/{wrong}")).await, 401, "{wrong}");
    }
    assert_eq!(post(&format!("/mtn/{secret}")).await, 401);
    for none in ["/africastalking", "/africastalking/", "/twilio/x"] {
        assert_eq!(post(none).await, 404, "{none}");
    }
    let path = format!("/africastalking/{secret}");
    let answer = stage.post(FUNCTION, &path, &[FORM], "hello=world").await.unwrap();
    assert_eq!(answer.status, 400, "{}", answer.body);
}
