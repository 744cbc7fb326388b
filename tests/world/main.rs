//! The local world itself: are its parts as strict, and as faulty on order, as what they stand for?

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should stop where it is"
)]

mod data;
