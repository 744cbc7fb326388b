//! The outside world on one machine: Postgres, PostgREST behind its gateway, MTN, WhatsApp, OpenAI the edge runtime,
//! and, where one is wanted, the media relay with a telephone to call it.
//!
//! `cargo xtask dev`, `demo` and `bench` and the end-to-end tests all talk to it.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::panic,
        reason = "a test that cannot go on should stop where it is"
    )
)]

pub mod agents;
pub mod callback;
pub mod control;
pub mod database;
pub mod edge;
pub mod error;
pub mod evaluation;
pub mod gateway;
pub mod http;
pub mod keys;
pub mod migrate;
pub mod mtn;
pub mod openai;
pub mod phone;
pub mod postgres;
pub mod postgrest;
pub mod process;
pub mod relay;
pub mod runtime;
pub mod speech;
pub mod twilio;
pub mod verbs;
pub mod whatsapp;
pub mod world;
