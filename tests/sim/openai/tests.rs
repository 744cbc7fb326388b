//! OpenAI refuses what OpenAI refuses, and what we promised not to send.

use super::*;
use crate::edge::client;

struct Setup {
    openai: OpenAi,
}

impl Setup {
    async fn new() -> Self {
        let openai = OpenAi::start(0, "sk-test".to_owned(), Duration::ZERO).await.unwrap();
        Self { openai }
    }

    async fn ask(&self, body: &Value) -> (u16, Value) {
        let request = client().unwrap().post(format!("{}/responses", self.openai.base_url()));
        let answer = request.bearer_auth("sk-test").json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn good() -> Value {
    json!({"model": "gpt-6-luna", "store": false, "max_output_tokens": 600, "reasoning": {"effort": "low"},
           "instructions": "You answer by SMS.", "input": [{"role": "user", "content": "Hello"}]})
}

fn summary() -> Value {
    let mut body = good();
    body["text"] = json!({"format": {"type": "json_schema", "name": "call_summary", "strict": true, "schema": {
        "type": "object", "additionalProperties": false, "required": ["headline", "points"],
        "properties": {"headline": {"type": "string"}, "points": {"type": "array", "items": {"type": "string"}, "maxItems": 1}}}}});
    body["input"] = json!("user: a house in Remera, 2 bedrooms, 300k");
    body
}

fn with(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    body.pointer_mut(parent).unwrap()[key] = value;
    body
}

fn words(answer: &Value) -> String {
    let output = answer["output"].as_array().unwrap();
    let messages = output.iter().filter(|item| item["type"] == "message");
    messages.map(|item| item.pointer("/content/0/text").unwrap().as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_answer_has_the_shape_of_the_real_one() {
    let setup = Setup::new().await;
    let (status, answer) = setup.ask(&good()).await;
    assert_eq!(
        (status, &answer["status"], &answer["output"][0]["type"]),
        (200, &json!("completed"), &json!("reasoning"))
    );
    assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 0);
    assert!(answer.get("output_text").is_none(), "that field exists in clients only");
    assert!(words(&answer).contains("EasyMO"));
}

#[tokio::test]
async fn a_structured_answer_fits_its_schema() {
    let setup = Setup::new().await;
    let (_, answer) = setup.ask(&summary()).await;
    let made: Value = serde_json::from_str(&words(&answer)).unwrap();
    assert_eq!(made, json!({"headline": "Looking for: house in Remera", "points": ["Budget: 300k RWF"]}));
}

#[tokio::test]
async fn requests_that_should_never_be_sent_are_refused() {
    let setup = Setup::new().await;
    let check = async |body: Value, status: u16, code: &str| {
        let (got, answer) = setup.ask(&body).await;
        assert_eq!((got, answer["error"]["code"].as_str()), (status, Some(code)), "{body}");
    };
    check(with(good(), "/model", json!("gpt-4")), 404, "model_not_found").await;
    check(with(good(), "/store", json!(true)), 400, "store_not_false").await;
    check(with(good(), "/temperature", json!(0.2)), 400, "unknown_parameter").await;
    check(with(good(), "/prompt", json!({})), 400, "unknown_parameter").await;
    check(with(good(), "/max_output_tokens", json!(8)), 400, "integer_below_min_value").await;
    check(with(good(), "/reasoning/effort", json!("huge")), 400, "invalid_value").await;
    check(with(good(), "/input", json!([])), 400, "missing_required_parameter").await;
    check(with(good(), "/input", json!([{"role": "tool", "content": "x"}])), 400, "invalid_value").await;
    let answered = json!([{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]);
    check(with(good(), "/input", answered), 400, "invalid_value").await;
    let orphan = json!([{"type": "function_call_output", "call_id": "c", "output": "x"}]);
    check(with(good(), "/input", orphan), 400, "invalid_value").await;
    check(with(good(), "/safety_identifier", json!("x".repeat(129))), 400, "string_above_max_length").await;
    let schema = "/text/format/schema";
    check(with(summary(), &format!("{schema}/required"), json!(["headline"])), 400, "invalid_json_schema").await;
    check(with(summary(), &format!("{schema}/additionalProperties"), json!(true)), 400, "invalid_json_schema").await;
    check(with(summary(), "/text/format/strict", json!(false)), 400, "strict_not_true").await;
    check(with(summary(), "/text/format/name", json!("call summary")), 400, "invalid_value").await;
    let tool = json!([{"type": "function", "name": "f", "strict": true, "parameters": {"type": "object", "required": [],
        "additionalProperties": false, "properties": {"status": {"type": "string"}}}}]);
    check(with(good(), "/tools", tool), 400, "invalid_json_schema").await;
    let unknown = client().unwrap().post(format!("{}/responses", setup.openai.base_url()));
    assert_eq!(unknown.bearer_auth("sk-other").json(&good()).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn scripts_are_said_in_order_and_to_whom_they_are_for() {
    let setup = Setup::new().await;
    setup.openai.next_for("call_summary", Script::Refusal("No.".to_owned()));
    setup.openai.next(Script::Text("First.".to_owned()));
    setup.openai.next(Script::Incomplete("{\"head".to_owned()));
    setup.openai.next(Script::Failed);
    assert_eq!(words(&setup.ask(&good()).await.1), "First.");
    let (_, refused) = setup.ask(&summary()).await;
    assert_eq!(refused.pointer("/output/1/content/0/type"), Some(&json!("refusal")));
    let (_, incomplete) = setup.ask(&summary()).await;
    assert_eq!(
        (&incomplete["status"], &incomplete["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(setup.ask(&good()).await.1["status"], "failed");
    assert_eq!(setup.openai.questions().len(), 4);
}

#[tokio::test]
async fn a_fault_may_name_the_schema() {
    let setup = Setup::new().await;
    setup.openai.fail_with(Fault::Status429RetryAfter).on("call_summary");
    assert_eq!(setup.ask(&good()).await.0, 200);
    let (status, answer) = setup.ask(&summary()).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("rate_limit_exceeded")));
}

#[tokio::test]
async fn a_repeated_prefix_is_counted_as_cached() {
    let setup = Setup::new().await;
    let body = with(good(), "/prompt_cache_key", json!("sms-agent"));
    let cached =
        |answer: &Value| answer.pointer("/usage/input_tokens_details/cached_tokens").unwrap().as_u64().unwrap();
    assert_eq!(cached(&setup.ask(&body).await.1), 0);
    assert!(cached(&setup.ask(&body).await.1) > 0);
}
