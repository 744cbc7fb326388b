//! MTN refuses what MTN refuses.

use super::*;
use crate::edge::client;
use crate::http::Reply;

struct Setup {
    mtn: Mtn,
    account: Account,
    token: String,
}

impl Setup {
    async fn new() -> Self {
        let account = Account::generate();
        let mtn = Mtn::start(0, account.clone(), Duration::ZERO).await.unwrap();
        let mut setup = Self { mtn, account, token: String::new() };
        let (status, answer) = setup.token(&setup.account.api_secret, "client_credentials").await;
        assert_eq!(status, 200);
        assert_eq!(answer["expires_in"], "3599", "a string, as MTN writes it");
        setup.token = answer["access_token"].as_str().unwrap().to_owned();
        setup
    }

    async fn token(&self, secret: &str, grant: &str) -> (u16, Value) {
        let url = format!("{}{TOKEN_PATH}?grant_type={grant}", self.mtn.url());
        let body = format!("client_id={}&client_secret={secret}", self.account.api_key);
        let request = client().unwrap().post(url).body(body);
        let answer = request.header("content-type", "application/x-www-form-urlencoded").send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn send_as(&self, token: &str, api_key: &str, body: &Value) -> (u16, Value) {
        let request = client().unwrap().post(format!("{}{OUTBOUND_PATH}", self.mtn.url()));
        let request = request.bearer_auth(token).header("x-api-key", api_key).json(body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    async fn send(&self, body: &Value) -> (u16, Value) {
        self.send_as(&self.token, &self.account.api_key, body).await
    }
}

fn good() -> Value {
    json!({"senderAddress": "EasyMO", "serviceCode": "8080", "receiverAddress": ["250788123456"], "message": "Hello",
           "clientCorrelatorId": "7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11", "requestDeliveryReceipt": true})
}

fn with(field: &str, value: Value) -> Value {
    let mut body = good();
    body[field] = value;
    body
}

fn without(field: &str) -> Value {
    let mut body = good();
    body.as_object_mut().unwrap().remove(field);
    body
}

#[tokio::test]
async fn the_token_needs_the_right_secret_and_grant() {
    let setup = Setup::new().await;
    let wrong = setup.token("nonsense", "client_credentials").await;
    assert_eq!(wrong, (401, json!({"error": "invalid_client"})));
    let password = setup.token(&setup.account.api_secret, "password").await;
    assert_eq!(password, (400, json!({"error": "unsupported_grant_type"})));
}

#[tokio::test]
async fn a_good_message_is_taken_and_kept() {
    let setup = Setup::new().await;
    let (status, answer) = setup.send(&good()).await;
    assert_eq!((status, &answer["statusCode"], &answer["data"]["status"]), (200, &json!("0000"), &json!("PENDING")));
    let messages = setup.mtn.messages_to("+250788123456");
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].sender.as_str(), messages[0].text.as_str()), ("EasyMO", "Hello"));
}

#[tokio::test]
async fn messages_that_mtn_would_refuse_are_refused() {
    let setup = Setup::new().await;
    let check = async |body: Value, why: &str| {
        let (status, answer) = setup.send(&body).await;
        assert_eq!((status, &answer["statusCode"]), (400, &json!("5000")), "{body}");
        let support = answer["supportMessage"].as_str().unwrap();
        assert!(support.contains(why), "{support}");
    };
    for field in ["message", "serviceCode", "receiverAddress", "clientCorrelatorId"] {
        check(without(field), "is required").await;
    }
    check(with("receiverAddress", json!(["+250788123456"])), "without +").await;
    check(with("receiverAddress", json!("250788123456")), "must be a list").await;
    check(with("receiverAddress", json!([])), "1 to 20").await;
    check(with("clientCorrelatorId", json!("x".repeat(37))), "36").await;
    check(with("senderAddress", json!("A name too long")), "11").await;
    check(with("requestDeliveryReceipt", json!("true")), "true or false").await;
    check(with("message", json!("")), "not empty").await;
    check(with("messsage", json!("typo")), "not a field").await;
    assert!(setup.mtn.messages().is_empty());
}

#[tokio::test]
async fn only_a_living_token_and_the_key_let_a_message_in() {
    let setup = Setup::new().await;
    let key = setup.account.api_key.clone();
    assert_eq!(setup.send_as("nonsense", &key, &good()).await.1["statusCode"], "4000");
    assert_eq!(setup.send_as(&setup.token, "nonsense", &good()).await.0, 401);
    setup.mtn.expire_tokens();
    assert_eq!(setup.send(&good()).await.0, 401);
}

#[tokio::test]
async fn vendor_codes_come_with_their_status() {
    let setup = Setup::new().await;
    for (code, status) in [(3000, 503), (3006, 429), (6001, 403), (1012, 408), (7777, 200)] {
        setup.mtn.fail_with(Fault::Code(code));
        let (got, answer) = setup.send(&good()).await;
        assert_eq!((got, answer["statusCode"].as_str()), (status, Some(format!("{code:04}").as_str())));
    }
    setup.mtn.fail_with(Fault::Status500Before);
    assert_eq!(setup.send(&good()).await, (500, Value::Null), "no code: nobody knows whether it got through");
    setup.mtn.fail_with(Fault::Status429);
    assert_eq!(setup.token(&setup.account.api_secret, "client_credentials").await.0, 200, "the token is not struck");
}

/// Runs a webhook that counts, and returns the statuses it was told in order of arrival.
async fn reports(fault: Option<Fault>, expected: usize) -> Vec<String> {
    let setup = Setup::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let webhook = {
        let (seen, secret) = (seen.clone(), setup.account.webhook_secret.clone());
        Server::start(0, move |request: Request| {
            assert_eq!(request.path, format!("/delivery-status-webhook/mtn/{secret}"));
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(body["clientCorrelatorId"], good()["clientCorrelatorId"]);
            seen.lock().unwrap().push(body["deliveryStatus"].as_str().unwrap().to_owned());
            async { Reply::Whole(Answer::text(200, "text/plain", "")) }
        })
        .await
        .unwrap()
    };
    setup.mtn.set_webhooks(webhook.url(), webhook.url());
    if let Some(fault) = fault {
        setup.mtn.fail_with(fault);
    }
    assert_eq!(setup.send(&good()).await.0, 200);
    let since = Instant::now();
    while seen.lock().unwrap().len() < expected && since.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One too many would come about now.
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::mem::take(&mut *seen.lock().unwrap())
}

#[tokio::test]
async fn delivery_reports_come_as_ordered() {
    let (well, twice, reversed, failed, early, never) = tokio::join!(
        reports(None, 2),
        reports(Some(Fault::Duplicate), 4),
        reports(Some(Fault::Reorder), 2),
        reports(Some(Fault::FailedReport), 2),
        reports(Some(Fault::EarlyReport), 2),
        reports(Some(Fault::NoReport), 0),
    );
    assert_eq!(well, ["ACCEPTD", "DELIVERED"]);
    assert_eq!(twice, ["ACCEPTD", "ACCEPTD", "DELIVERED", "DELIVERED"]);
    assert_eq!(reversed, ["DELIVERED", "ACCEPTD"]);
    assert_eq!(failed, ["ACCEPTD", "UNDELIVERED"]);
    assert_eq!(early, ["ACCEPTD", "DELIVERED"]);
    assert!(never.is_empty());
}

#[test]
fn inbound_messages_have_the_shapes_that_carriers_use() {
    let inbound = Inbound::new("+250788123456", "Ndashaka inzu & imodoka").id("m-1").to("8080");
    let (_, v3) = inbound.encoded();
    let v3: Value = serde_json::from_str(&v3).unwrap();
    assert_eq!((v3["senderAddress"].as_str(), v3["messageId"].as_str()), (Some("250788123456"), Some("m-1")));
    let (content_type, form) = inbound.clone().shape(Shape::Form).encoded();
    assert_eq!(content_type, "application/x-www-form-urlencoded");
    assert_eq!(form, "from=%2B250788123456&to=8080&text=Ndashaka+inzu+%26+imodoka&id=m-1");
    let decoded = form::decoded(&form);
    assert_eq!(decoded[2], ("text".to_owned(), "Ndashaka inzu & imodoka".to_owned()));
}
