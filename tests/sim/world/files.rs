//! The ready file and the report: what the world tells others.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use super::{Provider, World};
use crate::edge::Edge;
use crate::error::{Context, Result};

/// Of the ready file; a change that readers must know of raises it.
const READY_FILE_VERSION: u32 = 1;

/// Whose variable it is.
const PREFIXES: [(&str, Provider); 3] =
    [("MTN_", Provider::Mtn), ("WHATSAPP_", Provider::WhatsApp), ("OPENAI_", Provider::OpenAi)];

/// Of the report.
const REPORT_VERSION: u32 = 1;

/// The row lists of the report, and the table that each is read from.
const REPORTED: [(&str, &str); 18] = [
    ("profiles", "profiles"),
    ("voice_calls", "voice_calls"),
    ("openai_sessions", "openai_sessions"),
    ("transcripts", "transcripts"),
    ("voice_events", "voice_events"),
    ("tool_calls", "mcp_tool_calls"),
    ("bookings", "transport_bookings"),
    ("service_requests", "service_requests"),
    ("request_changes", "request_changes"),
    ("handoffs", "handoffs"),
    ("call_summaries", "call_summaries"),
    ("call_notifications", "call_notifications"),
    ("sessions", "omnichannel_sessions"),
    ("conversation", "conversation_messages"),
    ("deliveries", "message_delivery_log"),
    ("message_delivery_attempts", "message_delivery_attempts"),
    ("message_status_events", "message_status_events"),
    ("alerts", "alerts"),
];

impl World {
    /// Where everything is and what opens it, as `docs/local-world.schema.json` describes it.
    pub fn ready_file(&self) -> Value {
        let functions = self.edge.as_ref().map(Edge::functions).cloned().unwrap_or_default();
        let simulator = |url: String| json!({"control_url": format!("{url}/control"), "url": url});
        let mut file = json!({
            "version": READY_FILE_VERSION,
            "functions": functions,
            "postgrest_url": self.postgrest.url(),
            "gateway": simulator(self.gateway.url()),
            "database_url": self.database_url(),
            "simulators": {
                "mtn": simulator(self.mtn.url()),
                "whatsapp": simulator(self.whatsapp.url()),
                "openai": simulator(self.openai.url()),
            },
            "secrets": self.shared_secrets(),
        });
        if let (Some(relay), Some(file)) = (&self.relay, file.as_object_mut()) {
            let described = json!({"sip": relay.sip, "url": format!("http://{}", relay.http), "number": relay.number});
            file.insert("relay".to_owned(), described);
        }
        file
    }

    /// Keys of a real provider open more than this world: they stay where they are.
    fn shared_secrets(&self) -> BTreeMap<&str, &str> {
        let of_real = |name: &str| {
            let opens = ["_API_KEY", "_API_SECRET", "_ACCESS_TOKEN"].iter().any(|end| name.ends_with(end));
            let provider =
                |(start, provider): &(&str, Provider)| name.starts_with(start) && self.real.contains(provider);
            opens && PREFIXES.iter().any(provider)
        };
        let all = self.secrets.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        all.filter(|(name, _)| !of_real(name)).collect()
    }

    /// Everything that happened so far, as `docs/local-world.schema.json` describes it: rows of our tables, column names
    /// as keys, oldest first, and what the providers were really given.
    pub async fn report(&self) -> Result<Value> {
        let mut report = Map::new();
        report.insert("version".to_owned(), json!(REPORT_VERSION));
        report.insert("at".to_owned(), json!(Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)));
        for (name, table) in REPORTED {
            // Events and turns of one batch were written in one moment.
            let then = if ["transcripts", "voice_events"].contains(&table) { "call_id, seq" } else { "id" };
            let rows = self.rows(&format!("select * from public.{table} order by created_at, {then}")).await?;
            report.insert(name.to_owned(), json!(rows));
        }
        let sms: Vec<Value> = self
            .mtn
            .messages()
            .iter()
            .map(|sms| {
                json!({"at": sms.at, "provider": "mtn", "channel": "sms", "recipient": sms.recipient, "sender": sms.sender,
                       "content": sms.text, "delivery_ref": sms.client_correlator_id})
            })
            .collect();
        let whatsapp: Vec<Value> = self
            .whatsapp
            .messages()
            .iter()
            .map(|sent| {
                json!({"at": sent.at, "provider": "whatsapp", "channel": "whatsapp", "recipient": sent.recipient,
                       "content": sent.shown, "template": sent.template, "language": sent.language,
                       "provider_message_id": sent.wamid, "delivery_ref": sent.biz_opaque_callback_data})
            })
            .collect();
        let mut outbox = [sms, whatsapp].concat();
        let at = |entry: &Value| entry.get("at").map(Value::to_string);
        outbox.sort_by_key(at);
        report.insert("outbox".to_owned(), Value::Array(outbox));
        Ok(Value::Object(report))
    }

    /// Writes [`World::ready_file`], readable by its owner only: it holds keys. A reader never finds half of it.
    pub fn write_ready_file(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.ready_file()).context("cannot write the ready file as JSON")?;
        let draft = path.with_extension("draft");
        let write = || -> std::io::Result<()> {
            let _ = std::fs::remove_file(&draft);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(text.as_bytes())?;
            std::fs::rename(&draft, path)
        };
        write().context(format!("cannot write {}", path.display()))
    }
}
