//! Asks the trunks whether they are there, and tells the session function.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use super::log::Level;
use super::relay::Shared;
use super::signalling::Signalling;
use crate::config::{Config, Peer, Trunk};
use crate::journal::told;
use crate::moment::Moment;
use crate::sip::qualify::{Qualifier, Reports, State};

/// The function calls a trunk stale 90 s after its last report.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// Nothing else wakes the task more seldom; a state may change by time alone.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is known of each trunk, in the order of the settings.
#[derive(Debug)]
pub struct Trunks {
    known: Mutex<Vec<Known>>,
    changed: Notify,
}

#[derive(Debug)]
struct Known {
    name: String,
    peer: Option<Peer>,
    qualifier: Qualifier,
    last_call: Option<Moment>,
}

impl Trunks {
    /// Of these settings.
    pub fn new(now: Moment, config: &Config) -> Trunks {
        let known = |trunk: &Trunk| {
            let every = Duration::from_secs(trunk.qualify_seconds);
            let qualifier = Qualifier::new(now, trunk.peer.as_ref().map(|_| every));
            Known { name: trunk.name.clone(), peer: trunk.peer.clone(), qualifier, last_call: None }
        };
        Trunks { known: Mutex::new(config.trunks.iter().map(known).collect()), changed: Notify::new() }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of a trunk's own came.
    pub fn heard(&self, now: Moment, trunk: &str) {
        if let Some(known) = self.known().iter_mut().find(|known| known.name == trunk) {
            known.qualifier.heard(now);
        }
        self.changed.notify_one();
    }

    /// A call began on a trunk, in whichever direction.
    pub fn called(&self, now: Moment, trunk: &str) {
        if let Some(known) = self.known().iter_mut().find(|known| known.name == trunk) {
            known.last_call = Some(now);
        }
    }

    /// Whether a trunk does not answer.
    pub fn is_down(&self, now: Moment, trunk: &str) -> bool {
        let known = self.known();
        known.iter().any(|known| known.name == trunk && matches!(known.qualifier.state(now), State::Down(_)))
    }

    fn states(&self, now: Moment) -> Vec<State> {
        self.known().iter().map(|known| known.qualifier.state(now)).collect()
    }
}

/// Each trunk as it is said to the session function and shown at `/healthz`, where `all` are.
pub fn told(shared: &Shared, all: bool) -> Vec<Value> {
    let now = shared.clock.now();
    let time = |at: Option<Moment>| at.and_then(|at| told::time(shared.clock.unix_ms(at)));
    let known = shared.trunks.known();
    let told = known.iter().filter_map(|known| {
        let state = known.qualifier.state(now);
        (all || Reports::is_told(state)).then(|| {
            json!({
                "name": known.name, "status": state.as_str(), "reason": state.reason(),
                "active_calls": shared.calls_on(&known.name), "last_heard_at": time(known.qualifier.last_life()),
                "last_call_at": time(known.last_call),
            })
        })
    });
    told.collect()
}

enum Arrival {
    Answered(usize, Option<u16>),
    Reported(Result<(), String>),
}

/// Asks and reports in a task of its own, as long as the relay is there.
pub fn watch(shared: Arc<Shared>, signalling: Weak<dyn Signalling>) {
    let (sender, mut arrivals) = mpsc::channel(16);
    let mut reports = Reports::new(shared.clock.now(), REPORT_EVERY);
    tokio::spawn(async move {
        let mut before = shared.trunks.states(shared.clock.now());
        while let Some(signalling) = signalling.upgrade() {
            let now = shared.clock.now();
            ask(&shared, &*signalling, now, &sender);
            drop(signalling);
            let states = shared.trunks.states(now);
            note_changes(&shared, &before, &states);
            if reports.poll(now, &states) {
                report(&shared, &sender);
            }
            before = states;
            let next = shared.trunks.known().iter().filter_map(|known| known.qualifier.next_timeout()).min();
            let wake = [next, reports.next_timeout()].into_iter().flatten().fold(now + LOOK_EVERY, Moment::min);
            tokio::select! {
                () = tokio::time::sleep_until(shared.clock.instant(wake.max(now + Duration::from_millis(10)))) => {}
                () = shared.trunks.changed.notified() => {}
                Some(arrival) = arrivals.recv() => match arrival {
                    Arrival::Answered(at, status) => {
                        if let Some(known) = shared.trunks.known().get_mut(at) {
                            known.qualifier.answered(shared.clock.now(), status);
                        }
                    }
                    Arrival::Reported(result) => {
                        if let (Err(error), false) = (&result, reports.is_failing()) {
                            let message = format!("{error}; it is tried again until it is told");
                            shared.desk.log.event("TRUNK_REPORT_FAILED", Level::Warn, &message, json!({}));
                        }
                        shared.metrics.trunks_reported(result.is_ok());
                        reports.done(shared.clock.now(), result.is_ok());
                    }
                },
            }
        }
    });
}

fn ask(shared: &Shared, signalling: &dyn Signalling, now: Moment, sender: &mpsc::Sender<Arrival>) {
    for (at, known) in shared.trunks.known().iter_mut().enumerate() {
        let Some(peer) = known.peer.as_ref().filter(|_| known.qualifier.poll(now)) else { continue };
        let (ping, sender, within) = (signalling.ping(&peer.0), sender.clone(), known.qualifier.answer_within());
        tokio::spawn(async move {
            let status = tokio::time::timeout(within, ping).await.ok().flatten();
            let _ = sender.send(Arrival::Answered(at, status)).await;
        });
    }
}

fn report(shared: &Arc<Shared>, sender: &mpsc::Sender<Arrival>) {
    let (function, trunks, sender) = (shared.desk.function.clone(), told(shared, false), sender.clone());
    tokio::spawn(async move {
        let result = function.trunks(trunks).await.map_err(|error| error.to_string());
        let _ = sender.send(Arrival::Reported(result)).await;
    });
}

fn note_changes(shared: &Shared, before: &[State], states: &[State]) {
    let known = shared.trunks.known();
    for ((known, before), state) in known.iter().zip(before).zip(states) {
        shared.metrics.trunk(&known.name, *state);
        if before == state {
            continue;
        }
        let level = if matches!(state, State::Down(_)) { Level::Error } else { Level::Info };
        let fields = json!({ "trunk": known.name, "status": state.as_str(), "before": before.as_str(), "reason": state.reason() });
        shared.desk.log.event("TRUNK_CHANGED", level, &format!("trunk {} is {}", known.name, state.as_str()), fields);
    }
}
