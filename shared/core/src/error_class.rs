//! What a failure means: one table of every vendor code we know, and the rule for those we do not.
//!
//! The question behind each line is "may the message have gone out?". `Retryable` means it certainly has not; `Unknown`
//! means it may have, and is never resent blindly. Codes are from the vendors' own lists (Meta: support/error-codes,
//! May 2026; MTN: response-and-error-codes; Twilio: api/errors; Africa's Talking: sms/sending; OpenAI: error codes).

use serde::{Deserialize, Serialize};

use crate::channel::Provider;

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Refused before it was accepted: the same request may be sent again later.
    Retryable,
    /// Will never work for this recipient or in this form.
    Permanent,
    /// Our account or settings: alert. Where it [counts](Classified::breaker) it concerns every message: the queue is held and
    /// nothing is lost. Else it concerns this recipient or this template alone: the message failed, the other channel carries it.
    Config,
    /// Our request was malformed: never sent again unchanged, alert.
    Bug,
    /// May have been accepted: wait for word before sending again.
    Unknown,
}

impl ErrorClass {
    /// The word in rows, JSON and logs; also the `outcome` of an attempt.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorClass::Retryable => "retryable",
            ErrorClass::Permanent => "permanent",
            ErrorClass::Config => "config",
            ErrorClass::Bug => "bug",
            ErrorClass::Unknown => "unknown",
        }
    }
}

/// What a failure tells about the recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The number is probably not on WhatsApp (the code has several causes).
    NotOnWhatsapp,
    /// The person refused messages from us at the provider.
    OptedOut,
    /// Meta holds the 24-hour window for closed.
    WindowClosed,
}

impl Evidence {
    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Evidence::NotOnWhatsapp => "not_on_whatsapp",
            Evidence::OptedOut => "opted_out",
            Evidence::WindowClosed => "window_closed",
        }
    }
}

/// A failure, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Classified {
    /// What to do.
    pub class: ErrorClass,
    /// A short name of the cause, for rows and logs; never text of the provider.
    pub reason: &'static str,
    /// What it tells about the recipient.
    pub evidence: Option<Evidence>,
    /// Whether it counts against the provider in the circuit breaker; errors of one recipient, template or message never do.
    /// A `Config` that counts opens it at once.
    pub breaker: bool,
}

impl Classified {
    const fn new(class: ErrorClass, reason: &'static str) -> Classified {
        Classified { class, reason, evidence: None, breaker: false }
    }

    const fn counts(mut self) -> Classified {
        self.breaker = true;
        self
    }

    const fn tells(mut self, evidence: Evidence) -> Classified {
        self.evidence = Some(evidence);
        self
    }
}

/// How a request failed without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportFailure {
    /// The address or a header can be none. Nothing was sent, and nothing will be until a setting is corrected.
    NotARequest,
    /// Sent, and no answer in time.
    Timeout,
    /// Sent, and the connection broke before the whole answer.
    Cut,
    /// An answer came, but not one that can be read.
    BadBody,
}

const fn retryable(reason: &'static str) -> Classified {
    Classified::new(ErrorClass::Retryable, reason)
}

const fn permanent(reason: &'static str) -> Classified {
    Classified::new(ErrorClass::Permanent, reason)
}

const fn config(reason: &'static str) -> Classified {
    Classified::new(ErrorClass::Config, reason)
}

const fn bug(reason: &'static str) -> Classified {
    Classified::new(ErrorClass::Bug, reason)
}

const fn unknown(reason: &'static str) -> Classified {
    Classified::new(ErrorClass::Unknown, reason)
}

/// Classifies an answer: by the vendor's code where we know it, else by the HTTP status.
pub fn classify(provider: Provider, http_status: Option<u16>, vendor_code: Option<&str>) -> Classified {
    let known = vendor_code.and_then(|code| by_code(provider, code.trim()));
    match (known, provider) {
        (Some(classified), _) => classified,
        (None, Provider::Openai) => openai_by_http(http_status),
        (None, Provider::Mtn | Provider::Whatsapp | Provider::AfricasTalking | Provider::Twilio) => {
            by_http(http_status)
        }
    }
}

/// Classifies a failure without an answer.
pub fn classify_transport(provider: Provider, failure: TransportFailure) -> Classified {
    // A model call has no effect on anybody until we use its answer: it may always be repeated.
    let repeatable = match provider {
        Provider::Openai => true,
        Provider::Mtn | Provider::Whatsapp | Provider::AfricasTalking | Provider::Twilio => false,
    };
    match (failure, repeatable) {
        (TransportFailure::NotARequest, _) => config("not_a_request").counts(),
        (TransportFailure::Timeout, true) => retryable("timeout").counts(),
        (TransportFailure::Timeout, false) => unknown("timeout").counts(),
        (TransportFailure::Cut, true) => retryable("connection_cut").counts(),
        (TransportFailure::Cut, false) => unknown("connection_cut").counts(),
        (TransportFailure::BadBody, true) => retryable("unreadable_answer").counts(),
        (TransportFailure::BadBody, false) => unknown("unreadable_answer").counts(),
    }
}

/// Whether the table has the code.
pub fn is_known(provider: Provider, vendor_code: &str) -> bool {
    by_code(provider, vendor_code.trim()).is_some()
}

fn by_code(provider: Provider, code: &str) -> Option<Classified> {
    match provider {
        Provider::Mtn => mtn(code),
        Provider::Whatsapp => whatsapp(code.parse().ok()?),
        Provider::Openai => openai(code),
        Provider::AfricasTalking => africas_talking(code),
        Provider::Twilio => twilio(code.parse().ok()?),
    }
}

/// For senders of messages: what was sent and answered with a server error may have gone out.
fn by_http(status: Option<u16>) -> Classified {
    match status {
        None => unknown("no_answer").counts(),
        Some(401) => config("unauthorized").counts(),
        Some(402) => config("payment_required").counts(),
        Some(403) => config("forbidden").counts(),
        Some(404 | 410) => config("wrong_address").counts(),
        Some(429) => retryable("too_many_requests").counts(),
        Some(503) => retryable("unavailable").counts(),
        Some(425) => retryable("too_early"),
        Some(408) => unknown("timeout_at_provider").counts(),
        Some(409) => unknown("conflict"),
        // Cloudflare's own words for "never reached the other side" (refused, no TCP in time, no route, TLS, DNS).
        Some(521 | 522 | 523 | 525 | 526 | 530) => retryable("never_connected").counts(),
        Some(500..=599) => unknown("server_error").counts(),
        Some(400..=499) => bug("refused_request"),
        Some(300..=399) => config("redirected").counts(),
        Some(200..=299) => unknown("unknown_code"),
        Some(_) => unknown("strange_http_status"),
    }
}

fn openai_by_http(status: Option<u16>) -> Classified {
    match status {
        None => retryable("no_answer").counts(),
        Some(401) => config("unauthorized").counts(),
        Some(402) => config("payment_required").counts(),
        Some(403) => config("forbidden").counts(),
        Some(404 | 410) => config("model_not_found"),
        Some(408 | 409 | 425) => retryable("timeout_at_provider").counts(),
        Some(429) => retryable("too_many_requests").counts(),
        Some(500..=599) => retryable("server_error").counts(),
        Some(400..=499) => bug("refused_request"),
        Some(300..=399) => config("redirected").counts(),
        Some(_) => retryable("strange_http_status").counts(),
    }
}

fn mtn(code: &str) -> Option<Classified> {
    let classified = match code {
        "1000" => permanent("user_not_found"),
        "1001" => bug("request_error"),
        // "Pending": accepted, the report follows.
        "1004" => unknown("pending"),
        "1005" => retryable("asked_to_retry"),
        // The vendor calls a timeout retryable; the message may have left all the same.
        "1007" => unknown("timeout_at_provider").counts(),
        "3001" => retryable("system_error").counts(),
        "1012" | "3003" => unknown("timeout_at_provider").counts(),
        "1013" | "3006" => retryable("rate_limited").counts(),
        "2000" => retryable("connection_at_provider").counts(),
        "3000" => retryable("unavailable").counts(),
        "4000" | "invalid_client" => config("unauthorized").counts(),
        "unsupported_grant_type" => config("token_request_refused").counts(),
        "4001" => bug("method_not_allowed"),
        "4004" => config("service_code_registered"),
        "5000" => permanent("invalid_parameters"),
        "5001" => permanent("failed"),
        "6000" => config("billing").counts(),
        "6001" => config("insufficient_funds").counts(),
        _ => return None,
    };
    Some(classified)
}

fn whatsapp(code: u32) -> Option<Classified> {
    let classified = match code {
        1 => retryable("api_unknown"),
        2 => retryable("service_down").counts(),
        4 => retryable("app_call_rate"),
        80007 => retryable("waba_call_rate"),
        130_429 => retryable("throughput").counts(),
        131_000 => retryable("something_went_wrong").counts(),
        131_016 => retryable("service_unavailable").counts(),
        131_056 => retryable("pair_rate"),
        131_057 => retryable("account_in_maintenance").counts(),
        133_004 => retryable("server_unavailable").counts(),
        131_026 => permanent("undeliverable").tells(Evidence::NotOnWhatsapp),
        131_047 | 470 => permanent("window_closed").tells(Evidence::WindowClosed),
        131_049 => permanent("not_delivered_by_meta"),
        131_050 => permanent("marketing_stopped").tells(Evidence::OptedOut),
        130_472 | 472 => permanent("user_in_experiment"),
        131_051 => permanent("unsupported_type"),
        131_052 => permanent("media_download"),
        131_053 => permanent("media_upload"),
        131_062 => permanent("needs_phone_number"),
        132_000 => bug("template_parameter_count"),
        132_001 => config("template_not_approved"),
        132_005 => bug("template_too_long"),
        132_007 => bug("template_policy"),
        132_008 | 132_012 | 132_018 => bug("template_parameter_format"),
        132_015 => config("template_paused"),
        132_016 => config("template_disabled"),
        132_068 => config("flow_blocked"),
        132_069 => config("flow_throttled"),
        0 | 190 => config("token_invalid").counts(),
        3 | 10 | 200..=299 | 131_005 => config("permission_missing").counts(),
        368 => config("policy_block").counts(),
        131_031 => config("account_locked").counts(),
        130_497 => config("country_not_allowed"),
        131_037 => config("display_name").counts(),
        131_042 => config("payment").counts(),
        131_045 => config("certificate").counts(),
        133_010 => config("number_not_registered").counts(),
        131_048 => config("spam_limit"),
        131_064 => config("limit_cut"),
        33 | 100 | 131_008 | 131_009 => bug("invalid_parameter"),
        131_021 => bug("sent_to_ourselves"),
        131_055 => bug("method_not_allowed"),
        135_000 => bug("generic_user_error"),
        131_030 => config("recipient_not_on_test_list"),
        134_011 => permanent("payments_terms"),
        137_000 => permanent("identity_key_changed"),
        _ => return None,
    };
    Some(classified)
}

fn openai(code: &str) -> Option<Classified> {
    let classified = match code {
        "rate_limit_exceeded" | "slow_down" => retryable("rate_limited").counts(),
        "server_error" => retryable("server_error").counts(),
        "server_is_overloaded" => retryable("overloaded").counts(),
        "insufficient_quota" | "credit_balance_exhausted" => config("insufficient_quota").counts(),
        "invalid_api_key" => config("unauthorized").counts(),
        "model_not_found" => config("model_not_found"),
        "invalid_request_error" | "context_length_exceeded" => bug("invalid_request"),
        "invalid_prompt" | "content_filter" => permanent("refused_content"),
        _ => return None,
    };
    Some(classified)
}

fn africas_talking(code: &str) -> Option<Classified> {
    let classified = match code {
        "401" => permanent("risk_hold"),
        "402" | "InvalidSenderId" => permanent("invalid_sender_id"),
        "403" => permanent("invalid_phone_number"),
        "404" => permanent("unsupported_number_type"),
        "405" => config("insufficient_balance").counts(),
        "406" => permanent("opted_out").tells(Evidence::OptedOut),
        "407" => permanent("no_route"),
        "409" => permanent("do_not_disturb").tells(Evidence::OptedOut),
        "500" => retryable("server_error").counts(),
        "501" => retryable("gateway_error").counts(),
        "502" => retryable("rejected_by_gateway").counts(),
        "UserInBlackList" => permanent("opted_out").tells(Evidence::OptedOut),
        "InsufficientCredit" => config("insufficient_balance").counts(),
        "UserIsInactive" | "UserAccountSuspended" | "NotNetworkSubcriber" | "NotNetworkSubscriber" => {
            permanent("subscriber_unreachable")
        }
        _ => return None,
    };
    Some(classified)
}

fn twilio(code: u32) -> Option<Classified> {
    let classified = match code {
        20003 => config("unauthorized").counts(),
        20429 => retryable("too_many_requests").counts(),
        21211 | 21217 => permanent("invalid_phone_number"),
        21614 => permanent("not_a_mobile"),
        21408 => config("country_not_enabled"),
        21606 | 21659 | 21660 => config("sender_not_usable"),
        21608 => config("trial_account"),
        21610 => permanent("opted_out").tells(Evidence::OptedOut),
        21612 => permanent("no_route"),
        21617 => bug("too_long"),
        30001 => retryable("queue_overflow").counts(),
        30002 => config("account_suspended").counts(),
        30003 => retryable("handset_unreachable"),
        30004 => permanent("blocked"),
        30005 => permanent("unknown_handset"),
        30006 => permanent("landline_or_unreachable"),
        30007 => permanent("filtered_as_spam"),
        30008 => retryable("unknown_error"),
        30009 => permanent("missing_inbound_segment"),
        30010 => config("above_max_price"),
        // "Provider timeout (may duplicate)": by our rule that is unknown, not retryable.
        30410 => unknown("timeout_at_provider").counts(),
        63016 => permanent("window_closed").tells(Evidence::WindowClosed),
        63018 => retryable("rate_limited"),
        63024 => permanent("invalid_recipient").tells(Evidence::NotOnWhatsapp),
        _ => return None,
    };
    Some(classified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/error_codes.json")).unwrap()
    }

    #[test]
    fn every_code_of_the_vendors_is_mapped() {
        for row in vectors()["codes"].as_array().unwrap() {
            let provider = Provider::parse(row[0].as_str().unwrap()).unwrap();
            let code = row[1].as_str().unwrap();
            assert!(is_known(provider, code), "{row}");
            for http in [None, Some(200), Some(400), Some(500)] {
                let found = classify(provider, http, Some(code));
                assert_eq!(found.class.as_str(), row[2].as_str().unwrap(), "{row}");
                assert_eq!(found.evidence.map(Evidence::as_str), row[3].as_str(), "{row}");
                assert_eq!(found.breaker, row[4].as_bool().unwrap(), "{row}");
            }
        }
    }

    #[test]
    fn without_a_known_code_the_http_status_decides() {
        for row in vectors()["http_without_a_known_code"].as_array().unwrap() {
            let provider = Provider::parse(row[0].as_str().unwrap()).unwrap();
            let http = u16::try_from(row[1].as_u64().unwrap()).unwrap();
            for code in [None, Some("no such code"), Some("999999999")] {
                let found = classify(provider, Some(http), code);
                assert_eq!(
                    (found.class.as_str(), found.breaker),
                    (row[2].as_str().unwrap(), row[3].as_bool().unwrap()),
                    "{row}"
                );
            }
        }
    }

    #[test]
    fn only_what_was_never_sent_is_retried_blindly() {
        use TransportFailure::*;
        let class = |provider, failure| classify_transport(provider, failure).class;
        for provider in [Provider::Mtn, Provider::Whatsapp, Provider::AfricasTalking, Provider::Twilio] {
            assert_eq!(class(provider, NotARequest), ErrorClass::Config);
            for failure in [Timeout, Cut, BadBody] {
                assert_eq!(class(provider, failure), ErrorClass::Unknown);
            }
        }
        assert_eq!(class(Provider::Openai, Timeout), ErrorClass::Retryable, "a model call may be repeated");
    }

    #[test]
    fn what_concerns_one_recipient_never_counts_against_the_provider() {
        for row in vectors()["codes"].as_array().unwrap() {
            let class = row[2].as_str().unwrap();
            if class == "permanent" || class == "bug" {
                assert_eq!(row[4], false, "{row}");
            }
        }
    }

    #[test]
    fn what_concerns_one_recipient_or_template_leaves_everybody_else_alone() {
        let counts = |provider, code| classify(provider, Some(403), Some(code)).breaker;
        for code in ["130497", "131030", "131048", "131064", "132001", "132015", "132016", "132068", "132069"] {
            assert!(!counts(Provider::Whatsapp, code), "{code}");
        }
        for code in
            ["0", "190", "3", "10", "200", "299", "131005", "368", "131031", "131037", "131042", "131045", "133010"]
        {
            assert!(counts(Provider::Whatsapp, code), "{code}");
        }
        for code in ["4000", "6000", "6001", "invalid_client", "unsupported_grant_type"] {
            assert!(counts(Provider::Mtn, code), "{code}");
        }
        assert!(!counts(Provider::Mtn, "4004"), "a subscription's own");
    }

    proptest! {
        #[test]
        fn no_code_panics(code: String, http: Option<u16>) {
            for provider in [Provider::Mtn, Provider::Whatsapp, Provider::Openai, Provider::AfricasTalking, Provider::Twilio] {
                let _ = classify(provider, http, Some(&code));
            }
        }
    }
}
