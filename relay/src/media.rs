//! The media path of one call, without a socket and without a clock: packets in, packets out.
//!
//! `session` puts the parts together. Every other file is one idea and can be read alone.

pub mod comfort_noise;
pub mod concealment;
pub mod dtmf;
pub mod echo;
pub mod g711;
pub mod jitter;
pub mod playout;
pub mod quality;
pub mod resample;
pub mod rtcp;
pub mod rtp;
pub mod session;
pub mod source;
pub mod statistics;
pub mod tape;
pub mod wav;

/// RTP clock ticks in a millisecond: everything on a trunk runs at 8 kHz, telephone events included.
pub const TICKS_PER_MS: u32 = 8;
/// Length of the frames that go to the model and to the trunk.
pub const FRAME_MS: u64 = 20;
/// Samples, and for G.711 also bytes, of one frame.
pub const FRAME_SAMPLES: usize = 160;
