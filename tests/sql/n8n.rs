//! The workflows for n8n: whole, without a secret, and calling only what the key of writers may call, by the names that the functions have.
//! Their expressions are run as n8n runs them, in Node.js.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use ihuza_sim::postgres;
use serde_json::{Value, json};

use crate::support::{Db, refusal, root, text};

fn workflows() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(root().join("deploy/n8n")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    assert_eq!(files.len(), 3);
    let read = |path: &PathBuf| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    files.iter().map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), read(path))).collect()
}

fn nodes(workflow: &Value) -> BTreeMap<&str, &Value> {
    workflow["nodes"].as_array().unwrap().iter().map(|node| (node["name"].as_str().unwrap(), node)).collect()
}

/// What a node's expression comes to; `of` has the items of the nodes by name, `input` that of the node before.
fn evaluated(expression: &str, input: &Value, of: &Value, env: &Value) -> Value {
    let inner = expression.trim().strip_prefix("={{").and_then(|rest| rest.strip_suffix("}}")).unwrap();
    let script = "const [expression, $json, of, $env] = process.argv.slice(1).map((a, n) => (n ? JSON.parse(a) : a));
                  const $ = (name) => ({ item: { json: of[name] } });
                  console.log(JSON.stringify(eval('(' + expression + ')')));";
    let run =
        Command::new("node").args(["-e", script, inner]).args([input, of, env].map(Value::to_string)).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).unwrap()
}

fn body(node: &Value, input: &Value, of: &Value) -> Value {
    let text = evaluated(node["parameters"]["jsonBody"].as_str().unwrap(), input, of, &json!({}));
    serde_json::from_str(text.as_str().unwrap()).unwrap()
}

#[test]
fn every_workflow_is_whole_and_holds_no_secret() {
    for (name, workflow) in workflows() {
        let nodes = nodes(&workflow);
        let all = workflow["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), all.len(), "{name}: two nodes of one name");
        let ids: BTreeSet<&str> = all.iter().map(|node| node["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), all.len(), "{name}: two nodes of one id");
        // From the trigger every node is reached, but notes.
        let mut reached = BTreeSet::new();
        for (from, ways) in workflow["connections"].as_object().unwrap() {
            assert!(nodes.contains_key(from.as_str()), "{name}: {from}");
            for to in ways["main"].as_array().unwrap().iter().flat_map(|way| way.as_array().unwrap()) {
                let to = to["node"].as_str().unwrap();
                assert!(nodes.contains_key(to), "{name}: {to}");
                reached.insert(to);
            }
        }
        for (node, is) in &nodes {
            let kind = is["type"].as_str().unwrap();
            let starts = kind.ends_with("Trigger") || kind.ends_with(".webhook") || kind.ends_with(".stickyNote");
            assert_eq!(reached.contains(node), !starts, "{name}: {node}");
            // A credential is named, never carried.
            for credential in is["credentials"].as_object().into_iter().flat_map(|all| all.values()) {
                assert_eq!(credential.as_object().unwrap().keys().collect::<Vec<_>>(), ["name"], "{name}: {node}");
            }
        }
        let whole = workflow.to_string();
        assert!(whole.contains("docs/n8n.md"));
        let words: Vec<&str> = whole.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let secret = |word: &&&str| {
            let hex = word.len() >= 24 && word.chars().all(|c| c.is_ascii_hexdigit());
            hex || (word.len() >= 30 && word.chars().any(|c| c.is_ascii_digit()))
                || ["eyJ", "sb_secret", "SK", "AC"].iter().any(|start| word.starts_with(start) && word.len() > 20)
        };
        assert_eq!(words.iter().filter(secret).collect::<Vec<_>>(), Vec::<&&str>::new(), "{name}");
    }
}

#[tokio::test]
async fn what_a_workflow_calls_is_there_and_does_what_it_is_for() {
    let db = Db::new().await;
    let workflows = workflows();
    let deployment = db.value("select to_jsonb(id) from public.agent_deployments where is_default").await;
    let client = db.value("select to_jsonb(private.default_client_id())").await;
    let key = postgres::connect(db.url()).await.unwrap();
    let claims = json!({"role": "sms_writer", "client_id": client});
    key.batch_execute(&format!("set role sms_writer; select set_config('request.jwt.claims', '{claims}', false)"))
        .await
        .unwrap();
    // As PostgREST passes a body on: by the names of the arguments, each in its type. An argument that is not there is an error.
    let call = async |node: &Value, p: Value| {
        let url = node["parameters"]["url"].as_str().unwrap();
        let name = url.strip_prefix("={{ $env.SUPABASE_URL }}/rest/v1/rpc/").unwrap();
        let types = "select coalesce(jsonb_object_agg(a.name, format_type(a.type, null)), '{}')
                       from pg_proc p, unnest(p.proargnames, p.proargtypes::oid[]) a (name, type) where p.oid = ('public.' || $1)::regproc";
        let types: Value = db.admin.query_one(types, &[&name]).await.unwrap().get(0);
        let arguments = p.as_object().unwrap().iter().map(|(argument, _)| {
            let kind = types[argument].as_str().unwrap_or_else(|| panic!("{name} has no argument {argument}"));
            format!("{argument} => ($1::jsonb ->> '{argument}')::{kind}")
        });
        let sql = format!("select public.{name}({})", arguments.collect::<Vec<_>>().join(", "));
        key.query_one(&sql, &[&p]).await.map(|row| row.get::<_, Value>(0)).map_err(|error| refusal(&error))
    };

    let send = nodes(&workflows["send-sms"]);
    assert_eq!(send["Send"]["retryOnFail"], false, "what may have been sent is not sent again");
    let asked = json!({"to": "+250788123456", "text": "Muraho", "deployment_id": deployment, "call_id": "", "prospect_id": null, "sequence_id": null});
    let items = |n: u32| json!({"Message": asked, "Row id": {"row_id": format!("11111111-1111-4111-8111-{n:012}")}});
    let taken =
        json!({"statusCode": 201, "body": {"sid": "SM1", "status": "queued", "num_segments": "1", "error_code": null}});
    let refused = json!({"statusCode": 400, "body": {"code": 21610, "message": "Attempt to send to unsubscribed recipient", "status": 400}});
    let down = json!({"statusCode": 503, "body": "upstream"});
    let silent = json!({"error": {"message": "timeout"}});
    for (n, answer, status, reason) in [
        (1, &taken, "pending", Value::Null),
        (2, &refused, "failed", json!("21610")),
        (3, &down, "pending", json!("HTTP 503")),
        (4, &silent, "pending", json!("no answer")),
    ] {
        for created in [true, false] {
            let p = body(send["Log"], answer, &items(n));
            let said = call(send["Log"], p).await.unwrap();
            assert_eq!((&said["created"], &said["status"]), (&json!(created), &json!(status)), "{answer}");
            let found = db
                .value(&format!("select failure_reason from public.agent_sms where id = '{}'", text(&said, "/id")))
                .await;
            assert_eq!(found, reason);
        }
    }
    assert_eq!(db.count("select count(*) from public.agent_sms").await, 4);

    let update = nodes(&workflows["twilio-status"]);
    for (status, code, expected) in
        [("delivered", json!(""), "delivered"), ("undelivered", json!("30003"), "delivered")]
    {
        let callback =
            json!({"headers": {}, "body": {"MessageSid": "SM1", "MessageStatus": status, "ErrorCode": code}});
        let said = call(update["Update"], body(update["Update"], &callback, &json!({}))).await.unwrap();
        assert_eq!(said["status"], expected);
    }
    let replies = nodes(&workflows["twilio-replies"]);
    let inbound = json!({"body": {"From": "+250788123456", "Body": "Yego"}});
    let said = call(replies["Answered"], body(replies["Answered"], &inbound, &json!({}))).await.unwrap();
    assert!(said["id"].is_string(), "{said}");
    assert_eq!(db.count("select count(*) from public.agent_sms where replied_at is not null").await, 1);
}

#[test]
fn a_signature_of_twilio_is_checked_over_address_and_parameters() {
    let vectors = std::fs::read_to_string(root().join("tests/vectors/signatures.json")).unwrap();
    let vectors: Value = serde_json::from_str(&vectors).unwrap();
    let twilio = &vectors["twilio"];
    let parameters = twilio["form"].as_str().unwrap().split('&').map(|pair| pair.split_once('=').unwrap());
    let parameters: BTreeMap<&str, String> =
        parameters.map(|(name, value)| (name, value.replace("%2B", "+"))).collect();
    for (workflow, address) in
        [("twilio-status", "TWILIO_STATUS_CALLBACK_URL"), ("twilio-replies", "TWILIO_INBOUND_URL")]
    {
        let workflows = workflows();
        let nodes = nodes(&workflows[workflow]);
        let signature = &nodes["Signature"]["parameters"];
        let input = json!({"body": parameters});
        let env = json!({address: twilio["url"]});
        let signed = evaluated(signature["value"].as_str().unwrap(), &input, &json!({}), &env);
        let script = "const [text, key] = process.argv.slice(1); console.log(require('crypto').createHmac(process.argv[3], key).update(text).digest(process.argv[4]))";
        let run = Command::new("node")
            .args(["-e", script, signed.as_str().unwrap(), twilio["token"].as_str().unwrap()])
            .args([signature["type"].as_str().unwrap(), signature["encoding"].as_str().unwrap()])
            .output()
            .unwrap();
        let found = String::from_utf8(run.stdout).unwrap();
        assert_eq!(found.trim(), twilio["signature"].as_str().unwrap());
        let condition = &nodes["Is it Twilio"]["parameters"]["conditions"]["conditions"][0];
        let headers = json!({"headers": {"x-twilio-signature": found.trim()}, "expected": found.trim()});
        let side = |name: &str| evaluated(condition[name].as_str().unwrap(), &headers, &json!({}), &json!({}));
        assert_eq!(side("leftValue"), side("rightValue"));
    }
}
