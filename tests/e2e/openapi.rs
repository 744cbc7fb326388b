//! The examples of `docs/openapi.json` are requests: each is sent, in the order of the file, and answered as the file says.
//! The conventions are in `docs/api.md`, "The examples are tests".

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use chrono::Utc;
use ihuza_sim::edge::client;
use ihuza_sim::keys::hmac_hex;
use ihuza_sim::openai::sip::signed;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::mcp;
use crate::stage::Stage;

/// An object in the order of the file.
struct Ordered<T>(Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[derive(serde::Deserialize)]
struct Document {
    paths: Ordered<Operations>,
}

#[derive(serde::Deserialize)]
struct Operations {
    get: Option<Operation>,
    post: Option<Operation>,
}

#[derive(serde::Deserialize)]
struct Operation {
    #[serde(rename = "requestBody")]
    body: Option<Body>,
    #[serde(rename = "x-ihuza-requests", default)]
    requests: Ordered<Example>,
    responses: BTreeMap<String, Value>,
}

#[derive(serde::Deserialize)]
struct Body {
    content: Ordered<Media>,
}

#[derive(serde::Deserialize)]
struct Media {
    #[serde(default)]
    examples: Ordered<Example>,
}

#[derive(serde::Deserialize)]
struct Example {
    #[serde(default)]
    value: Value,
    #[serde(rename = "x-ihuza-expect-status")]
    status: u16,
    #[serde(rename = "x-ihuza-headers", default)]
    headers: BTreeMap<String, String>,
    #[serde(rename = "x-ihuza-path")]
    path: Option<String>,
    #[serde(rename = "x-ihuza-within-seconds", default)]
    within_s: u64,
}

/// One request of the file.
struct Request {
    name: String,
    method: &'static str,
    path: String,
    content_type: Option<String>,
    body: String,
    example: Example,
    documented: Vec<String>,
}

fn requests(document: Document) -> Vec<Request> {
    let mut all = Vec::new();
    for (path, operations) in document.paths.0 {
        for (method, operation) in [("GET", operations.get), ("POST", operations.post)] {
            let Some(operation) = operation else { continue };
            let documented: Vec<String> = operation.responses.keys().cloned().collect();
            let media = operation.body.map(|body| body.content.0).unwrap_or_default();
            let with_body = media
                .into_iter()
                .flat_map(|(kind, media)| media.examples.0.into_iter().map(move |entry| (Some(kind.clone()), entry)));
            let bare = operation.requests.0.into_iter().map(|entry| (None, entry));
            for (content_type, (name, example)) in with_body.chain(bare) {
                let body = match &example.value {
                    Value::Null => String::new(),
                    Value::String(text) => text.clone(),
                    value => value.to_string(),
                };
                all.push(Request {
                    name: format!("{method} {path} {name}"),
                    method,
                    path: example.path.clone().unwrap_or_else(|| path.clone()),
                    content_type,
                    body,
                    example,
                    documented: documented.clone(),
                });
            }
        }
    }
    all
}

/// The parameters of a form, read by another reader than the one under test.
fn parameters(body: &str) -> Vec<(String, String)> {
    let url = reqwest::Url::parse(&format!("http://form/?{body}")).unwrap();
    url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

#[tokio::test]
async fn every_example_of_the_openapi_file_is_answered_as_it_says() {
    let stage = Stage::alone("openapi", WorldConfig::default).await;
    let call = stage.seed_call(&CallSeed::new("+250788123456")).await.unwrap();
    let session = mcp::conversation(&stage, "I look for a house in Remera").await;
    let token = mcp::token(&stage, &session, &["session:read", "services:read"]).await;
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json")).unwrap();
    let requests = requests(serde_json::from_str(&file).unwrap());
    assert!(requests.len() > 50, "{}", requests.len());
    let mut wrong = Vec::new();
    for request in &requests {
        let fill = |text: &str| {
            text.replace("{{SERVICE_KEY}}", stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap())
                .replace("{{MTN_WEBHOOK_SECRET}}", stage.secret("MTN_WEBHOOK_SECRET").unwrap())
                .replace("{{WHATSAPP_VERIFY_TOKEN}}", stage.secret("WHATSAPP_VERIFY_TOKEN").unwrap())
                .replace("{{WHATSAPP_PHONE_NUMBER_ID}}", stage.secret("WHATSAPP_PHONE_NUMBER_ID").unwrap())
                .replace("{{AFRICASTALKING_WEBHOOK_SECRET}}", stage.secret("AFRICASTALKING_WEBHOOK_SECRET").unwrap())
                .replace("{{MCP_TOKEN}}", &token)
                .replace("{{CALL_ID}}", &call.id.to_string())
        };
        let (path, body) = (fill(&request.path), fill(&request.body));
        let function = path.trim_start_matches("/functions/v1").trim_start_matches('/');
        let function = function.split(['/', '?']).next().unwrap();
        let url = format!("{}{path}", stage.edge().unwrap().url(function).unwrap());
        let deadline = std::time::Instant::now() + Duration::from_secs(request.example.within_s);
        let status = loop {
            let timestamp = Utc::now().timestamp().to_string();
            let mtn =
                hmac_hex(stage.secret("MTN_WEBHOOK_SECRET").unwrap(), &[timestamp.as_bytes(), b".", body.as_bytes()]);
            let meta = hmac_hex(stage.secret("WHATSAPP_APP_SECRET").unwrap(), &[body.as_bytes()]);
            let (query, form) = (path.split_once('?').map_or("", |(_, query)| query), parameters(&body));
            let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let twilio = stage.twilio().signature(query, &form);
            let openai = stage.secret("OPENAI_WEBHOOK_SECRET").unwrap();
            let openai = signed(openai, "wh_example", timestamp.parse().unwrap(), body.as_bytes()).unwrap();
            let openai = openai.into_iter().find(|(name, _)| *name == "webhook-signature").unwrap().1;
            let method = reqwest::Method::from_bytes(request.method.as_bytes()).unwrap();
            let mut sent = client().unwrap().request(method, &url).body(body.clone());
            if let Some(content_type) = &request.content_type {
                sent = sent.header("content-type", content_type);
            }
            for (name, value) in &request.example.headers {
                let value = fill(value)
                    .replace("{{TIMESTAMP}}", &timestamp)
                    .replace("{{SIGNATURE:mtn}}", &format!("sha256={mtn}"))
                    .replace("{{SIGNATURE:meta}}", &format!("sha256={meta}"))
                    .replace("{{SIGNATURE:twilio}}", &twilio)
                    .replace("{{SIGNATURE:openai}}", &openai);
                assert!(!value.contains("{{"), "{}: {value}", request.name);
                sent = sent.header(name, value);
            }
            let status = sent.send().await.unwrap().status().as_u16();
            if status == request.example.status || std::time::Instant::now() >= deadline {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(!path.contains("{{") && !body.contains("{{"), "{}: a placeholder is left", request.name);
        if status != request.example.status {
            wrong.push(format!("{}: {status} instead of {}", request.name, request.example.status));
        }
        if !request.documented.contains(&status.to_string()) {
            wrong.push(format!("{}: the file does not tell of {status}", request.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} examples:\n{}", wrong.len(), requests.len(), wrong.join("\n"));
    println!("counted {} examples of the API", requests.len());
}
