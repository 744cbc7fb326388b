//! Where things are done: sockets, timers, files, the clock. Nothing is decided here.

pub mod clock;
pub mod journal;
