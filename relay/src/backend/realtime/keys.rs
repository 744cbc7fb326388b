//! Keys of the telephone, gathered to numbers.

use std::time::Duration;

use ihuza_core::realtime::pressed;
use serde_json::json;

use super::super::Output;
use super::{Realtime, created};
use crate::media::dtmf::Digit;
use crate::moment::Moment;

/// Keys further apart are not one number.
const KEYS_APART: Duration = Duration::from_secs(2);
const MOST_KEYS: usize = 32;
/// Numbers that were ended with `#` and wait for a connection; of more the first are forgotten.
const MOST_NUMBERS: usize = 8;

impl Realtime {
    pub(super) fn key(&mut self, now: Moment, digit: Digit) {
        if self.keys.is_empty() {
            self.cut.clone_from(&self.response);
            self.out.push_back(Output::Flush);
        }
        self.last_key = now;
        match digit.as_char() {
            '*' => self.keys.clear(),
            '#' => self.end_number(now),
            key if self.keys.len() < MOST_KEYS => self.keys.push(key),
            _ => {}
        }
    }

    /// The number that was typed is whole.
    pub(super) fn end_number(&mut self, now: Moment) {
        if !self.keys.is_empty() {
            if self.numbers.len() == MOST_NUMBERS {
                self.numbers.pop_front();
            }
            self.numbers.push_back(std::mem::take(&mut self.keys));
        }
        self.tell_numbers(now);
    }

    /// Numbers that are typed while there is no connection wait for the next one.
    pub(super) fn tell_numbers(&mut self, now: Moment) {
        let Some(link) = self.ready().filter(|_| !self.numbers.is_empty()) else { return };
        for number in std::mem::take(&mut self.numbers) {
            let text = pressed(&number);
            let item =
                json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }] });
            self.out.push_back(Output::Send(link, created(&item)));
        }
        self.ask(now, json!({}));
    }

    /// When a pause ends the number that is being typed. Without a connection it may go on: what is typed after a pause while
    /// nobody listens is still one number.
    pub(super) fn number_ends_at(&self) -> Option<Moment> {
        (!self.keys.is_empty() && self.ready().is_some()).then(|| self.last_key + KEYS_APART)
    }
}
