//! The media relay: a phone call on one side, a speaking model on the other.
//!
//! `media`, `sip`, `backend` and `journal::record` decide and never do: packets, messages and the time go in, packets,
//! messages and the time of the next look come out. `shell` owns sockets, timers and files and decides nothing.

#![warn(missing_docs)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)
)]

pub mod backend;
pub mod config;
pub mod gateway;
pub mod journal;
pub mod media;
pub mod moment;
pub mod shell;
pub mod sip;
