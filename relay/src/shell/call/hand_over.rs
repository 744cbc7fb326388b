//! Handing a call over to somebody else, for a tool that asks for it or because the model is gone.

use ihuza_core::phone::E164;
use serde_json::{Value, json};

use super::super::log::Level;
use super::{Arrival, Running};
use crate::backend;
use crate::journal::entry::Entry;
use crate::sip::call;
use crate::sip::transfer::{self, Outcome, Transfer};

/// Where a tool's answer says whom the call is to be handed over to.
const TRANSFER_TO: &str = "transfer_to";

/// A call that is being handed over, for a use of a tool that waits for the outcome.
pub(super) struct HandOver {
    pub(super) call_id: String,
    pub(super) number: E164,
    /// None while the agent still speaks.
    pub(super) transfer: Option<Transfer>,
}

impl Running {
    pub(super) fn transfer(&self) -> Option<&Transfer> {
        self.hand_over.as_ref().and_then(|hand_over| hand_over.transfer.as_ref())
    }

    /// Asks the trunk to take the call over, as soon as the agent has said what it had to say.
    pub(super) fn refer_when_silent(&mut self) {
        let now = self.now();
        let speaks = self.is_speaking();
        let Some(hand_over) = self.hand_over.as_mut().filter(|hand_over| hand_over.transfer.is_none() && !speaks)
        else {
            return;
        };
        hand_over.transfer = Some(Transfer::new(now));
        let number = hand_over.number.as_str().to_owned();
        let (dialog, arrivals) = (self.start.incoming.dialog.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let status = dialog.refer(number).await;
            let _ = arrivals.send(Arrival::Referred(status)).await;
        });
    }

    pub(super) fn handed_over(&mut self, outcome: Outcome) {
        let Some(hand_over) = self.hand_over.take() else { return };
        let (word, status) = match outcome {
            Outcome::Confirmed => ("confirmed", None),
            Outcome::Failed(status) => ("failed", Some(status)),
            Outcome::Unknown => ("unknown", None),
        };
        self.log("TRANSFER_ENDED", Level::Info, word, json!({ "outcome": word, "status": status }));
        self.write(Entry::Transferred { outcome: word.into(), status, at_ms: self.at_ms() });
        let output = json!({ "status": word }).to_string();
        self.tell_model(backend::Input::ToolResult { call_id: hand_over.call_id, output });
        self.tell_call(match outcome {
            Outcome::Confirmed => call::Input::Transferred,
            Outcome::Failed(_) | Outcome::Unknown => call::Input::NotTransferred,
        });
    }

    /// The model is gone, and the caller has heard so: somebody else is asked to take the call. A hand-over that is under
    /// way already is as good.
    pub(super) fn hand_over_instead(&mut self) {
        let Some(crate::config::Number(number)) = self.start.trunk.fallback.clone() else { return };
        if self.hand_over.is_none() {
            self.hand_over = Some(HandOver { call_id: String::new(), number, transfer: None });
        }
        self.refer_when_silent();
    }

    pub(super) fn wants_transfer(&self, output: &str) -> Option<E164> {
        let output: Value = serde_json::from_str(output).ok()?;
        let wished = output.get("result")?.get(TRANSFER_TO)?.as_str()?;
        let allowed = transfer::target(wished, &self.start.trunk.transfer_prefixes);
        if allowed.is_none() {
            self.log(
                "TRANSFER_REFUSED",
                Level::Error,
                "the trunk's transfer_prefixes do not allow that number",
                json!({}),
            );
        }
        allowed
    }
}
