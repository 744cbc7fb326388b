//! Named constraints and what becomes of them outside: every rule is either told as a problem or cannot be broken by input.

use std::collections::BTreeSet;

use ihuza_core::constraint::{self, FIELDS, ONCE};

use crate::support::{Db, lines, root};

/// What nobody outside can break, and why. A new constraint goes here or into `shared/core/src/constraint.rs`.
const NOT_FROM_INPUT: &[(&str, &[&str])] = &[
    (
        "operators write these tables, and see Postgres' own words",
        &[
            "agent_deployments_client_id_name_key",
            "agent_deployments_one_default",
            "agent_deployments_status_is_known",
            "agent_types_name_is_lower_case",
            "agent_types_name_key",
            "channel_prices_country_is_iso_3166",
            "channel_prices_ends_after_it_begins",
            "channel_prices_for_prefix_or_country",
            "channel_prices_side_is_known",
            "fx_rates_currencies_are_codes",
            "fx_rates_rate_is_positive",
            "number_ranges_country_is_iso_3166",
            "number_ranges_operator_is_a_word",
            "number_ranges_prefix_is_of_numbers",
            "ai_agents_hand_over_is_object",
            "ai_agents_instructions_is_object",
            "ai_agents_slug_is_lower_case",
            "ai_agents_slug_per_client",
            "ai_agents_tools_is_array",
            "ai_agents_voice_instructions_is_object",
            "ai_agents_voice_tools_is_array",
            "client_budgets_currency_is_iso_4217",
            "client_budgets_hard_limit_needs_prices",
            "client_budgets_limits_are_not_negative",
            "client_budgets_prices_are_not_negative",
            "client_budgets_soft_is_below_hard",
            "client_budgets_time_zone_is_known",
            "channel_prices_currency_is_a_code",
            "channel_prices_kind_is_a_word",
            "channel_prices_once",
            "channel_prices_prefix_is_of_numbers",
            "channel_prices_price_is_not_negative",
            "client_members_role_is_known",
            "client_numbers_channel_address_key",
            "client_numbers_channel_is_known",
            "clients_default_policy_is_known",
            "clients_one_default",
            "clients_quiet_hours_are_times",
            "clients_settings_is_object",
            "clients_slug_is_lower_case",
            "clients_slug_key",
            "clients_sms_sender_id_has_at_most_11_characters",
            "erasures_reason_is_a_code",
            "send_limits_are_not_negative",
            "send_limits_group_digits_are_of_a_number",
            "send_limits_prefix_is_of_a_number",
            "message_templates_source_is_known",
            "provider_statements_cost_has_currency",
            "provider_statements_counts_are_counts",
            "provider_statements_month_is_its_first_day",
            "provider_statements_provider_month_currency_key",
            "places_kind_is_known",
            "places_name_is_given",
            "places_once",
            "services_contact_number_is_a_number",
            "services_name_is_given",
        ],
    ),
    (
        "call handlers and sign-up write these over PostgREST, not through a function",
        &[
            "agent_tool_tokens_calls_are_counts",
            "agent_tool_tokens_purpose_is_a_word",
            "agent_tool_tokens_scopes_are_words",
            "idx_profiles_user",
            "idx_voice_calls_mtn_sid",
            "transcripts_call_id_seq_key",
            "voice_calls_origin_provider_call_id_key",
        ],
    ),
    (
        "workflows outside write these over PostgREST, and see Postgres' own words",
        &[
            "agent_calls_cost_has_currency",
            "agent_calls_direction_is_known",
            "agent_calls_duration_is_not_negative",
            "agent_calls_fx_rate_has_date",
            "agent_calls_metadata_is_object",
            "agent_calls_revenue_has_currency",
            "agent_calls_voice_call_id_key",
            "agent_sms_cost_has_currency",
            "agent_sms_delivery_once",
            "agent_sms_encoding_is_known",
            "agent_sms_fx_rate_has_date",
            "agent_sms_metadata_is_object",
            "agent_sms_phone_number_is_e164",
            "agent_sms_provider_message_once",
            "agent_sms_revenue_has_currency",
            "agent_sms_segments_are_positive",
            "agent_sms_status_is_known",
            "prospects_client_id_phone_number_key",
            "prospects_metadata_is_object",
            "prospects_phone_number_is_e164",
            "sequences_client_id_name_key",
        ],
    ),
    (
        "our own SQL chooses the value, or takes what is there by `on conflict`",
        &[
            "agent_sms_reports_cost_has_currency",
            "agent_sms_reports_once",
            "agent_sms_rollups_grain_is_known",
            "agent_sms_totals_grain_is_known",
            "service_words_word_is_a_word",
            "agent_tool_tokens_token_hash_is_sha256",
            "agent_tool_tokens_token_hash_key",
            "kept_opt_outs_channel_is_known",
            "kept_opt_outs_number_hash_is_sha256",
            "memory_extractions_given_up_is_a_code",
            "privacy_requests_kind_is_known",
            "privacy_requests_number_key",
            "privacy_requests_one_open",
            "privacy_requests_state_is_known",
            "privacy_requests_states_say_when",
            "handoffs_are_of_somebody",
            "handoffs_closed_says_when",
            "handoffs_number_key",
            "handoffs_one_open_per_call",
            "handoffs_one_open_per_person",
            "handoffs_reason_is_short",
            "handoffs_state_is_known",
            "handoffs_taken_says_by_whom",
            "handoffs_transfer_outcome_is_known",
            "request_changes_are_of_one_thing",
            "request_changes_changes_is_object",
            "service_requests_budget_has_currency",
            "service_requests_budget_is_not_negative",
            "service_requests_kind_is_a_word",
            "service_requests_number_key",
            "service_requests_state_is_known",
            "service_requests_texts_are_short",
            "transport_bookings_assigned_has_driver",
            "transport_bookings_cancelled_by_is_known",
            "transport_bookings_cancelled_says_by_whom",
            "transport_bookings_number_key",
            "transport_bookings_passengers_are_some",
            "transport_bookings_places_are_given",
            "transport_bookings_price_has_currency",
            "transport_bookings_state_is_known",
            "transport_bookings_texts_are_short",
            "transport_bookings_vehicle_is_known",
            "voice_memories_confidence_is_a_share",
            "voice_memories_kind_is_known",
            "voice_memories_source_is_known",
            "alerts_one_open",
            "alerts_severity_is_known",
            "budget_months_month_is_first_day",
            "call_consents_once",
            "call_notifications_call_id_key",
            "call_notifications_has_recipient",
            "call_notifications_status_is_known",
            "call_summaries_call_id_key",
            "conversation_messages_direction_is_known",
            "conversation_messages_handled_as_is_known",
            "conversation_messages_kind_is_known",
            "conversation_messages_one_answer_per_turn",
            "conversation_messages_role_is_known",
            "conversation_threads_session_id_key",
            "conversation_turns_keyword_belongs_to_its_kind",
            "conversation_turns_kind_is_known",
            "conversation_turns_one_open",
            "conversation_turns_owed_has_an_end",
            "conversation_turns_owed_once",
            "conversation_turns_status_is_known",
            "dead_letter_actions_action_is_known",
            "dead_letter_actions_reason_is_given",
            "dead_letters_queue_message_id_key",
            "jobs_once_pending",
            "jobs_status_is_known",
            "message_delivery_attempts_delivery_id_attempt_key",
            "message_delivery_log_one_fallback",
            "message_delivery_log_waits_until_is_known",
            "message_templates_category_is_a_word",
            "message_templates_client_id_name_language_key",
            "message_templates_language_is_a_code",
            "message_templates_name_is_a_name",
            "message_templates_quality_is_a_word",
            "message_templates_status_is_a_word",
            "message_status_events_source_is_known",
            "notification_requests_status_is_known",
            "omnichannel_sessions_context_is_object",
            "openai_sessions_audio_format_is_known",
            "openai_sessions_call_id_ordinal_key",
            "openai_sessions_status_is_known",
            "profile_identities_kind_is_known",
            "provider_health_open_has_an_end",
            "provider_health_state_is_known",
            "transcription_prices_are_not_negative",
            "reconciled_messages_outcome_is_known",
            "reconciliations_kind_is_known",
            "reconciliations_period_goes_on",
            "reconciliations_provider_kind_period_start_key",
            "reconciliations_status_is_known",
            "trunk_reports_active_calls_are_not_negative",
            "voice_calls_cost_has_currency",
            "voice_events_call_id_seq_key",
            "voice_events_payload_is_object",
            "voice_memories_client_id_profile_id_key_key",
            "voice_memories_key_is_a_name",
            "voice_memories_value_is_short",
            "voice_notes_cost_has_a_currency",
            "voice_notes_message_key_key",
            "voice_notes_status_is_known",
            "wa_threads_client_id_profile_id_key",
            "wa_threads_wa_id_is_digits",
        ],
    ),
];

#[tokio::test]
async fn every_rule_that_input_can_break_has_a_problem_and_stands_in_the_docs() {
    let db = Db::new().await;
    let sql = "select conname::text from pg_constraint where connamespace = 'public'::regnamespace and contype in ('c', 'u', 'x')
               union
               select c.relname::text from pg_index i join pg_class c on c.oid = i.indexrelid
                where c.relnamespace = 'public'::regnamespace and i.indisunique and not i.indisprimary";
    let there: BTreeSet<String> = lines(&db.admin, sql).await.into_iter().collect();
    let told: BTreeSet<String> =
        FIELDS.iter().map(|(name, _)| *name).chain(ONCE.iter().copied()).map(str::to_owned).collect();
    let ours: BTreeSet<String> =
        NOT_FROM_INPUT.iter().flat_map(|(_, names)| *names).map(|&name| name.to_owned()).collect();
    let known: BTreeSet<String> = told.union(&ours).cloned().collect();
    let list = |left: &BTreeSet<String>, right: &BTreeSet<String>| {
        left.difference(right).cloned().collect::<Vec<_>>().join(", ")
    };
    assert_eq!(list(&there, &known), "", "say of these whether input can break them: here, or in constraint.rs");
    assert_eq!(list(&known, &there), "", "these are not in the schema");
    assert!(told.is_disjoint(&ours), "{:?}", told.intersection(&ours));

    let docs = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    for name in &told {
        let problem = constraint::problem(name).unwrap();
        assert!(docs.contains(&format!("`{name}`")), "docs/errors.md does not name {name}");
        assert!(docs.contains(&format!("### {}\n", problem.type_slug)), "docs/errors.md has no {}", problem.type_slug);
    }
}

#[tokio::test]
async fn the_name_is_found_in_what_postgres_really_says() {
    let db = Db::new().await;
    let delivery = "insert into public.message_delivery_log (channel, provider, provider_message_id, session_id)";
    let cases = [
        (
            "insert into public.profiles (phone_number) values ('0788123456')".to_owned(),
            "profiles_phone_number_is_e164",
        ),
        (
            "insert into public.profiles (phone_number) values ('+250788123456'), ('+250788123456')".to_owned(),
            "profiles_phone_number_key",
        ),
        (format!("{delivery} values ('fax', 'mtn', '1', null)"), "message_delivery_log_channel_is_known"),
        (
            format!("{delivery} values ('sms', 'mtn', '1', null), ('sms', 'mtn', '1', null)"),
            "message_delivery_log_provider_message_once",
        ),
        (format!("{delivery} values ('sms', 'mtn', '1', gen_random_uuid())"), "message_delivery_log_session_id_fkey"),
    ];
    for (sql, expected) in cases {
        let error = db.service.batch_execute(&sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        let name = constraint::name_in(error.code().code(), error.message());
        assert_eq!(name, Some(expected), "{}", error.message());
        assert_eq!(name, error.constraint(), "as Postgres names it to those who ask it directly");
        assert!(constraint::problem(expected).is_some(), "{expected}");
    }
}
