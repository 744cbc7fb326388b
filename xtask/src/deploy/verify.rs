//! `deploy --verify`: does what is deployed work? Every check is one line; the first fault does not hide the next.
//!
//! Nothing is changed, unless `--phone` asks for one real answer.

mod http;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::known_urls;
use super::stage::Stage;
use crate::functions::Function;
use crate::places;
use crate::progress;
use crate::vars_file::Vars;
use http::{Answer, Http};

/// What the functions read and write; `migrate` makes them.
const TABLES: [&str; 12] = [
    "clients",
    "profiles",
    "profile_identities",
    "voice_calls",
    "transcripts",
    "call_summaries",
    "omnichannel_sessions",
    "conversation_threads",
    "message_delivery_log",
    "ai_agents",
    "provider_health",
    "rate_limits",
];
const DATABASE_FUNCTIONS: [&str; 10] = [
    "begin_call_notification",
    "finish_call_notification",
    "begin_sms_turn",
    "finish_sms_turn",
    "run_agent_tool",
    "claim_due_deliveries",
    "record_delivery_results",
    "record_delivery_events",
    "sweep",
    "get_session_context",
];
/// How long the answer to a real HELP may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Verifier<'a> {
    http: Http,
    settings: &'a Vars,
    failed: u32,
}

pub fn run(
    stage: Stage,
    functions: &[Function],
    settings: &Vars,
    base_url: Option<&str>,
    phone: Option<&str>,
) -> Result<()> {
    progress::headline(&format!("Verification of {}", stage.name()));
    let known = known_urls(stage)?;
    let mut verifier = Verifier { http: Http::new(), settings, failed: 0 };
    let mut inbound = None;
    for function in functions {
        let url = match base_url {
            Some(template) => template.replace("{function}", &function.name).trim_end_matches('/').to_owned(),
            None => known.get(&function.name).cloned().with_context(|| {
                format!(
                    "where {} answers is not known here: deploy from here first, or give --base-url \
                     'https://{{function}}.example.workers.dev'",
                    function.name
                )
            })?,
        };
        let health = verifier.health(&url);
        verifier.tell(&format!("{}: health, settings, dependencies", function.name), health);
        if function.name == "sms-inbound-webhook" {
            inbound = Some(url);
        }
    }
    let database = verifier.database();
    verifier.tell("database: tables, functions, migrations", database);
    if let Some(url) = inbound {
        let refused = verifier.forged_inbound(&url);
        verifier.tell("sms-inbound-webhook: a forged SMS is refused", refused);
        let accepted = verifier.signed_inbound(&url);
        verifier.tell("sms-inbound-webhook: a signed SMS is let in", accepted);
        if let Some(phone) = phone {
            let answered = verifier.help(&url, phone);
            verifier.tell(&format!("sms-inbound-webhook: HELP of {phone} is answered"), answered);
        }
    }
    match verifier.failed {
        0 => Ok(()),
        1 => bail!("one check failed: docs/operate.md goes from symptom to cause"),
        several => bail!("{several} checks failed: docs/operate.md goes from symptom to cause"),
    }
}

impl Verifier<'_> {
    fn tell(&mut self, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => progress::done(what),
            Err(error) => {
                self.failed += 1;
                progress::warn(&format!("{what}: {error:#}"));
            }
        }
    }

    /// From the environment first, so that no file needs to hold a key.
    fn setting(&self, name: &str) -> Result<String> {
        places::set(name).or_else(|| self.settings.get(name).cloned()).with_context(|| {
            format!("{name} is needed for this check: export it, or write it into the stage's .vars file")
        })
    }

    fn health(&self, url: &str) -> Result<()> {
        let answer = self.http.get(&format!("{url}/health"), &[])?;
        for warning in answer.body.get("warnings").and_then(Value::as_array).into_iter().flatten() {
            progress::note(&format!("note: {}", warning.as_str().unwrap_or_default()));
        }
        let missing = answer.body.get("missing_settings").and_then(Value::as_array);
        let missing: Vec<&str> = missing.into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(missing.is_empty(), "settings are missing: {}", missing.join(", "));
        ensure!(answer.status == 200, "GET {url}/health answered {answer}");
        Ok(())
    }

    /// PostgREST's own description names every table and function that the key may use.
    fn database(&self) -> Result<()> {
        let base = self.setting("SUPABASE_URL")?;
        let key = self.setting("SUPABASE_SERVICE_ROLE_KEY")?;
        let bearer = format!("Bearer {key}");
        let mut headers = vec![("apikey", key.as_str())];
        if key.starts_with("ey") {
            headers.push(("authorization", bearer.as_str()));
        }
        let rest = format!("{}/rest/v1", base.trim_end_matches('/'));
        let description = self.http.get(&format!("{rest}/"), &headers)?;
        ensure!(description.status == 200, "GET {rest}/ answered {description}");
        let paths = description.body.get("paths").and_then(Value::as_object).context("PostgREST described nothing")?;
        let absent: Vec<String> = TABLES
            .iter()
            .map(|table| format!("/{table}"))
            .chain(DATABASE_FUNCTIONS.iter().map(|name| format!("/rpc/{name}")))
            .filter(|path| !paths.contains_key(path))
            .collect();
        ensure!(
            absent.is_empty(),
            "missing: {}\n    to do: cargo xtask migrate --db-url URL, then `notify pgrst, 'reload schema'`",
            absent.join(", ")
        );
        let health = self.http.post(&format!("{rest}/rpc/health_check"), &headers, &json!({ "p": {} }))?;
        ensure!(health.status == 200, "rpc/health_check answered {health}");
        let there = health.body.get("migrations").and_then(Value::as_str).unwrap_or("none");
        let newest = newest_migration()?;
        ensure!(there == newest, "the database is at migration {there}, this project at {newest}: cargo xtask migrate");
        Ok(())
    }

    fn forged_inbound(&self, url: &str) -> Result<()> {
        let answer = self.send_inbound(url, "not-the-secret", &json!({ "from": "+250788000000" }))?;
        ensure!(answer.status == 401, "it should answer 401 and answered {answer}");
        Ok(())
    }

    /// The body names no recipient, so that it is refused for that after its signature was found right: nothing is sent.
    fn signed_inbound(&self, url: &str) -> Result<()> {
        let secret = self.setting("MTN_WEBHOOK_SECRET")?;
        let answer = self.send_inbound(url, &secret, &json!({ "from": "+250788000000" }))?;
        ensure!(
            matches!(answer.status, 400 | 422),
            "a signed body without a text should be refused by name (400 or 422) and was answered {answer}"
        );
        Ok(())
    }

    /// The whole path: an SMS in, a turn, an SMS out, read back from the delivery log.
    fn help(&self, url: &str, phone: &str) -> Result<()> {
        let secret = self.setting("MTN_WEBHOOK_SECRET")?;
        let id = format!("verify-{}", unix_seconds());
        let to = self.setting("MTN_SMS_SERVICE_CODE").or_else(|_| self.setting("MTN_SMS_SENDER_ID"));
        let to = to.unwrap_or_else(|_| "EasyMO".to_owned());
        let body = json!({ "from": phone, "to": to, "message": "HELP", "id": id });
        let answer = self.send_inbound(url, &secret, &body)?;
        ensure!(answer.status == 200, "it answered {answer}");
        let ids = answer.body.get("correlation_ids").and_then(Value::as_array);
        let correlation =
            ids.and_then(|ids| ids.first()).and_then(Value::as_str).context("it named no correlation id")?;

        let key = self.setting("SUPABASE_SERVICE_ROLE_KEY")?;
        let base = self.setting("SUPABASE_URL")?;
        let log = format!(
            "{}/rest/v1/message_delivery_log?correlation_id=eq.{correlation}&direction=eq.outbound&select=status,channel",
            base.trim_end_matches('/')
        );
        let bearer = format!("Bearer {key}");
        let mut headers = vec![("apikey", key.as_str())];
        if key.starts_with("ey") {
            headers.push(("authorization", bearer.as_str()));
        }
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let rows = self.http.get(&log, &headers)?;
            let statuses = rows.body.as_array().into_iter().flatten().filter_map(|row| row.get("status")?.as_str());
            match statuses.into_iter().find(|status| !matches!(*status, "queued" | "sending")) {
                Some("sent" | "delivered" | "read") => return Ok(()),
                Some(status) => bail!("the answer was written and is {status}: follow correlation id {correlation}"),
                None => {}
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        bail!("no answer within {} s: follow correlation id {correlation} through the logs", PATIENCE.as_secs())
    }

    /// Signed as carriers' gateways do: HMAC-SHA256 over `<timestamp>.<body>`.
    fn send_inbound(&self, url: &str, secret: &str, body: &Value) -> Result<Answer> {
        let timestamp = unix_seconds().to_string();
        let text = body.to_string();
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).context("MTN_WEBHOOK_SECRET is no HMAC key")?;
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(text.as_bytes());
        let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let signature = format!("sha256={hex}");
        let headers = [("x-timestamp", timestamp.as_str()), ("x-signature", signature.as_str())];
        self.http.post_text(url, &headers, &text)
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `20261121010000` of the last file.
fn newest_migration() -> Result<String> {
    let dir = places::project().join("migrations");
    let files = std::fs::read_dir(&dir).with_context(|| format!("could not list {}", dir.display()))?;
    let versions = files.flatten().filter_map(|file| {
        let name = file.file_name().to_string_lossy().into_owned();
        let (version, _) = name.strip_suffix(".sql")?.split_once('_')?;
        Some(version.to_owned())
    });
    versions.max().with_context(|| format!("{} has no migration", dir.display()))
}
