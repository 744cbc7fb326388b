//! Who is let in, and how the others are turned away: keys, signatures, methods, sizes, paths.

use chrono::Utc;
use ihuza_sim::edge::client;
use ihuza_sim::keys::hmac_hex;
use ihuza_sim::mtn::{Inbound, Proof};
use ihuza_sim::verbs::Answered;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::Stage;

fn vectors() -> Value {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/signatures.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

const OLD_MTN: &str = "the-secret-before-the-rotation";
const OLD_META: &str = "the-app-secret-before-the-rotation";

/// The secrets of the vectors, and during a rotation the ones before.
fn config() -> WorldConfig {
    let vectors = vectors();
    WorldConfig::default()
        .var("MTN_WEBHOOK_SECRET", vectors["timestamped"]["secret"].as_str().unwrap())
        .var("MTN_WEBHOOK_SECRET_PREVIOUS", OLD_MTN)
        .var("WHATSAPP_APP_SECRET", vectors["meta_secret"].as_str().unwrap())
        .var("WHATSAPP_APP_SECRET_PREVIOUS", OLD_META)
}

async fn stage() -> Stage {
    Stage::shared("doors", config).await
}

/// Lets everybody write.
fn open() -> WorldConfig {
    WorldConfig::default().var("IHUZA_COMPAT_INBOUND_AUTH", true)
}

fn header<'a>(answer: &'a Answered, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A refusal without a word about why, or about what would have been right.
#[track_caller]
fn turned_away(answer: &Answered) {
    assert_eq!(answer.status, 401, "{}", answer.body);
    assert_eq!(header(answer, "content-type"), Some("application/problem+json"));
    let mut body = answer.body.clone();
    body.as_object_mut().unwrap().remove("correlation_id");
    assert_eq!(
        body,
        json!({"type": "https://ihuza.rw/errors/unauthorized", "title": body["title"], "status": 401}),
        "{body}"
    );
}

fn sms(phone: &str, id: &str) -> String {
    json!({"from": phone, "to": "8080", "message": "Is the house still free?", "messageId": id}).to_string()
}

const REPORT: &str = r#"{"clientCorrelatorId": "7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11", "deliveryStatus": "DELIVERED"}"#;

#[tokio::test]
async fn our_own_callers_show_one_of_two_keys_in_one_of_two_ways() {
    let stage = stage().await;
    let keys = [stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap(), stage.secret("INTERNAL_API_KEY").unwrap()];
    let body = json!({"callId": "nobody-knows-it"}).to_string();
    let post =
        async |headers: &[(&str, &str)]| stage.post("post-call-notify", "", headers, body.clone()).await.unwrap();
    for key in keys {
        assert_eq!(post(&[("authorization", &format!("Bearer {key}"))]).await.status, 202);
        assert_eq!(post(&[("apikey", key)]).await.status, 202);
    }
    let anon = stage.keys().anon.clone();
    let mut nearly = keys[1].to_owned();
    nearly.pop();
    let wrong = [
        vec![],
        vec![("authorization", String::new())],
        vec![("authorization", "Bearer".to_owned())],
        vec![("authorization", "Bearer ".to_owned())],
        vec![("authorization", format!("Basic {}", keys[0]))],
        vec![("authorization", format!("Bearer {anon}"))],
        vec![("authorization", format!("Bearer {nearly}"))],
        vec![("authorization", format!("Bearer {}x", keys[1]))],
        vec![("authorization", format!("Bearer {} {}", keys[1], keys[1]))],
        vec![("apikey", anon.clone())],
        vec![("apikey", "null".to_owned())],
    ];
    for headers in wrong {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        turned_away(&post(&headers).await);
        turned_away(&stage.post("delivery-retry", "/sweep", &headers, "").await.unwrap());
    }
    let url = format!("{}/post-call-notify/some-id", stage.edge().unwrap().url("post-call-notify").unwrap());
    assert_eq!(client().unwrap().get(url).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_carrier_shows_a_signature_a_token_or_a_path_and_either_of_two_secrets() {
    let stage = stage().await;
    let phone = stage.stranger();
    let current = stage.secret("MTN_WEBHOOK_SECRET").unwrap();
    for (number, secret) in [current, OLD_MTN].into_iter().enumerate() {
        for (function, body) in [
            ("sms-inbound-webhook", sms(&phone, &format!("door-{number}"))),
            ("delivery-status-webhook", REPORT.to_owned()),
        ] {
            let bearer = format!("Bearer {secret}");
            let answer = stage.post(function, "", &[("authorization", &bearer)], body.clone()).await.unwrap();
            assert_eq!(answer.status, 200, "{function} {}", answer.body);
            let answer = stage.post(function, &format!("/mtn/{secret}"), &[], body.clone()).await.unwrap();
            assert_eq!(answer.status, 200, "{function} {}", answer.body);
            for age in [0, 290, -290] {
                let (timestamp, signature) = signed(secret, &body, age);
                let headers = [("x-timestamp", timestamp.as_str()), ("x-signature", signature.as_str())];
                let answer = stage.post(function, "", &headers, body.clone()).await.unwrap();
                assert_eq!(answer.status, 200, "{function}, {age} s old: {}", answer.body);
            }
        }
    }
}

/// `X-Timestamp` and `X-Signature` of a body that was signed `age` seconds ago.
fn signed(secret: &str, body: &str, age: i64) -> (String, String) {
    let timestamp = (Utc::now().timestamp() - age).to_string();
    let mac = hmac_hex(secret, &[timestamp.as_bytes(), b".", body.as_bytes()]);
    (timestamp, format!("sha256={mac}"))
}

#[tokio::test]
async fn a_forged_or_stale_signature_is_turned_away_even_beside_the_right_token() {
    let stage = stage().await;
    let secret = stage.secret("MTN_WEBHOOK_SECRET").unwrap();
    let bearer = format!("Bearer {secret}");
    for (function, body) in
        [("sms-inbound-webhook", sms(&stage.stranger(), "forged")), ("delivery-status-webhook", REPORT.to_owned())]
    {
        let (timestamp, signature) = signed(secret, &body, 0);
        let (old, stale) = signed(secret, &body, 310);
        let (early, future) = signed(secret, &body, -310);
        let (_, other) = signed("another-secret", &body, 0);
        let (_, shifted) = signed(secret, &format!("{body} "), 0);
        let upper = signature.to_uppercase().replace("SHA256", "sha256");
        let cases = [
            ("forged", timestamp.as_str(), other.as_str()),
            ("of another body", &timestamp, &shifted),
            ("stale", &old, &stale),
            ("from the future", &early, &future),
            ("with another time", &old, &signature),
            ("without a time", "", &signature),
            ("with a time that is none", "yesterday", &signature),
            ("cut", &timestamp, &signature[..signature.len() - 1]),
            ("empty", &timestamp, "sha256="),
            ("of another kind", &timestamp, &signature.replace("sha256", "sha1")),
        ];
        for (what, timestamp, signature) in cases {
            let mut headers = vec![("x-signature", signature), ("authorization", bearer.as_str())];
            if !timestamp.is_empty() {
                headers.push(("x-timestamp", timestamp));
            }
            let answer = stage.post(function, "", &headers, body.clone()).await.unwrap();
            assert_eq!(answer.status, 401, "{function}: a signature {what}");
            turned_away(&answer);
        }
        // Digits of either case are the same number.
        let answer = stage
            .post(function, "", &[("x-timestamp", &timestamp), ("x-signature", &upper)], body.clone())
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        turned_away(&stage.post(function, "", &[], body.clone()).await.unwrap());
        turned_away(&stage.post(function, "/mtn/guess", &[], body.clone()).await.unwrap());
        turned_away(&stage.post(function, "", &[("authorization", "Bearer guess")], body.clone()).await.unwrap());
        turned_away(
            &stage
                .post(function, "", &[("authorization", &format!("Bearer {}", stage.keys().anon))], body.clone())
                .await
                .unwrap(),
        );
        let lost = stage.post(function, "/mtn", &[("authorization", &bearer)], body.clone()).await.unwrap();
        assert!([401, 404].contains(&lost.status), "{}", lost.body);
    }
}

/// Whoever overhears a webhook can send it again while its time is fresh: the very same bytes find the same work.
#[tokio::test]
async fn a_signed_webhook_played_again_has_one_effect_and_opens_no_other_door() {
    let stage = stage().await;
    let (by_sms, on_whatsapp) = (stage.stranger(), stage.stranger());
    let secret = stage.secret("MTN_WEBHOOK_SECRET").unwrap();
    let text = sms(&by_sms, "played-again");
    let (timestamp, signature) = signed(secret, &text, 0);
    let of_carrier = [("x-timestamp", timestamp.as_str()), ("x-signature", signature.as_str())];
    let number = stage.secret("WHATSAPP_PHONE_NUMBER_ID").unwrap();
    let message = |words: &str, id: &str| {
        let from = on_whatsapp.trim_start_matches('+');
        let value = json!({"messaging_product": "whatsapp", "metadata": {"display_phone_number": "250788000000", "phone_number_id": number},
                           "contacts": [{"profile": {"name": "Aline"}, "wa_id": from}],
                           "messages": [{"from": from, "id": id, "timestamp": Utc::now().timestamp().to_string(), "type": "text", "text": {"body": words}}]});
        json!({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]}).to_string()
    };
    let of_meta = |body: &str| {
        let secret = stage.secret("WHATSAPP_APP_SECRET").unwrap();
        format!("sha256={}", hmac_hex(secret, &[body.as_bytes()]))
    };
    let written = message("Is the house still free?", "wamid.played-again");
    let hub = of_meta(&written);
    for _ in 0..5 {
        let answer = stage.post("sms-inbound-webhook", "", &of_carrier, text.clone()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer =
            stage.post("whatsapp-webhook", "", &[("x-hub-signature-256", &hub)], written.clone()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    // What was overheard at one door says nothing at another.
    turned_away(&stage.post("whatsapp-webhook", "", &of_carrier, text.clone()).await.unwrap());
    turned_away(
        &stage.post("sms-inbound-webhook", "", &[("x-hub-signature-256", &hub)], written.clone()).await.unwrap(),
    );
    turned_away(
        &stage.post("delivery-status-webhook", "", &[("x-hub-signature-256", &hub)], written.clone()).await.unwrap(),
    );
    let (later, _) = signed(secret, &text, -200);
    let another_time = [("x-timestamp", later.as_str()), ("x-signature", signature.as_str())];
    turned_away(&stage.post("sms-inbound-webhook", "", &another_time, text.clone()).await.unwrap());

    // Something else behind them: when that is answered, all copies were looked at. (Meta knows nothing of what was posted past
    // it and refuses the answers, so SMS carries them.)
    stage.sms_to(&by_sms, 1).await;
    stage.sms_to(&on_whatsapp, 1).await;
    let another = sms(&by_sms, "another");
    let (timestamp, signature) = signed(secret, &another, 0);
    let of_carrier = [("x-timestamp", timestamp.as_str()), ("x-signature", signature.as_str())];
    let answer = stage.post("sms-inbound-webhook", "", &of_carrier, another).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    stage.sms_to(&by_sms, 2).await;
    let last = message("And how much is it?", "wamid.another");
    let answer =
        stage.post("whatsapp-webhook", "", &[("x-hub-signature-256", &of_meta(&last))], last.clone()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    stage.sms_to(&on_whatsapp, 2).await;
    for phone in [&by_sms, &on_whatsapp] {
        let heard = format!(
            "conversation_messages m join profiles p on p.id = m.profile_id where p.phone_number = '{phone}' and m.direction = 'inbound'"
        );
        assert_eq!(stage.count(&heard).await, 2, "{phone}");
        assert_eq!(stage.mtn().messages_to(phone).len(), 2, "{phone}");
    }
}

#[tokio::test]
async fn the_published_vectors_hold_over_http() {
    let stage = stage().await;
    let vectors = vectors();
    let text = |pointer: &str| vectors.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    let (body, signature) = (text("/body_meta"), text("/meta_header"));
    let post = async |signature: &str, body: &str| {
        stage.post("whatsapp-webhook", "", &[("x-hub-signature-256", signature)], body.to_owned()).await.unwrap()
    };
    assert_eq!(post(&signature, &body).await.status, 200);
    let old = format!("sha256={}", hmac_hex(OLD_META, &[body.as_bytes()]));
    assert_eq!(post(&old, &body).await.status, 200, "the secret before the rotation");
    turned_away(&post(&signature, &format!("{body}\n")).await);
    turned_away(&post(&signature.replace('1', "2"), &body).await);
    turned_away(&post(&format!("sha256={}", hmac_hex("another", &[body.as_bytes()])), &body).await);
    turned_away(&post("sha256=", &body).await);
    turned_away(&stage.post("whatsapp-webhook", "", &[], body.clone()).await.unwrap());
    // Escapes are part of what is signed: the same JSON written otherwise is another body.
    let (escaped, plain) = ("{\"object\":\"\\u00e9\"}", "{\"object\":\"é\"}");
    let mac = format!("sha256={}", hmac_hex(&text("/meta_secret"), &[escaped.as_bytes()]));
    assert_ne!(post(&mac, escaped).await.status, 401);
    turned_away(&post(&mac, plain).await);

    // Right once, and stale today.
    let (timestamp, signature) = (text("/timestamped/timestamp"), text("/timestamped/signature"));
    let body = text("/timestamped/body");
    let mac = hmac_hex(&text("/timestamped/secret"), &[timestamp.as_bytes(), b".", body.as_bytes()]);
    assert_eq!(format!("sha256={mac}"), signature);
    turned_away(
        &stage
            .post("sms-inbound-webhook", "", &[("x-timestamp", &timestamp), ("x-signature", &signature)], body.clone())
            .await
            .unwrap(),
    );
    let (timestamp, signature) = signed(&text("/timestamped/secret"), &body, 0);
    let answer = stage
        .post("sms-inbound-webhook", "", &[("x-timestamp", &timestamp), ("x-signature", &signature)], body)
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn meta_may_ask_whether_the_address_is_ours() {
    let stage = stage().await;
    let token = stage.secret("WHATSAPP_VERIFY_TOKEN").unwrap();
    let url = stage.edge().unwrap().url("whatsapp-webhook").unwrap();
    let get = async |query: String| {
        let answer = client().unwrap().get(format!("{url}/whatsapp-webhook?{query}")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(
        get(format!("hub.mode=subscribe&hub.verify_token={token}&hub.challenge=730915526")).await,
        (200, "730915526".to_owned())
    );
    for query in [
        "hub.mode=subscribe&hub.verify_token=guess&hub.challenge=1".to_owned(),
        format!("hub.mode=unsubscribe&hub.verify_token={token}&hub.challenge=1"),
        "hub.mode=subscribe&hub.verify_token=&hub.challenge=1".to_owned(),
        String::new(),
    ] {
        let (status, text) = get(query.clone()).await;
        assert_eq!(status, 403, "{query}: {text}");
        assert!(!text.contains(token));
    }
}

#[tokio::test]
async fn unsigned_messages_are_taken_only_where_somebody_switched_that_on() {
    let closed = stage().await;
    let inbound = |phone: &str| Inbound::new(phone, "I look for a house in Remera").proof(Proof::Nothing);
    assert_eq!(closed.mtn().deliver(&inbound(&closed.stranger())).await.unwrap().status, Some(401));
    drop(closed);
    let stage = Stage::shared("open", open).await;
    let phone = stage.stranger();
    assert_eq!(stage.mtn().deliver(&inbound(&phone)).await.unwrap().status, Some(200));
    assert!(stage.sms_to(&phone, 1).await.contains("Remera"));
    // Delivery reports stay closed.
    turned_away(&stage.post("delivery-status-webhook", "", &[], REPORT).await.unwrap());
}

#[tokio::test]
async fn those_who_prove_nothing_share_one_limit_however_many_senders_they_invent() {
    let stage = Stage::alone("open", open).await;
    let from = |phone: &str, proof: Proof| Inbound::new(phone, "I look for a house in Remera").proof(proof);
    let first = stage.stranger();
    assert_eq!(stage.mtn().deliver(&from(&first, Proof::Nothing)).await.unwrap().status, Some(200));
    stage.sms_to(&first, 1).await;
    let used_up = "update rate_limits set taken = 60 where bucket like 'sms_inbound_unsigned:%'";
    assert!(stage.execute(used_up, &[]).await.unwrap() > 0, "the limit was not asked");
    let second = stage.stranger();
    assert_eq!(stage.mtn().deliver(&from(&second, Proof::Nothing)).await.unwrap().status, Some(200));
    stage
        .until(&format!(
            "select bool_and(m.handled_as = 'rate_limited') from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{second}'"
        ))
        .await;
    // MTN itself is not held up.
    let third = stage.stranger();
    assert_eq!(stage.mtn().deliver(&from(&third, Proof::Signature)).await.unwrap().status, Some(200));
    assert!(stage.sms_to(&third, 1).await.contains("Remera"));
    assert!(stage.mtn().messages_to(&second).is_empty());
    stage.execute("delete from rate_limits where bucket like 'sms_inbound_unsigned:%'", &[]).await.unwrap();
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_the_right_ones() {
    let stage = stage().await;
    let places = [
        ("agent-tools", "/mcp", "POST"),
        ("agent-tools", "/health", "GET"),
        ("post-call-notify", "", "POST"),
        ("post-call-notify", "/some-id", "GET"),
        ("post-call-notify", "/health", "GET"),
        ("sms-inbound-webhook", "", "POST"),
        ("delivery-status-webhook", "", "POST"),
        ("whatsapp-webhook", "", "GET, POST"),
        ("delivery-retry", "/sweep", "POST"),
        ("openai-realtime-sip", "/openai-realtime", "POST"),
        ("openai-realtime-sip", "/openai-realtime/end", "POST"),
        ("openai-realtime-sip", "/openai-realtime/health", "GET"),
        ("openai-sip-webhook", "", "POST"),
    ];
    for (function, path, allowed) in places {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            if allowed.contains(method) {
                continue;
            }
            let url = format!("{}/{function}{path}", stage.edge().unwrap().url(function).unwrap());
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let answer = client().unwrap().request(method.clone(), url).send().await.unwrap();
            let allow = answer.headers().get("allow").and_then(|value| value.to_str().ok()).map(str::to_owned);
            assert_eq!((answer.status().as_u16(), allow.as_deref()), (405, Some(allowed)), "{method} {function}{path}");
            let body: Value = answer.json().await.unwrap();
            assert_eq!(body["status"], 405);
        }
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_whether_it_says_so_or_not() {
    let stage = stage().await;
    let service = format!("Bearer {}", stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap());
    let mtn = format!("Bearer {}", stage.secret("MTN_WEBHOOK_SECRET").unwrap());
    // Looked at only when the body has come.
    let token = format!("Bearer mcpt_{}", "0".repeat(64));
    let limits = [
        ("agent-tools", token.as_str(), 256 * 1024),
        ("post-call-notify", service.as_str(), 256 * 1024),
        ("sms-inbound-webhook", mtn.as_str(), 256 * 1024),
        ("delivery-status-webhook", mtn.as_str(), 256 * 1024),
        ("whatsapp-webhook", "", 3 * 1024 * 1024),
        ("openai-realtime-sip", service.as_str(), 256 * 1024),
        ("openai-sip-webhook", "", 256 * 1024),
    ];
    for (function, bearer, limit) in limits {
        for announced in [true, false] {
            for (size, too_large) in [(limit, false), (limit + 1, true), (limit + 5_000_000, true)] {
                let padded = format!("{{\"padding\":\"{}\"}}", "x".repeat(size - 14));
                assert_eq!(padded.len(), size);
                let body = if announced {
                    reqwest::Body::from(padded)
                } else {
                    // Of unknown length, in pieces.
                    let pieces: Vec<Vec<u8>> = padded.into_bytes().chunks(60_000).map(<[u8]>::to_vec).collect();
                    reqwest::Body::wrap(Pieces(pieces.into()))
                };
                let answer = stage
                    .post(function, "", &[("authorization", bearer), ("content-type", "application/json")], body)
                    .await;
                match answer {
                    Ok(answer) => {
                        assert_eq!(
                            answer.status == 413,
                            too_large,
                            "{function}, {size} bytes, announced: {announced}: {} {}",
                            answer.status,
                            answer.body
                        );
                        assert!(answer.status < 500);
                        if too_large {
                            assert_eq!(answer.body["status"], 413, "{}", answer.body);
                        }
                    }
                    // The connection may be closed on somebody who goes on sending what nobody will read.
                    Err(_) => assert!(
                        too_large && size > limit + 1,
                        "{function}, {size} bytes, announced: {announced}: no answer"
                    ),
                }
            }
        }
    }
}

/// A body of which nobody knows the length before its end.
struct Pieces(std::collections::VecDeque<Vec<u8>>);

impl hyper::body::Body for Pieces {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        let piece = self.0.pop_front();
        std::task::Poll::Ready(piece.map(|piece| Ok(hyper::body::Frame::data(bytes::Bytes::from(piece)))))
    }
}

#[tokio::test]
async fn a_path_that_is_none_is_said_to_be_none() {
    let stage = stage().await;
    let mtn = format!("Bearer {}", stage.secret("MTN_WEBHOOK_SECRET").unwrap());
    for (function, path) in [
        ("sms-inbound-webhook", "/nowhere"),
        ("delivery-status-webhook", "/nowhere"),
        ("whatsapp-webhook", "/nowhere"),
        ("delivery-retry", "/nowhere"),
        ("delivery-retry", ""),
        ("call-summary", ""),
        ("conversation", "/mtn"),
    ] {
        let answer = stage.post(function, path, &[("authorization", &mtn)], "{}").await.unwrap();
        assert_eq!((answer.status, &answer.body["status"]), (404, &json!(404)), "{function}{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_correlation_id_of_the_callers_is_taken_only_if_it_is_one() {
    let stage = stage().await;
    let key = format!("Bearer {}", stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap());
    let ask = async |id: &str| {
        let headers = [("authorization", key.as_str()), ("x-correlation-id", id)];
        stage.post("post-call-notify", "", &headers, json!({"callId": "nobody-knows-it"}).to_string()).await.unwrap()
    };
    let answer = ask("mine-1").await;
    assert_eq!((header(&answer, "x-correlation-id"), answer.correlation_id()), (Some("mine-1"), Some("mine-1")));
    for id in ["two words", &"x".repeat(65), "caf\u{e9}", " "] {
        let answer = ask(id).await;
        assert_eq!(answer.status, 202, "{id:?}: {}", answer.body);
        let given = header(&answer, "x-correlation-id").unwrap();
        assert!(given != id && uuid::Uuid::parse_str(given).is_ok(), "{id:?} became {given:?}");
    }
}
