//! Meta refuses what Meta refuses.

use super::*;
use crate::edge::client;
use crate::http::Reply;

const PHONE: &str = "+250788123456";

struct Setup {
    whatsapp: WhatsApp,
    account: Account,
}

impl Setup {
    async fn new() -> Self {
        let account = Account::generate();
        let whatsapp = WhatsApp::start(0, account.clone(), Duration::ZERO).await.unwrap();
        Self { whatsapp, account }
    }

    async fn post(&self, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let request = client().unwrap().post(format!("{}{path}", self.whatsapp.url()));
        let answer = request.bearer_auth(token).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    async fn send(&self, body: &Value) -> (u16, Value) {
        let path = format!("/v25.0/{}/messages", self.account.phone_number_id);
        self.post(&path, &self.account.access_token, body).await
    }

    /// The vendor's code, or 0 when the message was accepted.
    async fn code(&self, body: &Value) -> i64 {
        let (status, answer) = self.send(body).await;
        let code = answer["error"]["code"].as_i64().unwrap_or(0);
        assert_eq!(status == 200, code == 0, "{status} {answer}");
        code
    }
}

fn text(body: &str) -> Value {
    json!({"messaging_product": "whatsapp", "recipient_type": "individual", "to": PHONE, "type": "text",
           "biz_opaque_callback_data": "ref-1", "text": {"preview_url": false, "body": body}})
}

fn template(language: &str, topic: &str) -> Value {
    json!({"messaging_product": "whatsapp", "to": PHONE, "type": "template",
           "template": {"name": "call_summary_v1", "language": {"code": language}, "components": [
             {"type": "body", "parameters": [
               {"type": "text", "parameter_name": "topic", "text": topic},
               {"type": "text", "parameter_name": "next_step", "text": "We send you three houses"}]},
             {"type": "button", "sub_type": "quick_reply", "index": "0",
              "parameters": [{"type": "payload", "payload": "continue"}]}]}})
}

fn with(mut body: Value, pointer: &str, value: Value) -> Value {
    *body.pointer_mut(pointer).unwrap() = value;
    body
}

#[tokio::test]
async fn text_needs_an_open_window_and_a_template_does_not() {
    let setup = Setup::new().await;
    assert_eq!(setup.code(&text("Hello")).await, 131_047);
    assert_eq!(setup.code(&template("en", "a house")).await, 0);
    setup.whatsapp.open_window(PHONE);
    assert_eq!(setup.code(&text("Hello")).await, 0);
    setup.whatsapp.open_window_at(PHONE, Utc::now() - TimeDelta::hours(24));
    assert_eq!(setup.code(&text("Hello")).await, 131_047, "24 hours and not a second more");
    let sent = setup.whatsapp.messages_to(PHONE);
    assert_eq!(sent.len(), 2);
    assert!(sent[0].shown.starts_with("Hello, here is the summary of your call with EasyMO about a house."));
    assert_eq!(sent[1].biz_opaque_callback_data.as_deref(), Some("ref-1"));
}

#[tokio::test]
async fn requests_that_meta_would_refuse_are_refused() {
    let setup = Setup::new().await;
    setup.whatsapp.open_window(PHONE);
    let check = async |body: Value, code: i64| assert_eq!(setup.code(&body).await, code, "{body}");
    check(with(text("Hi"), "/messaging_product", json!("sms")), 100).await;
    check(with(text("Hi"), "/to", json!("250788123456")), 131_009).await;
    check(with(text("Hi"), "/to", Value::Null), 131_008).await;
    check(with(text("Hi"), "/type", json!("sticker")), 131_008).await;
    check(text(" "), 131_009).await;
    check(text(&"x".repeat(4097)), 131_009).await;
    check(with(text("Hi"), "/biz_opaque_callback_data", json!("x".repeat(513))), 131_009).await;
    check(json!([1]), 100).await;
}

#[tokio::test]
async fn templates_are_held_to_their_approval() {
    let setup = Setup::new().await;
    let check = async |body: Value, code: i64| assert_eq!(setup.code(&body).await, code, "{body}");
    check(template("rw_RW", "inzu"), 0).await;
    check(template("rw", "inzu"), 132_001).await;
    check(with(template("en", "x"), "/template/name", json!("other")), 132_001).await;
    check(template("en", "two\nlines"), 132_018).await;
    check(template("en", "wide     gap"), 132_018).await;
    check(template("en", &"x".repeat(1000)), 132_005).await;
    check(template("en", ""), 131_008).await;
    let body = "/template/components/0/parameters";
    check(with(template("en", "x"), body, json!([])), 132_000).await;
    check(with(template("en", "x"), &format!("{body}/0/parameter_name"), json!("subject")), 132_012).await;
    check(with(template("en", "x"), "/template/components/1/index", json!("1")), 132_000).await;
}

#[tokio::test]
async fn token_and_number_must_be_ours() {
    let setup = Setup::new().await;
    let path = format!("/v25.0/{}/messages", setup.account.phone_number_id);
    let (status, answer) = setup.post(&path, "nonsense", &text("Hi")).await;
    assert_eq!((status, &answer["error"]["code"]), (401, &json!(190)));
    let token = &setup.account.access_token;
    assert_eq!(setup.post("/v25.0/42/messages", token, &text("Hi")).await.1["error"]["code"], 100);
    assert_eq!(setup.post("/latest/42/messages", token, &text("Hi")).await.0, 400);
}

#[tokio::test]
async fn somebody_who_is_not_on_whatsapp_is_refused_at_once_or_later() {
    let setup = Setup::new().await;
    setup.whatsapp.not_on_whatsapp(PHONE, Refused::AtOnce);
    assert_eq!(setup.code(&template("en", "x")).await, 131_026);
    let mut never = template("en", "x");
    never["to"] = json!(NEVER_ON_WHATSAPP);
    assert_eq!(setup.code(&never).await, 0, "accepted, and reported later");
}

#[tokio::test]
async fn one_person_is_not_flooded() {
    let setup = Setup::new().await;
    setup.whatsapp.open_window(PHONE);
    for _ in 0..PAIR_BURST {
        assert_eq!(setup.code(&text("Hi")).await, 0);
    }
    assert_eq!(setup.code(&text("Hi")).await, 131_056);
    setup.whatsapp.lift_limits();
    assert_eq!(setup.code(&text("Hi")).await, 0);
}

/// Everything a webhook was told about one message, a list a POST.
async fn statuses(fault: Option<Fault>, plan: Statuses, expected: usize) -> Vec<Vec<String>> {
    let setup = Setup::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let webhook = {
        let (seen, secret) = (seen.clone(), setup.account.app_secret.clone());
        Server::start(0, move |request: Request| {
            let expected = format!("sha256={}", hmac_hex(&secret, &[request.body.as_ref()]));
            assert_eq!(request.header("x-hub-signature-256"), Some(expected.as_str()));
            assert!(request.body.is_ascii());
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            let list = body.pointer("/entry/0/changes/0/value/statuses").unwrap().as_array().unwrap();
            let named = |status: &Value| {
                assert_eq!(status["biz_opaque_callback_data"], "ref-é");
                let code = status.pointer("/errors/0/code").map(|code| format!(" {code}")).unwrap_or_default();
                format!("{}{code}", status["status"].as_str().unwrap())
            };
            seen.lock().unwrap().push(list.iter().map(named).collect::<Vec<_>>());
            async { Reply::Whole(Answer::text(200, "text/plain", "")) }
        })
        .await
        .unwrap()
    };
    setup.whatsapp.set_webhook(webhook.url());
    setup.whatsapp.set_statuses(plan);
    setup.whatsapp.open_window(PHONE);
    if let Some(fault) = fault {
        setup.whatsapp.fail_with(fault);
    }
    let mut body = text("Hi");
    body["biz_opaque_callback_data"] = json!("ref-é");
    assert_eq!(setup.code(&body).await, 0);
    let since = Instant::now();
    while seen.lock().unwrap().len() < expected && since.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One too many would come about now.
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::mem::take(&mut *seen.lock().unwrap())
}

#[tokio::test]
async fn statuses_come_signed_and_as_ordered() {
    let plan = Statuses { read_after: Some(Duration::from_millis(90)), ..Statuses::default() };
    let batched = Statuses { batched: true, ..plan };
    let (well, reversed, together, late, never) = tokio::join!(
        statuses(None, plan, 3),
        statuses(Some(Fault::Reorder), plan, 3),
        statuses(None, batched, 1),
        statuses(Some(Fault::LateCode(131_049)), plan, 1),
        statuses(Some(Fault::NoReport), plan, 0),
    );
    assert_eq!(well.concat(), ["sent", "delivered", "read"]);
    assert_eq!(reversed.concat(), ["read", "delivered", "sent"]);
    assert_eq!(together, [["sent", "delivered", "read"]]);
    assert_eq!(late.concat(), ["failed 131049"]);
    assert!(never.is_empty());
}
