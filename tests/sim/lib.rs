//! The outside world on one machine: Postgres, PostgREST behind its gateway, MTN, WhatsApp, OpenAI and the edge runtime.
//!
//! `cargo xtask dev`, `demo` and `bench` and the end-to-end tests all talk to it.

pub mod callback;
pub mod control;
pub mod database;
pub mod edge;
pub mod error;
pub mod gateway;
pub mod http;
pub mod keys;
pub mod migrate;
pub mod mtn;
pub mod postgres;
pub mod postgrest;
pub mod process;
pub mod runtime;
pub mod whatsapp;
pub mod world;
