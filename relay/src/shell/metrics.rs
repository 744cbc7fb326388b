//! Figures for Prometheus. Every label value is there from the start, so that an alert can tell zero from never.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::media::session::Report;
use crate::sip::admission::{REFUSALS, Refusal};
use crate::sip::call::{END_CAUSES, EndCause};
use crate::sip::outbound::{NOT_PLACED, NotPlaced};
use crate::sip::qualify::{STATES, State};

type Labelled = Family<[(&'static str, &'static str); 1], Counter>;

/// All figures of the relay.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ended: Labelled,
    refused: Labelled,
    running: Gauge,
    mean_opinion_score: Histogram,
    answer_seconds: Histogram,
    packets_received: Counter,
    packets_foreign: Counter,
    packets_lost: Counter,
    concealed_ms: Counter,
    interruptions: Counter,
    trunks: Family<[(&'static str, String); 2], Gauge>,
    trunk_reports: Labelled,
    journal_failures: Counter,
    journal_failing: Gauge,
    untold: Gauge,
    placed: Counter,
    not_placed: Labelled,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("ihuza_relay"),
            ended: Labelled::default(),
            refused: Labelled::default(),
            running: Gauge::default(),
            mean_opinion_score: Histogram::new([1.5, 2.0, 2.5, 3.0, 3.6, 4.0, 4.2, 4.3, 4.4]),
            answer_seconds: Histogram::new([0.02, 0.06, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0]),
            packets_received: Counter::default(),
            packets_foreign: Counter::default(),
            packets_lost: Counter::default(),
            concealed_ms: Counter::default(),
            interruptions: Counter::default(),
            trunks: Family::default(),
            trunk_reports: Labelled::default(),
            journal_failures: Counter::default(),
            journal_failing: Gauge::default(),
            untold: Gauge::default(),
            placed: Counter::default(),
            not_placed: Labelled::default(),
        };
        for cause in END_CAUSES {
            drop(metrics.ended.get_or_create(&[("cause", cause.as_str())]));
        }
        for refusal in REFUSALS {
            drop(metrics.refused.get_or_create(&[("reason", refusal.as_str())]));
        }
        for reason in NOT_PLACED {
            drop(metrics.not_placed.get_or_create(&[("reason", reason.as_str())]));
        }
        for outcome in ["stored", "failed"] {
            drop(metrics.trunk_reports.get_or_create(&[("outcome", outcome)]));
        }
        let registry = &mut metrics.registry;
        registry.register("calls_ended", "Calls that ended, by cause", metrics.ended.clone());
        registry.register("calls_refused", "Calls that were not let in, by reason", metrics.refused.clone());
        registry.register("calls_running", "Calls that run", metrics.running.clone());
        registry.register("call_mos", "Estimated mean opinion score of a call", metrics.mean_opinion_score.clone());
        registry.register("answer_seconds", "From INVITE to 200", metrics.answer_seconds.clone());
        registry.register("rtp_received", "RTP packets taken", metrics.packets_received.clone());
        registry.register("rtp_foreign", "RTP packets of strangers, dropped", metrics.packets_foreign.clone());
        registry.register("rtp_lost", "RTP packets given up", metrics.packets_lost.clone());
        registry.register("rtp_concealed_ms", "Sound made up for lost packets", metrics.concealed_ms.clone());
        registry.register("interruptions", "Times that a caller interrupted the agent", metrics.interruptions.clone());
        registry.register("journal_failures", "Entries that the disk refused", metrics.journal_failures.clone());
        registry.register("journal_failing", "1 while the disk refuses the journal", metrics.journal_failing.clone());
        registry.register(
            "calls_untold",
            "Calls that are over and of which the session function could not be told yet",
            metrics.untold.clone(),
        );
        registry.register("calls_placed", "Calls that were placed", metrics.placed.clone());
        registry.register(
            "calls_not_placed",
            "Calls that were asked for and not placed, by reason",
            metrics.not_placed.clone(),
        );
        registry.register("trunk_state", "1 for the state that a trunk is in", metrics.trunks.clone());
        registry.register("trunk_reports", "Reports on the trunks, by outcome", metrics.trunk_reports.clone());
        metrics
    }
}

impl Metrics {
    /// A call begins.
    pub fn began(&self) {
        self.running.inc();
    }

    /// A call was answered.
    pub fn answered(&self, after: std::time::Duration) {
        self.answer_seconds.observe(after.as_secs_f64());
    }

    /// The caller interrupted.
    pub fn interrupted(&self) {
        self.interruptions.inc();
    }

    /// A call is over.
    pub fn ended(&self, cause: EndCause, media: Option<&Report>) {
        self.running.dec();
        self.ended.get_or_create(&[("cause", cause.as_str())]).inc();
        let Some(media) = media else { return };
        self.mean_opinion_score.observe(media.mean_opinion_score);
        self.packets_received.inc_by(media.received);
        self.packets_foreign.inc_by(media.foreign);
        self.packets_lost.inc_by(media.counts.lost);
        self.concealed_ms.inc_by(media.concealed_ms);
    }

    /// A call was not let in.
    pub fn refused(&self, refusal: Refusal) {
        self.refused.get_or_create(&[("reason", refusal.as_str())]).inc();
    }

    /// How the journal is: what its disk refused so far, and whether it does now.
    pub fn journal(&self, failures: u64, failing: bool) {
        self.journal_failures.inc_by(failures.saturating_sub(self.journal_failures.get()));
        self.journal_failing.set(failing.into());
    }

    /// Calls that are over and of which the function could not be told yet.
    pub fn untold(&self, calls: usize) {
        self.untold.set(i64::try_from(calls).unwrap_or(i64::MAX));
    }

    /// A call is placed.
    pub fn placed(&self) {
        self.placed.inc();
    }

    /// A call that was asked for is not placed.
    pub fn not_placed(&self, reason: NotPlaced) {
        self.not_placed.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// How a trunk is; every state has a value.
    pub fn trunk(&self, trunk: &str, state: State) {
        for word in STATES {
            let labels = [("trunk", trunk.to_owned()), ("state", word.to_owned())];
            self.trunks.get_or_create(&labels).set(i64::from(word == state.as_str()));
        }
    }

    /// A report on the trunks was stored, or was not.
    pub fn trunks_reported(&self, stored: bool) {
        self.trunk_reports.get_or_create(&[("outcome", if stored { "stored" } else { "failed" })]).inc();
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_is_there_before_anything_happened() {
        let text = Metrics::default().render();
        for cause in END_CAUSES {
            assert!(
                text.contains(&format!("ihuza_relay_calls_ended_total{{cause=\"{}\"}} 0", cause.as_str())),
                "{text}"
            );
        }
        for refusal in REFUSALS {
            assert!(text.contains(&format!("reason=\"{}\"}} 0", refusal.as_str())), "{text}");
        }
    }

    #[test]
    fn running_calls_go_up_and_down_again() {
        let metrics = Metrics::default();
        metrics.began();
        assert!(metrics.render().contains("ihuza_relay_calls_running 1"));
        metrics.ended(EndCause::CallerHungUp, None);
        let text = metrics.render();
        assert!(text.contains("calls_running 0") && text.contains("cause=\"caller_hung_up\"} 1"), "{text}");
    }
}
