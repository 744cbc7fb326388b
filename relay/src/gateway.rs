//! Gateways that bring a call over a WebSocket, `/mtn-media`, in the messages that most vendors share. What they send
//! becomes packets of the call at our door, so that everything behind it is the same as for a call over SIP.

pub mod message;
pub mod played;
pub mod stream;
pub mod token;
