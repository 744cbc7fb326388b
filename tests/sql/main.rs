//! The database by itself: migrations, schema, rights, rules under a lock, and the plans of its queries.
//!
//! Every test has a copy of the migrated database on one real server; nothing else of the local world runs, but PostgREST
//! where a key is tried. Time is the
//! RPCs' argument `now`, so nobody sleeps. Environment:
//!
//! - `IHUZA_UPDATE=1` rewrites the stored snapshots (`*.snap`) from what is found; look at the difference before you commit.
//! - `PROPTEST_CASES=n` and `IHUZA_SEED=n` set how many cases the model tests try, and which.
//! - `IHUZA_IN_FULL=1` runs whole what else is a sample: orders of reports, people, repeated webhooks. It takes an hour.
//! - `IHUZA_SQL_MUTANT=file.sql` runs a file in each fresh database first: break a rule and see which test notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on should stop where it is"
)]

mod supabase_cli;
mod support;

mod agent_sms;
mod agent_tool_tokens;
mod agents;
mod alerts;
mod budget;
mod channel_policy;
mod claims;
mod codes;
mod constraints;
mod dead_letters;
mod deliveries;
mod documents;
mod erasure;
mod evidence;
mod first_pricing;
mod fold;
mod forgotten;
mod guards;
mod handoffs;
mod limits;
mod lints;
mod memories;
mod metrics;
mod migrations;
mod n8n;
mod openai_sip;
mod opt_out;
mod orders;
mod owed_answers;
mod parallel;
mod people;
mod plans;
mod quiet_hours;
mod reconciliation;
mod repeats;
mod resend;
mod rls;
mod schema;
mod seeds;
mod smoke;
mod sms_plans;
mod sms_prices;
mod sms_reports;
mod sms_retention;
mod sms_rollups;
mod sms_writers;
mod statement_times;
mod success_metrics;
mod templates;
mod tools;
mod voice;
mod voice_notes;
mod whatsapp_turns;
