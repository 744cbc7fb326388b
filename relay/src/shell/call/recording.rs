//! On a trunk that records: the announcement, the consent, and the recording behind it.

use std::time::Duration;

use serde_json::json;

use super::super::announcements::Announcement;
use super::super::log::Level;
use super::super::scribe;
use super::{Arrival, Running};
use crate::journal::entry::Entry;
use crate::media::dtmf::Digit;
use crate::media::playout::ItemId;
use crate::media::session::Session;
use crate::sip::consent::{self, Consent};

impl Running {
    /// Says that the call is recorded; the recording begins behind it.
    pub(super) fn ask_consent(&mut self) {
        let (now, law) = (self.now(), self.law());
        // The call's language may be one that the trunk's announcements lack.
        let locales = [self.opening.locale, self.start.did.locale.0];
        let words = |locale| Some((locale, self.shared.announcements.spoken(Announcement::Consent, locale, law)?));
        let Some((locale, sound)) = locales.into_iter().find_map(words) else {
            return self.log("RECORDING_REFUSED", Level::Error, "there is no announcement: not recorded", json!({}));
        };
        let wait = Duration::from_millis(self.shared.config.recording.refusal_wait_ms);
        let refuse_key = self.start.trunk.refuse_key.and_then(Digit::from_char);
        self.consent = Some(Consent::new(locale, refuse_key, wait));
        if let Some(media) = &mut self.media {
            media.announce(now, &ItemId::from(Announcement::Consent.as_str()), sound.into());
        }
    }

    pub(super) fn do_for_consent(&mut self, output: consent::Output) {
        match output {
            consent::Output::Keep(state) => {
                let locale = self.consent.as_ref().map_or(self.opening.locale, |consent| consent.locale);
                let (line, kept) = scribe::Line::kept(Entry::Consent { state, locale, at_ms: self.at_ms() });
                self.log("RECORDING_CONSENT", Level::Info, state.as_str(), json!({ "state": state.as_str() }));
                self.write_line(line);
                if state == consent::State::Announced {
                    let arrivals = self.arrivals.clone();
                    tokio::spawn(async move {
                        let certain = kept.await.unwrap_or(false);
                        let _ = arrivals.send(Arrival::ConsentKept(certain)).await;
                    });
                }
            }
            consent::Output::Record => {
                let Some(recorder) = &self.shared.recorder else { return };
                match recorder.begin(&self.opening.correlation_id, self.law()) {
                    Ok(recording) => {
                        self.write(Entry::Recording { file: recording.file(), at_ms: self.at_ms() });
                        self.recording = Some(recording);
                        if let Some(media) = &mut self.media {
                            media.record();
                        }
                    }
                    Err(error) => self.log("RECORDING_FAILED", Level::Error, &error.to_string(), json!({})),
                }
            }
        }
    }

    pub(super) fn recorded(&mut self, sound: Vec<u8>) {
        if let Some(Err(error)) = self.recording.as_mut().map(|recording| recording.append(sound)) {
            self.log("RECORDING_FAILED", Level::Error, &error.to_string(), json!({}));
            self.end_recording(Some(error.to_string()));
        }
    }

    pub(super) fn end_recording(&mut self, failure: Option<String>) {
        let rest = self.media.as_mut().map(Session::stop_recording).unwrap_or_default();
        let Some(mut recording) = self.recording.take() else { return };
        let failure = failure.or_else(|| recording.append(rest).err().map(|error| error.to_string()));
        let (file, duration_ms) = (recording.file(), recording.duration_ms());
        self.write(Entry::Recorded { file, duration_ms, failure, at_ms: self.at_ms() });
    }

    pub(super) fn is_announcing_consent(&self) -> bool {
        self.consent.as_ref().is_some_and(Consent::is_announcing)
    }
}
