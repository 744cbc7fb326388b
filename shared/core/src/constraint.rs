//! What a named constraint of the database means to whoever sent the value that broke it.
//!
//! Postgres' own words never leave the database client, for they can hold a whole row; a constraint's name is schema, and the
//! name is the rule. The lists name what the requests and RPC arguments of strangers can reach; a test of the schema makes
//! everybody who adds a constraint say whether it belongs here.

use crate::problem::Problem;

/// Rules of one field: the value will not do. The constraint, and the field in the spelling that we write.
pub const FIELDS: &[(&str, &str)] = &[
    ("call_consents_kind_is_known", "kind"),
    ("call_consents_method_is_known", "method"),
    ("call_consents_state_is_known", "state"),
    ("call_notification_resends_reason_is_given", "reason"),
    ("call_summaries_points_is_array", "points"),
    ("call_summaries_source_is_known", "source"),
    ("conversation_messages_channel_is_known", "channel"),
    ("conversation_turns_keyword_is_known", "keyword"),
    ("message_delivery_attempts_outcome_is_known", "outcome"),
    ("message_delivery_log_channel_is_known", "channel"),
    ("message_delivery_log_cost_has_currency", "cost_currency"),
    ("message_delivery_log_direction_is_known", "direction"),
    ("message_delivery_log_error_class_is_known", "error_class"),
    ("message_delivery_log_segments_are_positive", "segments"),
    ("message_delivery_log_status_is_known", "status"),
    ("message_status_events_status_is_known", "status"),
    ("omnichannel_sessions_active_channels_are_known", "channel"),
    ("omnichannel_sessions_primary_channel_is_known", "primary_channel"),
    ("omnichannel_sessions_status_is_known", "status"),
    ("openai_sessions_ordinal_is_positive", "session"),
    ("profiles_last_active_channel_is_known", "channel"),
    ("profiles_phone_number_is_e164", "phone_number"),
    ("transcripts_language_source_is_known", "language_source"),
    ("transcripts_role_is_known", "role"),
    ("trunk_reports_relay_is_short", "relay"),
    ("trunk_reports_state_is_known", "status"),
    ("trunk_reports_trunk_is_a_name", "name"),
    ("voice_calls_direction_is_known", "direction"),
    ("voice_calls_end_cause_is_known", "cause"),
    ("voice_calls_origin_is_known", "origin"),
    ("voice_events_seq_is_positive", "seq"),
    ("voice_events_type_is_a_name", "type"),
];

/// Rules that something is there once: it is there already.
pub const ONCE: &[&str] = &[
    "conversation_messages_inbound_once",
    "mcp_tool_calls_idempotency_key_key",
    "message_delivery_log_idempotency_key_key",
    "message_delivery_log_provider_message_once",
    "message_status_events_dedupe_key_key",
    "omnichannel_sessions_one_open",
    "profile_identities_kind_value_key",
    "profiles_phone_number_key",
];

/// The constraint that Postgres names in the message of an integrity violation (SQLSTATE class 23); nothing else of it.
///
/// ```
/// use ihuza_core::constraint::name_in;
/// let said = "new row for relation \"profiles\" violates check constraint \"profiles_phone_number_is_e164\"";
/// assert_eq!(name_in("23514", said), Some("profiles_phone_number_is_e164"));
/// ```
pub fn name_in<'a>(sqlstate: &str, message: &'a str) -> Option<&'a str> {
    if !matches!(sqlstate, "23503" | "23505" | "23514" | "23P01") {
        return None;
    }
    let (_, after) = message.rsplit_once("constraint \"")?;
    let (name, _) = after.split_once('"')?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let is_name =
        name.len() <= 63 && name.bytes().all(plain) && name.starts_with(|first: char| first.is_ascii_lowercase());
    is_name.then_some(name)
}

/// The problem of breaking the constraint `name`; none where only we ourselves can have broken it.
pub fn problem(name: &str) -> Option<Problem> {
    if let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == name) {
        let detail = ["The value of ", field, " is not allowed"].concat();
        return Some(Problem::invalid_field(field, detail, "docs/api.md says which values are"));
    }
    if ONCE.contains(&name) {
        return Some(Problem::conflict());
    }
    name.ends_with("_fkey").then(Problem::unknown_reference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_name_is_taken_from_postgres_words_and_nothing_else_is() {
        let check = |state: &str, message: &str, expected: Option<&str>| {
            assert_eq!(name_in(state, message), expected, "{message}")
        };
        check(
            "23505",
            "duplicate key value violates unique constraint \"profiles_phone_number_key\"",
            Some("profiles_phone_number_key"),
        );
        check(
            "23503",
            "insert or update on table \"jobs\" violates foreign key constraint \"jobs_client_id_fkey\"",
            Some("jobs_client_id_fkey"),
        );
        check("23514", "new row for relation \"profiles\" violates check constraint \"+250788123456\"", None);
        check("23514", "new row for relation \"profiles\" violates check constraint \"Two words\"", None);
        check("23502", "null value in column \"phone_number\" violates not-null constraint", None);
        check("P0001", "constraint \"profiles_phone_number_key\"", None);
        check("23514", "constraint \"never_closed", None);
    }

    #[test]
    fn each_rule_has_a_problem_of_its_kind() {
        let slug = |name: &str| problem(name).map(|problem| (problem.type_slug, problem.status, problem.field));
        assert_eq!(slug("profiles_phone_number_is_e164"), Some(("invalid-field", 422, Some("phone_number"))));
        assert_eq!(slug("profiles_phone_number_key"), Some(("conflict", 409, None)));
        assert_eq!(slug("message_delivery_log_session_id_fkey"), Some(("unknown-reference", 422, None)));
        assert_eq!(slug("provider_health_open_has_an_end"), None, "nobody outside can break that");
    }

    proptest! {
        #[test]
        fn no_message_gives_more_than_an_identifier(state in "23503|23505|23514|23P01|[0-9A-Z]{5}", before: String, name: String, after: String) {
            let message = format!("{before}constraint \"{name}\"{after}");
            if let Some(found) = name_in(&state, &message) {
                prop_assert!(found.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'));
            }
        }
    }
}
