//! Where things are done: sockets, timers, files, the clock. Nothing is decided here.

pub mod announcements;
pub mod call;
pub mod calls_api;
pub mod clock;
pub mod gates;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod ledger;
pub mod link;
pub mod log;
pub mod metrics;
pub mod outbound;
pub mod ports;
pub mod recorder;
pub mod relay;
pub mod scribe;
pub mod session_function;
pub mod signalling;
pub mod sip_stack;
pub mod tls;
pub mod trunks;
