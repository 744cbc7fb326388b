//! What we decide of SIP ourselves, without a socket and without a clock: who may call, what an offer is answered with,
//! what state a call is in. Parsing, transactions and transport belong to the stack, which only the shell knows.

pub mod admission;
pub mod call;
pub mod consent;
pub mod description;
pub mod digest;
pub mod outbound;
pub mod precheck;
pub mod qualify;
pub mod session_timer;
pub mod transfer;
