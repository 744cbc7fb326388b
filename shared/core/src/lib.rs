//! Every rule of Ihuza, as pure functions.
//!
//! Nothing here reads a clock, draws a random number or opens a socket: time, dice and bytes are arguments, decisions
//! are return values, and the shells carry them out. Anything that came over a wire is answered with an error or a
//! smaller value, never with a panic, because one panic aborts every other request of the same wasm instance.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod africas_talking;
pub mod agent;
pub mod alert;
pub mod call_facts;
pub mod callback;
pub mod channel;
pub mod constraint;
pub mod cost;
pub mod error_class;
pub mod flood;
pub mod form;
pub mod guards;
pub mod ids;
pub mod intent;
pub mod json;
pub mod json_text;
pub mod keyword;
pub mod known;
pub mod letters;
pub mod local_format;
pub mod locale;
pub mod log;
pub mod mcp;
pub mod memory;
pub mod mtn;
pub mod openai;
pub mod openai_sip;
pub mod phone;
pub mod policy;
pub mod price;
pub mod problem;
pub mod quiet_hours;
pub mod realtime;
pub mod realtime_event;
pub mod redact;
pub mod retry;
pub mod routing;
pub mod send;
pub mod sideband;
pub mod signature;
pub mod sms;
pub mod spoken;
pub mod status;
pub mod summary;
pub mod timestamp;
pub mod tool;
pub mod turn;
pub mod twilio;
pub mod whatsapp;
pub mod whatsapp_call;
pub mod whatsapp_message;
pub mod whatsapp_template;
