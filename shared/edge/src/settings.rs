//! Every setting a function reads, in one table: its name, its default, who reads it, who needs it, what it is for.
//! `docs/configuration.md` is written from this table, and a test fails when the two differ.

/// Whether the functions that read a setting can do without it. Their health page names what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Required,
    /// The account at Meta: all settings of this group, or none, and then the deployment speaks by SMS alone.
    WhatsappAccount,
    Optional,
}

/// One environment variable or secret.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub name: &'static str,
    /// An older or alternative name that is read when `name` is absent.
    pub alias: Option<&'static str>,
    pub default: Option<&'static str>,
    /// Set with `wrangler secret put`, never printed.
    pub secret: bool,
    /// Functions that read it: no other is given the secret, and no other finds the value in its [`Config`].
    ///
    /// [`Config`]: crate::config::Config
    pub read_by: &'static [&'static str],
    pub need: Need,
    /// Prose for the page; a function does without it.
    #[cfg(not(target_arch = "wasm32"))]
    pub purpose: &'static str,
}

const ALL: &[&str] = &[
    "agent-tools",
    "post-call-notify",
    "call-summary",
    "sms-inbound-webhook",
    "conversation",
    "delivery-retry",
    "delivery-status-webhook",
    "whatsapp-webhook",
    "openai-realtime-sip",
    "openai-sip-webhook",
];
const AGENT_TOOLS: &[&str] = &["agent-tools"];
const SENDERS: &[&str] = &["call-summary", "conversation", "delivery-retry"];
const TALKERS: &[&str] = &["call-summary", "conversation"];
const SUMMARY: &[&str] = &["call-summary"];
const CONVERSATION: &[&str] = &["conversation"];
const INBOUND: &[&str] = &["sms-inbound-webhook", "whatsapp-webhook"];
const SMS: &[&str] = &["sms-inbound-webhook"];
const CARRIER: &[&str] = &["sms-inbound-webhook", "delivery-status-webhook"];
const REPORTS: &[&str] = &["delivery-status-webhook"];
const RETRY: &[&str] = &["delivery-retry"];
const TWILIO: &[&str] = &["delivery-status-webhook", "delivery-retry"];
const VOICE: &[&str] = &["openai-realtime-sip"];
const SIP: &[&str] = &["openai-sip-webhook"];
const VOICES: &[&str] = &["openai-realtime-sip", "openai-sip-webhook"];
const OPENAI: &[&str] = &["call-summary", "conversation", "openai-realtime-sip", "openai-sip-webhook"];
const SESSIONS: &[&str] = &[
    "call-summary",
    "conversation",
    "delivery-retry",
    "whatsapp-webhook",
    "openai-realtime-sip",
    "openai-sip-webhook",
];
const META: &[&str] = &["whatsapp-webhook"];
const KEYED: &[&str] = &["post-call-notify", "delivery-retry", "openai-realtime-sip"];
const SENDERS_AND_META: &[&str] = &["call-summary", "conversation", "delivery-retry", "whatsapp-webhook"];

const fn secret(name: &'static str, need: Need, read_by: &'static [&'static str], purpose: &'static str) -> Setting {
    Setting { secret: true, need, ..plain(name, None, read_by, purpose) }
}

#[cfg_attr(target_arch = "wasm32", allow(unused_variables))]
const fn plain(
    name: &'static str,
    default: Option<&'static str>,
    read_by: &'static [&'static str],
    purpose: &'static str,
) -> Setting {
    Setting {
        name,
        alias: None,
        default,
        secret: false,
        read_by,
        need: Need::Optional,
        #[cfg(not(target_arch = "wasm32"))]
        purpose,
    }
}

/// The one list.
pub const SETTINGS: &[Setting] = &[
    Setting {
        need: Need::Required,
        ..plain("SUPABASE_URL", None, ALL, "Project URL, such as `https://<ref>.supabase.co`; `/rest/v1` is added.")
    },
    secret(
        "SUPABASE_SERVICE_ROLE_KEY",
        Need::Required,
        ALL,
        "Service key in either format: a legacy JWT (`eyJ…`) or `sb_secret_…`. Callers of our own endpoints may present it.",
    ),
    secret(
        "INTERNAL_API_KEY",
        Need::Optional,
        KEYED,
        "A second key that our own endpoints accept, so that a call handler need not hold the service key.",
    ),
    secret("MTN_SMS_API_KEY", Need::Required, SENDERS, "MTN consumer key (`client_id` of the token request)."),
    secret("MTN_SMS_API_SECRET", Need::Required, SENDERS, "MTN consumer secret (`client_secret`)."),
    plain(
        "MTN_SMS_SENDER_ID",
        Some("EasyMO"),
        SENDERS,
        "Sender shown to the recipient. An alphanumeric one cannot receive replies.",
    ),
    plain(
        "MTN_SMS_SERVICE_CODE",
        None,
        SENDERS,
        "Short code or long number with an inbound subscription. With an alphanumeric sender, texts say to reply to this number; without it they promise no reply by SMS.",
    ),
    secret(
        "MTN_WEBHOOK_SECRET",
        Need::Required,
        CARRIER,
        "Authenticates inbound SMS and delivery reports: bearer token, HMAC key or path token.",
    ),
    secret(
        "MTN_WEBHOOK_SECRET_PREVIOUS",
        Need::Optional,
        CARRIER,
        "The secret before the last rotation; accepted as well while it is set.",
    ),
    plain(
        "TWILIO_ACCOUNT_SID",
        None,
        RETRY,
        "The account whose messages are compared with ours each day, `AC…`. Best a subaccount of its own: messages of other programs count as unknown here. Without it Twilio is not asked.",
    ),
    secret(
        "TWILIO_AUTH_TOKEN",
        Need::Optional,
        TWILIO,
        "The account's primary auth token: key of `X-Twilio-Signature`, and password of the daily comparison. Without it no status callback of Twilio's is believed.",
    ),
    secret(
        "TWILIO_AUTH_TOKEN_PREVIOUS",
        Need::Optional,
        REPORTS,
        "The auth token before the last rotation; accepted as well while it is set.",
    ),
    plain(
        "TWILIO_STATUS_CALLBACK_URL",
        None,
        REPORTS,
        "Address of our status callbacks as Twilio calls it, without its query: `https://…/delivery-status-webhook/twilio`. It is part of what Twilio signs, and a proxy may have changed what arrives.",
    ),
    secret(
        "AFRICASTALKING_WEBHOOK_SECRET",
        Need::Optional,
        REPORTS,
        "Last part of the address that Africa's Talking sends delivery reports to: it signs nothing. Without it none is believed.",
    ),
    secret(
        "AFRICASTALKING_WEBHOOK_SECRET_PREVIOUS",
        Need::Optional,
        REPORTS,
        "The secret before the last rotation; accepted as well while it is set.",
    ),
    plain("TWILIO_BASE_URL", Some("https://api.twilio.com"), RETRY, "Base URL of Twilio's API."),
    plain("MTN_BASE_URL", Some("https://api.mtn.com"), SENDERS, "Base URL of the MTN API."),
    plain(
        "MTN_SMS_TOKEN_PATH",
        Some("/v1/oauth/access_token"),
        SENDERS,
        "Path of the OAuth token request; some MTN countries use `/v1/oauth/access_token/accesstoken`.",
    ),
    secret("WHATSAPP_ACCESS_TOKEN", Need::WhatsappAccount, SENDERS, "System-user token of the WhatsApp Cloud API."),
    Setting {
        alias: Some("WHATSAPP_PHONE_ID"),
        need: Need::WhatsappAccount,
        ..plain("WHATSAPP_PHONE_NUMBER_ID", None, SENDERS_AND_META, "Id of the business phone number that sends.")
    },
    secret("WHATSAPP_APP_SECRET", Need::WhatsappAccount, META, "App secret: key of `X-Hub-Signature-256`."),
    secret(
        "WHATSAPP_APP_SECRET_PREVIOUS",
        Need::Optional,
        META,
        "The app secret before the last rotation; accepted as well while it is set.",
    ),
    secret("WHATSAPP_VERIFY_TOKEN", Need::WhatsappAccount, META, "Token of Meta's GET verification."),
    plain("WHATSAPP_BASE_URL", Some("https://graph.facebook.com"), SENDERS, "Base URL of the Graph API."),
    plain("GRAPH_API_VERSION", Some("v25.0"), SENDERS, "Graph API version."),
    plain(
        "WHATSAPP_SUMMARY_TEMPLATE",
        Some("call_summary_v1"),
        TALKERS,
        "Utility template for a summary outside the 24-hour service window.",
    ),
    plain(
        "WHATSAPP_TEMPLATE_LANGUAGES",
        Some(""),
        TALKERS,
        "Languages in which that template is approved, such as `en,fr,rw_RW,sw`, as far as `message_templates` has no row for it (Meta's webhooks write it). Empty: none, so that outside the window SMS carries the summary.",
    ),
    plain(
        "WHATSAPP_PROBE_UNKNOWN",
        Some("false"),
        TALKERS,
        "`true`: try WhatsApp (by template) for a person of whom it is not known whether they have it.",
    ),
    secret("OPENAI_API_KEY", Need::Required, OPENAI, "Key of the model's API."),
    plain("OPENAI_BASE_URL", Some("https://api.openai.com/v1"), OPENAI, "Base URL of the model's API."),
    plain("OPENAI_TEXT_MODEL", Some("gpt-6-luna"), CONVERSATION, "Model that answers messages."),
    plain("OPENAI_TRANSCRIPTION_MODEL", Some("gpt-transcribe"), CONVERSATION, "Model that listens to voice notes."),
    plain("OPENAI_SUMMARY_MODEL", Some("gpt-6-luna"), SUMMARY, "Model that writes summaries."),
    plain(
        "OPENAI_REALTIME_MODEL",
        Some("gpt-realtime-2.1-mini"),
        VOICES,
        "Model that speaks on calls. `/health` warns of one that ends.",
    ),
    plain("OPENAI_REALTIME_VOICE", Some("marin"), VOICES, "Voice it speaks with."),
    plain(
        "OPENAI_REALTIME_AUDIO_FORMAT",
        Some("pcma"),
        VOICE,
        "`pcma` or `pcmu`: G.711 passed through; `pcm16`: linear at 24 kHz. A request may name another (`audio_format`).",
    ),
    plain(
        "OPENAI_REALTIME_TURN_DETECTION",
        Some("server_vad"),
        VOICES,
        "`server_vad`, or `semantic_vad` for a model that waits for the end of a thought.",
    ),
    plain(
        "AGENT_TOOLS_URL",
        None,
        VOICES,
        "Public address of agent-tools (`https://…/mcp`). With it, in calls the model's vendor calls the agent's tools there, with a token of the call (docs/mcp.md); without it they are function tools, run by whoever carries the call.",
    ),
    plain(
        "OPENAI_REALTIME_TRANSCRIPTION_MODEL",
        Some("gpt-transcribe"),
        VOICES,
        "Model that writes down what callers say.",
    ),
    plain(
        "OPENAI_REALTIME_KEY_SECONDS",
        Some("120"),
        VOICE,
        "How long a session can be started with a minted key (10 to 7200).",
    ),
    plain(
        "OPENAI_REALTIME_TIMEOUT_MS",
        Some("3000"),
        VOICES,
        "Limit of minting a key, and of each request about a call over OpenAI's SIP; the caller hears it ring meanwhile.",
    ),
    secret(
        "OPENAI_WEBHOOK_SECRET",
        Need::Optional,
        SIP,
        "Signs OpenAI's webhooks (`whsec_…`): calls over OpenAI's own SIP are told of by them. Without it no call comes that way.",
    ),
    secret(
        "OPENAI_WEBHOOK_SECRET_PREVIOUS",
        Need::Optional,
        SIP,
        "The secret before the last rotation; accepted as well while it is set.",
    ),
    plain(
        "OPENAI_SIP_TRANSFER_PREFIXES",
        None,
        SIP,
        "Beginnings of numbers, with commas, to which a call over OpenAI's SIP may be handed over, such as `+250788`. None: no call is.",
    ),
    plain(
        "OPENAI_SIP_MAX_SECONDS",
        Some("3300"),
        SIP,
        "A call over OpenAI's SIP is ended after so long; the vendor ends a session after an hour.",
    ),
    secret(
        "VOICE_TRUNK_SECRET",
        Need::Optional,
        VOICE,
        "Bearer token of a trunk that opens and ends calls by webhook. Without it only relays, with a key of ours, do.",
    ),
    secret(
        "VOICE_TRUNK_SECRET_PREVIOUS",
        Need::Optional,
        VOICE,
        "The trunk's token before the last rotation; accepted as well while it is set.",
    ),
    plain(
        "VOICE_TRUNK_GETS_KEY",
        Some("false"),
        VOICE,
        "`true`: a trunk gets the ephemeral key too. Whoever holds it can talk to the model at your cost.",
    ),
    plain(
        "AGENT_TOOLS_ALLOWED_ORIGINS",
        None,
        AGENT_TOOLS,
        "Origins of web pages that may use the MCP server, with commas between them, such as `https://desk.example.org`. Any other request with an `Origin` is refused; programs that are no browser send none.",
    ),
    plain(
        "IHUZA_COMPAT_INBOUND_AUTH",
        Some("false"),
        SMS,
        "`true`: accept inbound SMS that prove nothing about their sender, unsigned or with the public anon key. Only for a trial.",
    ),
    plain(
        "HOME_PREFIXES",
        Some("+250"),
        INBOUND,
        "How numbers begin, with commas, whose neighbours are simply our other customers: what they write is limited a sender, not with all numbers that begin alike (`PREFIX_LIMIT` of `wrangler.toml`). `none`: every prefix is.",
    ),
    plain(
        "LEASE_SECONDS",
        Some("180"),
        SENDERS,
        "How long a claim on a piece of work lasts before another consumer may take it over; longer than any work can take (`/health` warns).",
    ),
    plain(
        "UNKNOWN_WAIT_SECONDS",
        Some("120"),
        SENDERS,
        "How long an unknown outcome waits for a status report before the other channel, or one resend, carries the message.",
    ),
    plain("CALL_WAIT_SECONDS", Some("120"), SUMMARY, "How long call-summary looks again for a call whose row is late."),
    plain(
        "OWED_ANSWER_MINUTES",
        Some("15"),
        CONVERSATION,
        "For how long a real answer is tried after an apology, because the model was slow or gone; `0`: the apology is the answer.",
    ),
    plain(
        "BURST_WAIT_MS",
        Some("0"),
        CONVERSATION,
        "How long an inbound SMS waits for the rest of a burst before it is answered.",
    ),
    plain(
        "ALERT_WEBHOOK_URL",
        None,
        RETRY,
        "Gets a POST of each alert, once: a pager, a chat, a program. Without it alerts are rows of `alerts` alone.",
    ),
    secret(
        "ALERT_WEBHOOK_SECRET",
        Need::Optional,
        RETRY,
        "Signs what `ALERT_WEBHOOK_URL` gets: `X-Signature: sha256=<hex>` over `{X-Timestamp}.{body}`.",
    ),
    plain(
        "ALERT_FAILURE_PERCENT",
        Some("30"),
        RETRY,
        "A carrier that refuses so many percent of the messages of 15 minutes (20 at least) raises the alert `failure_rate`.",
    ),
    plain("PROVIDER_TIMEOUT_MS", Some("10000"), SENDERS, "Limit of one request to MTN or WhatsApp."),
    plain("DATABASE_TIMEOUT_MS", Some("5000"), ALL, "Limit of one PostgREST request."),
    plain("MODEL_TIMEOUT_MS", Some("12000"), CONVERSATION, "Limit of one model request of an SMS answer."),
    plain(
        "TURN_TIMEOUT_MS",
        Some("30000"),
        CONVERSATION,
        "Limit of all model requests and tools of an SMS answer together.",
    ),
    plain(
        "VOICE_NOTE_TIMEOUT_MS",
        Some("30000"),
        CONVERSATION,
        "Limit of each step of listening to a voice note: to ask where it is, and to fetch and transcribe it.",
    ),
    plain("SUMMARY_TIMEOUT_MS", Some("25000"), SUMMARY, "Limit of the model request of a summary."),
    plain(
        "RECONCILE_SETTLE_HOURS",
        Some("6"),
        RETRY,
        "How long after the end of a day (UTC) a carrier that lists its messages is asked for it.",
    ),
    plain(
        "RECONCILE_CLOSE_HOURS",
        Some("72"),
        RETRY,
        "How long after the end of a day (UTC) its messages are closed of whom no carrier told what became of them. Their status stays; a late report counts.",
    ),
    plain("SESSION_IDLE_HOURS", Some("72"), SESSIONS, "A session idle for longer expires."),
    plain(
        "RETRY_BASE_SECONDS",
        Some("30"),
        SENDERS,
        "Base of the exponential wait between attempts of one delivery (full jitter, cap one hour).",
    ),
];

impl Setting {
    pub fn is_read_by(&self, function: &str) -> bool {
        self.read_by.contains(&function)
    }
}

/// `docs/configuration.md`, whole.
#[cfg(not(target_arch = "wasm32"))]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Written from `shared/edge/src/settings.rs`; a test fails when this page is out of date \
         (`IHUZA_UPDATE=1 cargo test -p ihuza-edge` rewrites it).\n\n\
         `cargo xtask deploy` takes settings from `.vars.<stage>`: a secret goes to the functions that read it and to no \
         other, everything else becomes a variable. By hand a secret is set with `npx wrangler secret put NAME --name \
         WORKER`; Workers of staging end in `-staging`. The local world makes its own; values in `.dev.vars` win \
         there.\n\n\
         *Needed* says what a function cannot work without:\n\n\
         - **yes**: always. MTN and OpenAI are: SMS is the channel that reaches everybody, and there is no deployment \
         with WhatsApp alone.\n\
         - **WhatsApp**: all of these or none. With none WhatsApp is off: everything goes out as SMS, `/health` and \
         `deploy` say so, and each message's routing has the reason `whatsapp_not_configured`.\n\
         - empty: never.\n\n\
         | setting | default | needed | read by | what it is for |\n|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let kind = if setting.secret { " (secret)" } else { "" };
        let alias = setting.alias.map(|alias| format!(", also read as `{alias}`")).unwrap_or_default();
        let default = match setting.default {
            Some("") => "empty".to_owned(),
            Some(value) => format!("`{value}`"),
            None => "none".to_owned(),
        };
        let needed = match setting.need {
            Need::Required => "yes",
            Need::WhatsappAccount => "WhatsApp",
            Need::Optional => "",
        };
        let readers = if setting.read_by == ALL { "all".to_owned() } else { setting.read_by.join(", ") };
        page.push_str(&format!(
            "| `{}`{kind}{alias} | {default} | {needed} | {readers} | {} |\n",
            setting.name, setting.purpose
        ));
    }
    page
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        if std::env::var_os("IHUZA_UPDATE").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == markdown(),
            "docs/configuration.md is out of date: IHUZA_UPDATE=1 cargo test -p ihuza-edge rewrites it"
        );
    }

    #[test]
    fn a_secret_that_nobody_reads_is_no_setting_and_a_key_of_the_database_goes_to_all() {
        for setting in SETTINGS {
            assert!(!setting.read_by.is_empty(), "{}", setting.name);
            assert!(setting.read_by.iter().all(|function| ALL.contains(function)), "{}", setting.name);
            assert!(setting.need == Need::Optional || setting.default.is_none(), "{}", setting.name);
        }
        let secrets = |function: &str| -> Vec<&str> {
            SETTINGS.iter().filter(|s| s.secret && s.is_read_by(function)).map(|s| s.name).collect()
        };
        assert_eq!(
            secrets("whatsapp-webhook"),
            [
                "SUPABASE_SERVICE_ROLE_KEY",
                "WHATSAPP_APP_SECRET",
                "WHATSAPP_APP_SECRET_PREVIOUS",
                "WHATSAPP_VERIFY_TOKEN"
            ]
        );
        assert_eq!(
            secrets("delivery-status-webhook"),
            [
                "SUPABASE_SERVICE_ROLE_KEY",
                "MTN_WEBHOOK_SECRET",
                "MTN_WEBHOOK_SECRET_PREVIOUS",
                "TWILIO_AUTH_TOKEN",
                "TWILIO_AUTH_TOKEN_PREVIOUS",
                "AFRICASTALKING_WEBHOOK_SECRET",
                "AFRICASTALKING_WEBHOOK_SECRET_PREVIOUS"
            ]
        );
    }

    /// Names that the sources below `dir` ask the configuration for: `find("…")`, `text("…")` and their like.
    fn asked_for(dir: &std::path::Path, names: &mut std::collections::BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                asked_for(&path, names);
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("settings.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let quoted = code.split('"').skip(1).step_by(2);
                names.extend(quoted.filter(|word| SETTINGS.iter().any(|s| s.name == *word)).map(str::to_owned));
            }
        }
    }

    #[test]
    fn what_a_function_asks_for_it_reads_and_what_nobody_asks_for_is_no_setting() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut all = std::collections::BTreeSet::new();
        for function in ALL {
            let mut own = std::collections::BTreeSet::new();
            asked_for(&root.join("functions").join(function).join("src"), &mut own);
            for name in &own {
                let setting = SETTINGS.iter().find(|s| s.name == name).unwrap();
                assert!(setting.is_read_by(function), "{function} asks for {name} and is not among its readers");
            }
            all.extend(own);
        }
        asked_for(&root.join("shared/edge/src"), &mut all);
        let unused: Vec<&str> = SETTINGS.iter().map(|s| s.name).filter(|name| !all.contains(*name)).collect();
        assert_eq!(unused, Vec::<&str>::new());
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names: Vec<_> = SETTINGS.iter().flat_map(|s| [Some(s.name), s.alias]).flatten().collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
    }
}
