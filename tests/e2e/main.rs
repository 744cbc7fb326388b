//! End to end, in one binary: the functions on the real edge runtime, and the local world that is around them.

#![recursion_limit = "256"]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on should stop where it is"
)]

mod alerts;
mod carriers;
mod channel_policy;
mod chores;
mod counting;
mod crashes;
mod doors;
mod faults;
mod faults_of_the_database;
mod faults_of_the_model;
mod floods;
mod forgotten;
mod guards;
mod handoffs;
mod hostile;
mod journeys;
mod keywords;
mod logs;
mod many;
mod mcp;
mod memories;
mod notify;
mod openai_sip;
mod openapi;
mod outage;
mod phone;
mod reconciliation;
mod reports;
mod ride;
mod scenarios;
mod shell;
mod sms_alone;
mod stage;
mod texts;
mod tools;
mod turns;
mod voice;
mod whatsapp;
mod writers;

/// Are the world's parts as strict, and as faulty on order, as what they stand for?
mod world {
    mod data;
    pub mod edge;
    mod path;
}
