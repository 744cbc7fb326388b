//! Every setting a function reads, in one table: its name, its default, who needs it, what it is for.
//! `docs/configuration.md` is written from this table, and a test fails when the two differ.

/// One environment variable or secret.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub name: &'static str,
    /// An older or alternative name that is read when `name` is absent.
    pub alias: Option<&'static str>,
    pub default: Option<&'static str>,
    /// Set with `wrangler secret put`, never printed.
    pub secret: bool,
    /// Functions that cannot do their work without it; their health page names it when it is missing.
    pub required_by: &'static [&'static str],
    /// Prose for the page; a function does without it.
    #[cfg(not(target_arch = "wasm32"))]
    pub purpose: &'static str,
}

const ALL: &[&str] =
    &["post-call-notify", "sms-inbound-webhook", "delivery-retry", "delivery-status-webhook", "whatsapp-webhook"];
const SENDERS: &[&str] = &["post-call-notify", "sms-inbound-webhook", "delivery-retry"];

const fn secret(name: &'static str, required_by: &'static [&'static str], purpose: &'static str) -> Setting {
    Setting { secret: true, required_by, ..plain(name, None, purpose) }
}

#[cfg_attr(target_arch = "wasm32", allow(unused_variables))]
const fn plain(name: &'static str, default: Option<&'static str>, purpose: &'static str) -> Setting {
    Setting {
        name,
        alias: None,
        default,
        secret: false,
        required_by: &[],
        #[cfg(not(target_arch = "wasm32"))]
        purpose,
    }
}

/// The one list.
pub const SETTINGS: &[Setting] = &[
    Setting {
        required_by: ALL,
        ..plain("SUPABASE_URL", None, "Project URL, such as `https://<ref>.supabase.co`; `/rest/v1` is added.")
    },
    secret(
        "SUPABASE_SERVICE_ROLE_KEY",
        ALL,
        "Service key in either format: a legacy JWT (`eyJ…`) or `sb_secret_…`. Callers of our own endpoints may present it.",
    ),
    secret(
        "INTERNAL_API_KEY",
        &[],
        "A second key that our own endpoints accept, so that a call handler need not hold the service key.",
    ),
    secret("MTN_SMS_API_KEY", SENDERS, "MTN consumer key (`client_id` of the token request)."),
    secret("MTN_SMS_API_SECRET", SENDERS, "MTN consumer secret (`client_secret`)."),
    plain(
        "MTN_SMS_SENDER_ID",
        Some("EasyMO"),
        "Sender shown to the recipient. An alphanumeric one cannot receive replies.",
    ),
    plain(
        "MTN_SMS_SERVICE_CODE",
        None,
        "Short code or long number with an inbound subscription. With an alphanumeric sender, texts say to reply to this number; without it they promise no reply by SMS.",
    ),
    secret(
        "MTN_WEBHOOK_SECRET",
        &["sms-inbound-webhook", "delivery-status-webhook"],
        "Authenticates inbound SMS and delivery reports: bearer token, HMAC key or path token.",
    ),
    secret(
        "MTN_WEBHOOK_SECRET_PREVIOUS",
        &[],
        "The secret before the last rotation; accepted as well while it is set.",
    ),
    plain("MTN_BASE_URL", Some("https://api.mtn.com"), "Base URL of the MTN API."),
    plain(
        "MTN_SMS_TOKEN_PATH",
        Some("/v1/oauth/access_token"),
        "Path of the OAuth token request; some MTN countries use `/v1/oauth/access_token/accesstoken`.",
    ),
    secret("WHATSAPP_ACCESS_TOKEN", SENDERS, "System-user token of the WhatsApp Cloud API."),
    Setting {
        alias: Some("WHATSAPP_PHONE_ID"),
        required_by: SENDERS,
        ..plain("WHATSAPP_PHONE_NUMBER_ID", None, "Id of the business phone number that sends.")
    },
    secret("WHATSAPP_APP_SECRET", &["whatsapp-webhook"], "App secret: key of `X-Hub-Signature-256`."),
    secret(
        "WHATSAPP_APP_SECRET_PREVIOUS",
        &[],
        "The app secret before the last rotation; accepted as well while it is set.",
    ),
    secret("WHATSAPP_VERIFY_TOKEN", &["whatsapp-webhook"], "Token of Meta's GET verification."),
    plain("WHATSAPP_BASE_URL", Some("https://graph.facebook.com"), "Base URL of the Graph API."),
    plain("GRAPH_API_VERSION", Some("v25.0"), "Graph API version."),
    plain(
        "WHATSAPP_SUMMARY_TEMPLATE",
        Some("call_summary_v1"),
        "Utility template for a summary outside the 24-hour service window.",
    ),
    plain(
        "WHATSAPP_TEMPLATE_LANGUAGES",
        Some(""),
        "Languages in which that template is approved, such as `en,fr,rw_RW,sw`. Empty: none, so that outside the window SMS carries the summary.",
    ),
    plain(
        "WHATSAPP_PROBE_UNKNOWN",
        Some("false"),
        "`true`: try WhatsApp (by template) for a person of whom it is not known whether they have it.",
    ),
    secret("OPENAI_API_KEY", &["post-call-notify", "sms-inbound-webhook"], "Key of the model's API."),
    plain("OPENAI_BASE_URL", Some("https://api.openai.com/v1"), "Base URL of the Responses API."),
    plain("OPENAI_TEXT_MODEL", Some("gpt-6-luna"), "Model that answers messages."),
    plain("OPENAI_SUMMARY_MODEL", Some("gpt-6-luna"), "Model that writes summaries."),
    plain(
        "IHUZA_COMPAT_INBOUND_AUTH",
        Some("false"),
        "`true`: accept inbound SMS that prove nothing about their sender, unsigned or with the public anon key. Only for a trial.",
    ),
    plain(
        "LEASE_SECONDS",
        Some("60"),
        "How long a claim on a piece of work lasts before another consumer may take it over.",
    ),
    plain(
        "UNKNOWN_WAIT_SECONDS",
        Some("120"),
        "How long an unknown outcome waits for a status report before the other channel, or one resend, carries the message.",
    ),
    plain("CALL_WAIT_SECONDS", Some("120"), "How long post-call-notify looks again for a call whose row is late."),
    plain("BURST_WAIT_MS", Some("0"), "How long an inbound SMS waits for the rest of a burst before it is answered."),
    plain("PROVIDER_TIMEOUT_MS", Some("10000"), "Limit of one request to MTN or WhatsApp."),
    plain("DATABASE_TIMEOUT_MS", Some("5000"), "Limit of one PostgREST request."),
    plain("MODEL_TIMEOUT_MS", Some("12000"), "Limit of one model request of an SMS answer."),
    plain("SUMMARY_TIMEOUT_MS", Some("25000"), "Limit of the model request of a summary."),
    plain("SESSION_IDLE_HOURS", Some("72"), "A session idle for longer expires."),
    plain(
        "RETRY_BASE_SECONDS",
        Some("30"),
        "Base of the exponential wait between attempts of one delivery (full jitter, cap one hour).",
    ),
];

/// `docs/configuration.md`, whole.
#[cfg(not(target_arch = "wasm32"))]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         Written from `shared/edge/src/settings.rs`; a test fails when this page is out of date \
         (`IHUZA_UPDATE=1 cargo test -p ihuza-edge` rewrites it).\n\n\
         Secrets are set with `npx wrangler secret put NAME -e <function>`; everything else is a variable in \
         `wrangler.toml`. The local world makes its own; values in `.dev.vars` win there.\n\n\
         | setting | default | needed by | what it is for |\n|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let kind = if setting.secret { " (secret)" } else { "" };
        let alias = setting.alias.map(|alias| format!(", also read as `{alias}`")).unwrap_or_default();
        let default = match setting.default {
            Some("") => "empty".to_owned(),
            Some(value) => format!("`{value}`"),
            None => "none".to_owned(),
        };
        let needed = if setting.required_by == ALL {
            "all".to_owned()
        } else if setting.required_by.is_empty() {
            "optional".to_owned()
        } else {
            setting.required_by.join(", ")
        };
        page.push_str(&format!("| `{}`{kind}{alias} | {default} | {needed} | {} |\n", setting.name, setting.purpose));
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
    fn no_name_stands_twice() {
        let mut names: Vec<_> = SETTINGS.iter().flat_map(|s| [Some(s.name), s.alias]).flatten().collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
    }
}
