//! What was observed of the calls while it was measured.

use serde::Serialize;

use crate::clock::{MS, Nanos};

/// Delays in milliseconds.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Delays(Vec<f64>);

impl Delays {
    pub fn push(&mut self, nanos: Nanos) {
        self.0.push(nanos as f64 / MS as f64);
    }
}

/// Everything; the phases of a run each begin with a new one.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Observed {
    /// RTP of the caller's sent, until its WebSocket message arrived.
    pub rtp_to_websocket: Delays,
    /// As before, of the first 60 ms of an interruption alone: until the relay's echo guard knows that it is a voice and not
    /// an echo of the agent's, it holds what it hears.
    pub rtp_to_websocket_interrupting: Delays,
    /// First sound of a turn sent by the model, until its first packet arrived.
    pub delta_to_rtp: Delays,
    /// Both of one turn added: what the relay costs in a turn of speaking.
    pub media_path: Delays,
    /// `speech_started` sent by the model, until the last packet with the agent's voice arrived.
    pub interruption: Delays,
    /// How far gaps between packets are from 20 ms, within silence and within talk.
    pub jitter: Delays,
    /// As `jitter`, also where a talk spurt begins off the grid on purpose.
    pub jitter_with_starts: Delays,
    /// INVITE sent, until 200 arrived.
    pub answer: Delays,
    pub calls_begun: u64,
    pub calls_answered: u64,
    pub calls_ended: u64,
    /// Refused, ended by the relay, or not answered.
    pub calls_failed: u64,
    /// Why, the first few.
    pub failures: Vec<String>,
    /// SIP requests that had to be sent again.
    pub sip_again: u64,
    pub rtp_sent: u64,
    pub rtp_received: u64,
    /// Caller's frames with a mark, sent and heard by the model.
    pub marked_sent: u64,
    pub marked_heard: u64,
    /// The generator's own sends that were more than 5 ms late.
    pub late_ticks: u64,
    pub longest_late_ms: f64,
}

impl Observed {
    pub fn failed(&mut self, why: String) {
        self.calls_failed += 1;
        if self.failures.len() < 8 {
            self.failures.push(why);
        }
    }

    pub fn late(&mut self, by: Nanos) {
        if by > 5 * MS {
            self.late_ticks += 1;
        }
        self.longest_late_ms = self.longest_late_ms.max(by as f64 / MS as f64);
    }
}
