//! End to end, in one binary: the functions on the real edge runtime, and the local world that is around them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on should stop where it is")]

/// Are the world's parts as strict, and as faulty on order, as what they stand for?
mod world {
    mod data;
    mod edge;
    mod path;
}
