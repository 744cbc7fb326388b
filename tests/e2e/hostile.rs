//! Bodies that mean harm, to every endpoint: the answer is clear, the function lives, and what was accepted can be worked on.

use std::collections::BTreeMap;

use ihuza_sim::edge::client;
use ihuza_sim::keys::hmac_hex;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::mcp;
use crate::stage::{SOON, Stage};

/// Random bodies an endpoint: `IHUZA_E2E_HOSTILE`, else a sample; more of them in a soak.
fn mutants() -> usize {
    let set = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let soak = set("IHUZA_SOAK_MINUTES").map_or(300, |minutes: usize| 300 * minutes.clamp(1, 20));
    set("IHUZA_E2E_HOSTILE").unwrap_or(soak)
}

/// A doorway with a key that opens it.
struct Door {
    function: &'static str,
    method: &'static str,
    path: &'static str,
    /// Bodies that are taken, from which the others are made.
    sound: Vec<(&'static str, String)>,
}

fn doors(stage: &Stage) -> Vec<Door> {
    let phone = stage.stranger();
    let report = json!({"id": 88120453, "clientCorrelatorId": "7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11", "deliveryStatus": "DELIVERED",
                        "error": "000", "senderAddress": "EasyMO", "receiverAddress": "250788123456",
                        "completedDate": "2026-11-21T04:00:07"});
    let number = stage.secret("WHATSAPP_PHONE_NUMBER_ID").unwrap().to_owned();
    let status = json!({"object": "whatsapp_business_account", "entry": [{"id": "1042", "changes": [{"field": "messages", "value": {
        "messaging_product": "whatsapp", "metadata": {"display_phone_number": "250788000000", "phone_number_id": number},
        "statuses": [{"id": "wamid.HBgM0", "status": "delivered", "timestamp": "1795226400", "recipient_id": "250788123456",
                      "biz_opaque_callback_data": "7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11",
                      "errors": [{"code": 131026, "title": "Message undeliverable"}]}]}}]}]});
    let json = "application/json";
    let form = "application/x-www-form-urlencoded";
    let rpc = |id: u32, method: &str, params: Value| {
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
    };
    vec![
        Door {
            function: "agent-tools",
            method: "POST",
            path: "/mcp",
            sound: vec![
                (json, rpc(1, "tools/call", json!({"name": "session_update_status", "arguments": {"status": "follow_up", "note": "Muraho"}, "_meta": {"rw.ihuza/idempotencyKey": "k"}}))),
                (json, rpc(2, "tools/call", json!({"name": "session_get_context", "arguments": {"limit": 3}}))),
                (json, rpc(3, "initialize", json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}))),
                (json, rpc(4, "tools/list", json!({"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}}))),
                (json, json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}).to_string()),
            ],
        },
        Door {
            function: "post-call-notify",
            method: "POST",
            path: "",
            sound: vec![
                (json, json!({"callId": "9f4b1c9e-5d0d-4a51-8a34-0d8f6a1b2c3d", "profileId": "p-1", "phoneNumber": phone, "correlationId": "c-1"}).to_string()),
                (json, json!({"call_id": "test-id", "phone_number": phone}).to_string()),
            ],
        },
        Door { function: "post-call-notify", method: "GET", path: "/some-id", sound: vec![(json, String::new())] },
        Door {
            function: "sms-inbound-webhook",
            method: "POST",
            path: "",
            sound: vec![
                (json, json!({"from": phone, "to": "8080", "message": "Muraho, inzu iracyahari?", "messageId": "m-1", "dateTime": "2026-11-21T04:05:00"}).to_string()),
                (json, json!([{"senderAddress": "250788123456", "receiverAddress": "8080", "message": "Hello", "id": 7}]).to_string()),
                (json, json!({"inboundSMSMessageNotification": {"inboundSMSMessage": {"senderAddress": "tel:+250788123456",
                    "destinationAddress": "tel:8080", "message": "Hello", "messageId": "m-3", "dateTime": "2026-11-21T04:05:00Z"}}}).to_string()),
                (form, "from=%2B250788123456&to=8080&text=Ndashaka+kubona+inzu&id=m-4".to_owned()),
            ],
        },
        Door {
            function: "delivery-status-webhook",
            method: "POST",
            path: "",
            sound: vec![
                (json, report.to_string()),
                (json, json!([report, report]).to_string()),
                (form, "clientCorrelatorId=7c1e0b1e-6a0e-4d0b-9a55-1a2f0c9b7d11&deliveryStatus=UNDELIV&error=001".to_owned()),
            ],
        },
        Door { function: "whatsapp-webhook", method: "POST", path: "", sound: vec![(json, status.to_string())] },
        Door {
            function: "whatsapp-webhook",
            method: "GET",
            path: "?hub.mode=subscribe&hub.verify_token=%zz&hub.challenge=%00%ff",
            sound: vec![(json, String::new())],
        },
        Door {
            function: "openai-realtime-sip",
            method: "POST",
            path: "/openai-realtime",
            sound: vec![(json, json!({"callSid": "hostile-1", "from": phone, "to": "+250788000000", "locale": "rw-RW", "session": 1}).to_string())],
        },
        Door {
            function: "openai-realtime-sip",
            method: "POST",
            path: "/openai-realtime/events",
            sound: vec![
                (json, json!({"callSid": "hostile-2", "events": [{"seq": 1, "type": "transcript", "role": "user", "text": "Muraho", "at": "2026-11-21T04:05:00Z", "startMs": 5}]}).to_string()),
                (json, json!({"call_sid": "hostile-2", "events": [{"seq": 2, "type": "consent", "state": "given", "method": "dtmf"},
                    {"seq": 3, "type": "response.done", "usage": {"input_token_details": {"text_tokens": 5}}}]}).to_string()),
            ],
        },
        Door {
            function: "openai-realtime-sip",
            method: "POST",
            path: "/openai-realtime/tools",
            sound: vec![(json, json!({"callSid": "hostile-3", "name": "search_services", "arguments": {"query": "inzu", "limit": 3}, "idempotencyKey": "k-1"}).to_string())],
        },
        Door {
            function: "openai-realtime-sip",
            method: "POST",
            path: "/openai-realtime/end",
            sound: vec![(json, json!({"callSid": "hostile-4", "cause": "no_answer", "startedAt": "2026-11-21T04:05:00Z", "durationSeconds": 9, "lastSeq": 2}).to_string())],
        },
        Door {
            function: "openai-sip-webhook",
            method: "POST",
            path: "",
            sound: vec![(json, json!({"object": "event", "id": "evt_1", "type": "realtime.call.incoming", "created_at": 1795226400, "data": {
                "call_id": "rtc_hostile", "sip_media_security": "srtp",
                "sip_headers": [{"name": "From", "value": format!("\"A\" <sip:{phone}@ims.rw>;tag=9")}, {"name": "To", "value": "<sip:+250788000000@sip.api.openai.com>"}]}}).to_string())],
        },
        Door { function: "delivery-retry", method: "POST", path: "/sweep", sound: vec![(json, "{}".to_owned())] },
    ]
}

/// What people have broken parsers with.
fn nasty() -> Vec<Vec<u8>> {
    let texts = [
        "",
        " ",
        "\0",
        "null",
        "true",
        "0",
        "-0",
        "1e999",
        "\"\"",
        "[]",
        "{}",
        "[[]]",
        "[null]",
        "{\"\":\"\"}",
        "nul",
        "{",
        "[",
        "\"",
        "{\"a\"",
        "{]",
        "\u{feff}{}",
        "{}{}",
        "{} trailing",
        "<xml/>",
        "<!doctype html><html></html>",
        "undefined",
        "NaN",
        "{\"a\":01}",
        "{'a':1}",
        "{\"a\":1,}",
        "{\"callId\":null}",
        "{\"callId\":[]}",
        "{\"callId\":{}}",
        "{\"callId\":true}",
        "{\"callId\":0}",
        "{\"callId\":\"\"}",
        "{\"callId\":\" \"}",
        "{\"callId\":\"\\u0000\"}",
        "{\"callId\":\"a\\u0000b\",\"phoneNumber\":\"+250788123456\"}",
        "{\"callId\":\"\\ud800\"}",
        "{\"callId\":\"x\",\"phoneNumber\":{\"a\":1}}",
        "{\"callId\":\"x\",\"correlationId\":\"\\n\"}",
        "{\"callId\":\"x\",\"correlationId\":[1]}",
        "{\"callId\":\"'; drop table profiles; --\"}",
        "{\"callId\":\"../../etc/passwd\"}",
        "{\"callId\":\"\u{202e}\u{200f}\"}",
        "{\"callId\":1e400}",
        "{\"callId\":123456789012345678901234567890}",
        "{\"callId\":\"a\",\"callId\":\"b\",\"call_id\":\"c\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"\\u0000\\u0000\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"a\\u0000b\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"\\ud83d\"}",
        "{\"from\":\"+250788123456\",\"to\":\"\\u0000\",\"message\":\"hi\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"hi\",\"messageId\":\"\\u0000\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"hi\",\"id\":{\"a\":1}}",
        "{\"from\":\"\\u0000+250788123456\",\"to\":\"8080\",\"message\":\"hi\"}",
        "{\"from\":[\"+250788123456\"],\"to\":\"8080\",\"message\":\"hi\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":{\"body\":[]}}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"hi\",\"dateTime\":\"0000-00-00T99:99:99\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"hi\",\"dateTime\":\"9999999999999999\"}",
        "{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"hi\",\"dateTime\":\"+262142-12-31T23:59:59Z\"}",
        "{\"from\":\"\u{ff0b}250788123456\",\"to\":\"8080\",\"message\":\"hi\"}",
        "{\"from\":\"+٢٥٠٧٨٨١٢٣٤٥٦\",\"to\":\"8080\",\"message\":\"hi\"}",
        "{\"clientCorrelatorId\":\"\\u0000\",\"deliveryStatus\":\"DELIVERED\"}",
        "{\"clientCorrelatorId\":\"x\",\"deliveryStatus\":[]}",
        "{\"clientCorrelatorId\":{\"a\":1},\"deliveryStatus\":\"DELIVERED\"}",
        "{\"clientCorrelatorId\":\"x\",\"deliveryStatus\":\"\\u0000\"}",
        "{\"clientCorrelatorId\":\"x\",\"deliveryStatus\":\"DELIVERED\",\"completedDate\":\"-999999-01-01T00:00:00Z\"}",
        "{\"clientCorrelatorId\":\"x\",\"deliveryStatus\":\"DELIVERED\",\"error\":\"\\u0000\"}",
        "{\"object\":\"whatsapp_business_account\"}",
        "{\"object\":\"whatsapp_business_account\",\"entry\":{}}",
        "{\"object\":\"whatsapp_business_account\",\"entry\":[{\"changes\":[{\"value\":{\"statuses\":[null,1,[],{}]}}]}]}",
        "from=%",
        "from=%z",
        "from=%00&to=%00&text=%00",
        "=&=&=",
        "&&&&",
        "from=%ff%fe&text=%c0%80",
    ];
    let mut all: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    all.push(vec![0xff, 0xfe, 0x00, 0xd8]);
    all.push(b"{\"callId\":\"\xc3\x28\"}".to_vec());
    all.push(b"{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"\xf0\x9f\x98\"}".to_vec());
    all.push("[".repeat(100_000).into_bytes());
    all.push("{\"a\":".repeat(40_000).into_bytes());
    all.push(format!("{{\"callId\":\"{}\"}}", "x".repeat(200_000)).into_bytes());
    all.push(
        format!("{{\"from\":\"+250788123456\",\"to\":\"8080\",\"message\":\"{}\"}}", "é".repeat(100_000)).into_bytes(),
    );
    all.push(format!("{{\"from\":\"{}\",\"to\":\"8080\",\"message\":\"hi\"}}", "9".repeat(100_000)).into_bytes());
    all.push(format!("[{}]", "{},".repeat(50_000).trim_end_matches(',')).into_bytes());
    all.push(
        json!(vec![json!({"from": "+250788123456", "to": "8080", "message": "x"}); 1001]).to_string().into_bytes(),
    );
    all
}

/// xorshift64*: enough dice for bodies, and the same from the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let rolled = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(rolled).unwrap_or(0) % below.max(1)
    }
}

/// A sound body after one to four changes for the worse.
fn mutant(dice: &mut Dice, sound: &str) -> Vec<u8> {
    const PIECES: [&[u8]; 24] = [
        b"\\u0000",
        b"\0",
        b"null",
        b"[]",
        b"{}",
        b"\"",
        b"\\",
        b",",
        b":",
        b"1e999",
        b"-1",
        b"\xff",
        b"\xc0\x80",
        b"\\ud800",
        b"\xe2\x80\xae",
        b"+",
        b"%",
        b"&",
        b"=",
        b"  ",
        b"\n",
        b"true",
        b"99999999999999999999",
        b"\xf0\x9f\x98\x80",
    ];
    let mut body = sound.as_bytes().to_vec();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(body.len() + 1);
        let to = (at + dice.roll(24)).min(body.len());
        match dice.roll(7) {
            0 => drop(body.drain(at..to)),
            1 => body.truncate(at),
            2 if at < body.len() => body[at] ^= 1 << dice.roll(8),
            3 => {
                let copy = body[at..to].to_vec();
                let there = dice.roll(body.len() + 1);
                body.splice(there..there, copy);
            }
            4 => drop(body.splice(at..to, PIECES[dice.roll(PIECES.len())].iter().copied())),
            _ => drop(body.splice(at..at, PIECES[dice.roll(PIECES.len())].iter().copied())),
        }
    }
    body
}

struct Answer {
    status: u16,
    content_type: String,
    text: String,
}

/// Knocks with the right key and this body.
async fn knock(
    stage: &Stage,
    http: &reqwest::Client,
    token: &str,
    door: &Door,
    content_type: &str,
    body: &[u8],
) -> Answer {
    let base = stage.edge().unwrap().url(door.function).unwrap();
    let url = format!("{base}/{}{}", door.function, door.path);
    let method = reqwest::Method::from_bytes(door.method.as_bytes()).unwrap();
    let mut request = http.request(method, url).header("content-type", content_type);
    request = match door.function {
        "agent-tools" => request.bearer_auth(token),
        "post-call-notify" | "delivery-retry" | "openai-realtime-sip" => {
            request.bearer_auth(stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap())
        }
        "whatsapp-webhook" => {
            let signature = hmac_hex(stage.secret("WHATSAPP_APP_SECRET").unwrap(), &[body]);
            request.header("x-hub-signature-256", format!("sha256={signature}"))
        }
        "openai-sip-webhook" => {
            let secret = stage.secret("OPENAI_WEBHOOK_SECRET").unwrap();
            let headers =
                ihuza_sim::openai::sip::signed(secret, "wh_hostile", chrono::Utc::now().timestamp(), body).unwrap();
            let ours = headers.into_iter().filter(|(name, _)| name.starts_with("webhook-"));
            ours.fold(request, |request, (name, value)| request.header(name, value))
        }
        _ => request.bearer_auth(stage.secret("MTN_WEBHOOK_SECRET").unwrap()),
    };
    if door.method != "GET" {
        request = request.body(body.to_vec());
    }
    let answer = request.send().await.unwrap();
    let header =
        answer.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    Answer { status: answer.status().as_u16(), content_type: header, text: answer.text().await.unwrap() }
}

/// What is wrong with an answer.
fn fault(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    if answer.status >= 500 || answer.text.to_uppercase().contains("INTERNAL SERVER ERROR") {
        return Some("it is the function's fault".to_owned());
    }
    // Of JSON-RPC: a notification is taken without a word, and an error is one of its own.
    if answer.status == 202 && answer.text.is_empty() || body["jsonrpc"] == "2.0" && body["error"]["code"].is_i64() {
        return None;
    }
    if answer.status < 300 {
        return (!body.is_object()).then(|| "a success without an object".to_owned());
    }
    if answer.content_type != "application/problem+json" {
        return Some(format!("a problem as {}", answer.content_type));
    }
    for field in ["type", "title"] {
        if body[field].as_str().is_none_or(str::is_empty) {
            return Some(format!("a problem without {field}"));
        }
    }
    if body["status"] != answer.status || body["correlation_id"].as_str().is_none_or(str::is_empty) {
        return Some("a problem whose status or correlation_id is wrong".to_owned());
    }
    None
}

#[tokio::test]
async fn hostile_bodies_get_a_clear_answer_and_do_no_harm() {
    let stage = Stage::alone("hostile", WorldConfig::default).await;
    let seed = std::env::var("IHUZA_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_121_u64);
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let http = reqwest::Client::new();
    let session = mcp::conversation(&stage, "I look for a house in Remera").await;
    let token = mcp::token(&stage, &session, &["session:read", "session:write"]).await;
    let mut wrong = Vec::new();
    let mut statuses: BTreeMap<(&str, u16), usize> = BTreeMap::new();
    let mut knocked = 0;
    for door in doors(&stage) {
        let mut bodies: Vec<(String, Vec<u8>)> = Vec::new();
        for body in nasty() {
            bodies.push(("application/json".to_owned(), body.clone()));
            if body.len() < 1000 {
                let kinds = [
                    "application/x-www-form-urlencoded",
                    "text/plain",
                    "multipart/form-data",
                    "application/json; charset=utf-16",
                    "x",
                ];
                bodies.push((kinds[dice.roll(kinds.len())].to_owned(), body));
            }
        }
        if door.method != "GET" {
            for _ in 0..mutants() {
                let (kind, sound) = &door.sound[dice.roll(door.sound.len())];
                bodies.push(((*kind).to_owned(), mutant(&mut dice, sound)));
            }
        } else {
            bodies.truncate(1);
        }
        for (content_type, body) in bodies {
            let answer = knock(&stage, &http, &token, &door, &content_type, &body).await;
            knocked += 1;
            *statuses.entry((door.function, answer.status)).or_default() += 1;
            if let Some(fault) = fault(&answer) {
                let shown: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                wrong.push(format!(
                    "{} {} with {content_type} {shown:?}: {fault}: {} {}",
                    door.method, door.function, answer.status, answer.text
                ));
            }
        }
        let health = format!("{}/{}/health", stage.edge().unwrap().url(door.function).unwrap(), door.function);
        assert_eq!(
            client().unwrap().get(health).send().await.unwrap().status(),
            200,
            "{} after its bodies",
            door.function
        );
    }
    println!("counted {knocked} hostile bodies");
    assert!(
        wrong.is_empty(),
        "seed {seed}: {} of {knocked}, statuses {statuses:?}\n{}",
        wrong.len(),
        wrong.iter().take(30).cloned().collect::<Vec<_>>().join("\n")
    );
    // Both kinds of answer were met at each door with a body.
    for function in
        ["agent-tools", "post-call-notify", "sms-inbound-webhook", "delivery-status-webhook", "whatsapp-webhook"]
    {
        let met = |range: std::ops::Range<u16>| {
            statuses.keys().any(|(name, status)| *name == function && range.contains(status))
        };
        assert!(met(200..300) && met(400..500), "{function}: {statuses:?}");
    }

    // What was accepted is worked on: the database refuses none of it, and a call that is sound gets through behind it.
    let phone = stage.stranger();
    let answer = stage.says(&phone, "I look for a house in Remera").await;
    assert!(answer.contains("Remera"), "{answer}");
    let idle = async || {
        let logs = stage.logs()?;
        let count = |event: &str| logs.iter().filter(|line| line.text.contains(event)).count();
        let answered = count("SMS_TURN_DONE") + count("SMS_INBOUND_SKIPPED");
        Ok((answered >= count("SMS_INBOUND_RECEIVED")).then_some(()))
    };
    stage.wait_for("every SMS that was accepted to be worked on", SOON, idle).await.unwrap();
    let refused: Vec<String> = stage
        .logs()
        .unwrap()
        .into_iter()
        .map(|line| line.text)
        .filter(|text| text.contains("refused the call") || text.contains("INTERNAL_ERROR"))
        .collect();
    assert!(
        refused.is_empty(),
        "seed {seed}: {} times, such as\n{}",
        refused.len(),
        refused.iter().take(5).cloned().collect::<Vec<_>>().join("\n")
    );
}
