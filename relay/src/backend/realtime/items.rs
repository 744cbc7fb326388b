//! What the agent says: played as it comes, told as far as it was heard.

use ihuza_core::locale::{self, Locale};
use serde_json::json;

use super::super::{LanguageSource, Output, Speaker};
use super::Realtime;
use crate::media::playout::{Heard, ItemId};

/// Items whose end is not known yet.
const MOST_ITEMS: usize = 64;

/// An item of the agent's, until it is known how much of it was heard.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: ItemId,
    pub(super) response: String,
    pub(super) text: String,
    /// Some of it was heard, or will be.
    pub(super) sounds: bool,
    /// The text is whole.
    pub(super) written: bool,
    /// What was heard, once that is known.
    pub(super) heard: Option<(Heard, bool)>,
}

impl Realtime {
    pub(super) fn audio(&mut self, response: String, item: String, delta: &str) {
        if self.cut.as_ref() == Some(&response) {
            return;
        }
        let Some(audio) = self.converter.from_model(delta) else {
            self.out.push_back(Output::Warning("sound of the model's could not be read".into()));
            return;
        };
        if let Some(known) = self.item(&response, &item) {
            known.sounds = true;
            self.out.push_back(Output::Play { item: item.into(), audio });
        }
    }

    pub(super) fn item(&mut self, response: &str, id: &str) -> Option<&mut Item> {
        if let Some(at) = self.items.iter().position(|item| *item.id == *id) {
            return self.items.get_mut(at);
        }
        if self.items.len() == MOST_ITEMS {
            self.items.pop_front();
        }
        self.items.push_back(Item {
            id: id.into(),
            response: response.to_owned(),
            text: String::new(),
            sounds: false,
            written: false,
            heard: None,
        });
        self.items.back_mut()
    }

    pub(super) fn spoken(&mut self, heard: Heard) {
        if let Some(item) = self.items.iter_mut().find(|item| item.id == heard.item) {
            item.heard = Some((heard, false));
        }
        self.settle();
    }

    /// The caller interrupted: tells the model what was heard. The model thinks that it said all of it.
    pub(super) fn was_cut(&mut self, heard: Vec<Heard>) {
        for heard in heard {
            let Some(item) = self.items.iter_mut().find(|item| item.id == heard.item) else { continue };
            item.written |= self.response.as_ref() != Some(&item.response);
            let id = item.id.clone();
            let (played_ms, received_ms) = (heard.played_ms, heard.received_ms);
            item.heard = Some((heard, true));
            let Some(link) = self.active.as_ref().map(|active| active.link) else { continue };
            let message = match played_ms {
                // A truncation to nothing is refused.
                0 => json!({ "type": "conversation.item.delete", "item_id": &*id }),
                _ if played_ms < received_ms => json!({
                    "type": "conversation.item.truncate", "item_id": &*id, "content_index": 0, "audio_end_ms": played_ms,
                }),
                _ => continue,
            };
            self.out.push_back(Output::Send(link, message.to_string()));
        }
        self.settle();
    }

    /// Tells of the items that are written and heard, in their order.
    pub(super) fn settle(&mut self) {
        while let Some(item) = self.items.pop_front_if(|item| item.written && item.heard.is_some()) {
            let Some((heard, interrupted)) = item.heard else { continue };
            let text = if interrupted { heard_part(&item.text, &heard) } else { item.text };
            let locale = detected(&text);
            self.said(Speaker::Agent, text, locale, interrupted);
        }
    }

    pub(super) fn said(
        &mut self,
        speaker: Speaker,
        text: String,
        locale: Option<(Locale, LanguageSource)>,
        interrupted: bool,
    ) {
        if text.trim().is_empty() {
            return;
        }
        self.history.push(speaker, &text);
        self.out.push_back(Output::Said { speaker, text, locale, interrupted });
    }
}

pub(super) fn detected(text: &str) -> Option<(Locale, LanguageSource)> {
    Some((locale::detect(text)?, LanguageSource::Detected))
}

/// The part of a text that was heard, by time: the best guess there is, cut at a word.
pub(super) fn heard_part(text: &str, heard: &Heard) -> String {
    if heard.played_ms >= heard.received_ms {
        return text.to_owned();
    }
    let all = text.chars().count() as u64;
    let kept = all * u64::from(heard.played_ms) / u64::from(heard.received_ms.max(1));
    let cut: String = text.chars().take(kept as usize).collect();
    cut.rsplit_once(char::is_whitespace).map_or(String::new(), |(whole, _)| whole.to_owned())
}
