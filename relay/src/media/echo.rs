//! The echo guard: while the agent speaks, what comes back from a telephone and is quieter than an echo could be is not
//! the caller. Without it the agent hears itself, takes it for an interruption, and stops in the middle of a word.
//!
//! It compares levels, not waveforms: a loud frame must be louder than the loudest the agent has lately said, less the
//! guard. Frames that are held back while nobody knows yet are not lost: they go on before the one that decided.

use std::collections::VecDeque;
use std::time::Duration;

use crate::moment::Moment;

/// An echo comes back within this time: network, jitter buffers, and a telephone on the table.
const ECHO_TAIL: Duration = Duration::from_millis(400);
/// That many loud frames in a row are a voice: 60 ms.
const VOICE_FRAMES: usize = 3;
/// Once it is the caller, the pauses between words do not close the guard.
const STAYS_OPEN: Duration = Duration::from_millis(400);
/// Quieter than this is silence, echo or not; mean square of 16-bit samples (about -54 dBm0).
const SILENCE_POWER: f32 = 40.0 * 40.0;

/// What becomes of a frame of the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate<T> {
    /// These go on, in order: frames held back, then the present one.
    Pass(Vec<T>),
    /// Silence goes on instead.
    Mute,
}

/// The guard of one call.
#[derive(Debug)]
pub struct EchoGuard<T> {
    /// An echo is held to be at most this part of what was said, as power.
    echo_part: f32,
    /// Powers of the frames that left for the caller, with their times.
    said: VecDeque<(Moment, f32)>,
    held: VecDeque<T>,
    open_until: Moment,
    /// Frames that were muted.
    pub muted: u64,
}

impl<T> EchoGuard<T> {
    /// `echo_db` is the loudest an echo may be against what was said, as in -6.
    pub fn new(echo_db: f32) -> EchoGuard<T> {
        EchoGuard {
            echo_part: 10_f32.powf(echo_db / 10.0),
            said: VecDeque::new(),
            held: VecDeque::new(),
            open_until: Moment::default(),
            muted: 0,
        }
    }

    /// A frame of the agent's left for the caller.
    pub fn said(&mut self, now: Moment, samples: impl Iterator<Item = i16>) {
        self.forget(now);
        self.said.push_back((now, power(samples)));
    }

    /// A frame of the caller's.
    pub fn heard(&mut self, now: Moment, samples: impl Iterator<Item = i16>, frame: T) -> Gate<T> {
        self.forget(now);
        let loudest = self.said.iter().map(|(_, power)| *power).fold(0.0, f32::max);
        let open = now < self.open_until;
        if loudest < SILENCE_POWER {
            self.held.clear();
            return Gate::Pass(vec![frame]);
        }
        let loud = power(samples) > (loudest * self.echo_part).max(SILENCE_POWER);
        if !loud {
            self.held.clear();
            if open {
                return Gate::Pass(vec![frame]);
            }
            self.muted += 1;
            return Gate::Mute;
        }
        self.held.push_back(frame);
        if open || self.held.len() >= VOICE_FRAMES {
            self.open_until = now + STAYS_OPEN;
            return Gate::Pass(self.held.drain(..).collect());
        }
        self.muted += 1;
        Gate::Mute
    }

    /// The agent was silenced: what it said before may still come back.
    fn forget(&mut self, now: Moment) {
        while self.said.pop_front_if(|(at, _)| now.since(*at) > ECHO_TAIL).is_some() {}
    }
}

fn power(samples: impl Iterator<Item = i16>) -> f32 {
    let (sum, count) =
        samples.fold((0.0, 0.0), |(sum, count): (f32, f32), sample| (sum + f32::from(sample).powi(2), count + 1.0));
    if count == 0.0 { 0.0 } else { sum / count }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A voice of words and pauses: loud for 300 ms, then quiet for 100.
    fn voice(frame: u64, level: f32) -> Vec<i16> {
        let loud = frame % 20 < 15;
        (0..160).map(|n| if loud { (level * (n as f32 * 0.4).sin()) as i16 } else { 0 }).collect()
    }

    /// The agent speaks for four seconds; the caller from the second one on, at that level. Frames that came through
    /// before the caller spoke, and of those after.
    fn both(echo_db: f32, delay_frames: u64, caller_level: f32) -> (usize, usize) {
        let mut guard = EchoGuard::new(-6.0);
        let (mut before, mut after) = (0, 0);
        for n in 0..200 {
            let now = Moment::from_millis(n * 20);
            guard.said(now, voice(n, 8000.0).into_iter());
            let mut mixed = vec![0_i16; 160];
            if n >= delay_frames {
                let gain = 10_f32.powf(echo_db / 20.0);
                mixed = voice(n - delay_frames, 8000.0 * gain);
            }
            let speaks = n >= 100;
            if speaks {
                for (sample, own) in mixed.iter_mut().zip(voice(n + 3, caller_level)) {
                    *sample = sample.saturating_add(own);
                }
            }
            if let Gate::Pass(frames) = guard.heard(now, mixed.clone().into_iter(), n) {
                *(if speaks { &mut after } else { &mut before }) += frames.len();
            }
        }
        (before, after)
    }

    #[test]
    fn no_echo_is_taken_for_the_caller_at_any_level_or_delay() {
        for echo_db in [-6.5, -12.0, -20.0, -30.0] {
            for delay_frames in [1, 5, 10, 20] {
                assert_eq!(both(echo_db, delay_frames, 0.0).0, 0, "{echo_db} dB after {delay_frames} frames");
            }
        }
    }

    #[test]
    fn the_caller_is_heard_through_the_agent_and_its_echo() {
        for echo_db in [-12.0, -20.0, -30.0] {
            let (before, after) = both(echo_db, 8, 8000.0);
            assert!(before == 0 && after >= 90, "{echo_db} dB: {before} before, {after} of 100 after");
        }
    }

    #[test]
    fn the_first_frames_of_the_caller_are_not_lost() {
        let mut guard = EchoGuard::new(-6.0);
        let loud = || [8000_i16; 160].into_iter();
        let at = Moment::from_millis;
        guard.said(at(0), loud());
        assert_eq!(guard.heard(at(10), loud(), 1), Gate::Mute);
        assert_eq!(guard.heard(at(30), loud(), 2), Gate::Mute);
        assert_eq!(guard.heard(at(50), loud(), 3), Gate::Pass(vec![1, 2, 3]));
        assert_eq!(guard.heard(at(70), [0; 160].into_iter(), 4), Gate::Pass(vec![4]), "a pause between words");
    }

    #[test]
    fn without_the_agent_everything_passes() {
        let mut guard = EchoGuard::new(-6.0);
        assert_eq!(guard.heard(Moment::default(), [3; 160].into_iter(), 1), Gate::Pass(vec![1]));
        guard.said(Moment::default(), [8000; 160].into_iter());
        assert_eq!(guard.heard(Moment::from_millis(401), [900; 160].into_iter(), 2), Gate::Pass(vec![2]));
    }
}
