//! The Worker shell: everything that touches the Workers runtime, so that `ihuza-core` need not.
//!
//! It moves bytes and carries out decisions; it takes none. Requests come in through [`endpoint`], work is put away by
//! [`queue`] and taken up by [`consume`]; [`database`] is the only way to Postgres and [`delivery`] the only way to a
//! carrier.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

pub mod at_once;
pub mod carrier;
pub mod claim;
pub mod config;
pub mod consume;
pub mod context;
pub mod database;
pub mod decision;
pub mod delivery;
pub mod endpoint;
pub mod flood;
pub mod host;
pub mod incoming;
pub mod model;
pub mod mtn;
pub mod outbox;
pub mod outgoing;
pub mod pause;
pub mod queue;
pub mod reply;
pub mod settings;
pub mod shell;
pub mod status;
pub mod tool;
pub mod voice;
pub mod whatsapp;
