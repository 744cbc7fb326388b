//! Descriptions: what is answered to an offer, what an answer to ours means, and keeping the session alive.

use serde_json::json;

use super::super::log::Level;
use super::super::signalling::{Accepted, Refused};
use super::{Arrival, Running};
use crate::config::Trunk;
use crate::journal::entry::Entry;
use crate::media::source::Network;
use crate::sip::admission::Refusal;
use crate::sip::call;
use crate::sip::description::Policy;
use crate::sip::session_timer::{Interval, SessionTimer};

impl Running {
    pub(super) fn answer(&mut self) {
        let interval = self.start.interval;
        self.answered = true;
        self.start.incoming.dialog.accept(&Accepted {
            description: Some(self.start.description.clone()),
            session_expires: interval.map(|interval| interval.header()),
            require_timer: interval.is_some_and(|interval| interval.is_required()),
        });
        let now = self.now();
        self.timer = interval.map(|interval| SessionTimer::new(now, interval));
        self.shared.metrics.answered(now.since(self.began));
        self.write(Entry::Answered { at_ms: self.at_ms() });
        self.start_media();
    }

    pub(super) fn acknowledged(&mut self, answer: &[u8]) {
        if self.start.agreed.is_none() {
            let (policy_codecs, allowed) = policy_of(&self.start.trunk);
            match self.start.local.accept(answer, Policy { codecs: policy_codecs, allowed: &allowed }) {
                Ok(agreed) => {
                    self.start.agreed = Some(agreed);
                    self.start_media();
                }
                Err(_) => return self.tell_call(call::Input::AnswerRefused),
            }
        } else if !answer.is_empty() {
            self.answered_again(answer);
        }
        self.tell_call(call::Input::Acknowledged);
    }

    /// The offer that a re-INVITE without one asks for: what we have.
    pub(super) fn offer_again(&mut self) -> String {
        let codec = self.start.agreed.map(|agreed| agreed.codec);
        let (codecs, allowed) = policy_of(&self.start.trunk);
        let codecs = codec.as_ref().map_or(codecs, std::slice::from_ref);
        self.start.local.offer(Policy { codecs, allowed: &allowed })
    }

    /// The peer's answer to such an offer. One that cannot be used leaves the session as it was.
    fn answered_again(&mut self, answer: &[u8]) {
        let now = self.now();
        let (codecs, allowed) = policy_of(&self.start.trunk);
        let law = self.law();
        match self.start.local.accept(answer, Policy { codecs, allowed: &allowed }) {
            Ok(agreed) if agreed.codec.law() == law => {
                if let Some(media) = &mut self.media {
                    media.redescribe(now, agreed.remote, agreed.remote_control, agreed.on_hold);
                }
                self.start.agreed = Some(agreed);
            }
            _ => self.log("ANSWER_UNUSABLE", Level::Warn, "an answer to our offer changes nothing", json!({})),
        }
    }

    /// Somebody answers the call that we placed.
    pub(super) fn picked_up(&mut self, answer: &[u8], session_expires: Option<&str>) {
        let early = std::mem::take(&mut self.early_description);
        // An answer that came with the ringing is the answer (RFC 6337 §2.2).
        let answer = if answer.is_empty() { &early } else { answer };
        let (codecs, allowed) = policy_of(&self.start.trunk);
        match self.start.local.accept(answer, Policy { codecs, allowed: &allowed }) {
            Ok(agreed) => self.start.agreed = Some(agreed),
            Err(_) => return self.tell_call(call::Input::AnswerRefused),
        }
        self.answered = true;
        let (now, at_ms) = (self.now(), self.at_ms());
        self.start.interval = session_expires.and_then(Interval::of_answer);
        self.timer = self.start.interval.map(|interval| SessionTimer::new(now, interval));
        self.shared.calls.answered(&self.opening.correlation_id, now, at_ms);
        self.write(Entry::Answered { at_ms });
        self.tell_call(call::Input::PickedUp);
        self.start_media();
    }

    pub(super) fn reoffer(
        &mut self,
        offer: &[u8],
        session_expires: Option<&str>,
        supports_timer: bool,
    ) -> Result<Accepted, Refused> {
        let now = self.now();
        let interval = Interval::of_request(session_expires, supports_timer).map_err(refused)?;
        let mut accepted =
            Accepted { session_expires: interval.map(|interval| interval.header()), ..Accepted::default() };
        accepted.require_timer = interval.is_some_and(|interval| interval.is_required());
        if !offer.is_empty() {
            // A call keeps its codec: what is recorded and what the peer hears is in its law.
            let codec = self.start.agreed.map(|agreed| agreed.codec);
            let (codecs, allowed) = policy_of(&self.start.trunk);
            let codecs = codec.as_ref().map_or(codecs, std::slice::from_ref);
            let (description, agreed) = self
                .start
                .local
                .answer(offer, Policy { codecs, allowed: &allowed })
                .map_err(|_| refused(Refusal::NoCommonCodec))?;
            if let Some(media) = &mut self.media {
                media.redescribe(now, agreed.remote, agreed.remote_control, agreed.on_hold);
            }
            self.start.agreed = Some(agreed);
            self.start.description.clone_from(&description);
            accepted.description = Some(description);
        }
        if let Some(interval) = interval {
            self.start.interval = Some(interval);
            self.timer = Some(SessionTimer::new(now, interval));
        }
        Ok(accepted)
    }

    pub(super) fn refresh(&self) {
        let Some(header) = self.start.interval.as_ref().map(Interval::refresh_header) else { return };
        let (dialog, arrivals) = (self.start.incoming.dialog.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let went_through = dialog.refresh(header).await;
            let _ = arrivals.send(Arrival::Refreshed(went_through)).await;
        });
    }
}

/// What a trunk allows in descriptions.
pub fn policy_of(trunk: &Trunk) -> (&[crate::config::Codec], Vec<Network>) {
    let allowed = trunk.sources.iter().chain(&trunk.media_sources).map(|range| range.0).collect();
    (&trunk.codecs, allowed)
}

/// A refusal as the stack sends it.
pub fn refused(refusal: Refusal) -> Refused {
    let mut headers = Vec::new();
    headers.extend(refusal.retry_after().map(|seconds| ("Retry-After", seconds.to_string())));
    match refusal {
        Refusal::IntervalTooShort => headers.push(("Min-SE", crate::sip::session_timer::MIN_SE.to_string())),
        Refusal::NoCommonCodec => headers.push(("Warning", "305 ihuza \"Incompatible media format\"".into())),
        Refusal::UnsupportedBody => headers.push(("Accept", "application/sdp".into())),
        _ => {}
    }
    Refused { status: refusal.status().unwrap_or(403), headers }
}
