//! The journal of a call: what happened, on disk before it is told to anybody, so that neither a cut network nor a
//! killed process loses a sentence or the end of a call.

pub mod entry;
pub mod record;
pub mod told;
