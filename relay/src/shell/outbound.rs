//! Calls that this relay was asked to place: what was asked for, what became of it, and their way to the trunk.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ihuza_core::locale::Locale;
use ihuza_core::phone::E164;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::call::{self, Start, dice, policy_of};
use super::ledger::{Ledger, Line};
use super::log::Level;
use super::relay::Shared;
use super::session_function::Opening;
use super::signalling::{Outgoing, Signalling};
use crate::config::Amount;
use crate::journal::entry::{Direction, Origin};
use crate::journal::told;
use crate::moment::Moment;
use crate::sip::admission::Admitted;
use crate::sip::call::EndCause;
use crate::sip::description::{Local, Policy};
use crate::sip::outbound::{Granted, NotPlaced, Outbound, day_of};

/// Calls that are remembered; the eldest that has ended is forgotten first.
const MOST_REMEMBERED: usize = 10_000;

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Whom to call.
    pub to: E164,
    /// On which trunk; the number decides if it is left out.
    pub trunk: Option<String>,
    /// Which agent speaks; that of the number that is shown, if it is left out.
    pub agent: Option<String>,
    /// In which language it begins.
    pub locale: Option<Locale>,
    /// The asker's own name for the call; it goes into the record.
    pub reference: Option<String>,
    /// How long the telephone may ring; no longer than the trunk's own limit.
    pub ring_seconds: Option<u64>,
}

/// A call as `GET /calls/<id>` shows it.
#[derive(Debug, Clone, Default)]
struct Placed {
    request: String,
    call_sid: String,
    to: Option<E164>,
    from: Option<E164>,
    trunk: String,
    agent: String,
    locale: Option<Locale>,
    reference: Option<String>,
    status: &'static str,
    cause: Option<EndCause>,
    sip_status: Option<u16>,
    placed_ms: i64,
    answered: Option<(Moment, i64)>,
    ended_ms: Option<i64>,
    cost: Option<u64>,
    hang_up: Option<mpsc::Sender<()>>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<String, Placed>,
    /// Ids by the hash of the key that they were asked for with.
    by_key: HashMap<String, String>,
    order: VecDeque<(String, String)>,
}

/// All calls that were asked for.
pub struct Calls {
    /// The key that requests must carry; without one, none is let in.
    pub key: Option<String>,
    /// Passwords for trunks that ask us for one, by their names.
    passwords: HashMap<String, String>,
    signalling: OnceLock<Weak<dyn Signalling>>,
    rules: Mutex<Outbound>,
    table: Mutex<Table>,
    ledger: Arc<Ledger>,
}

/// What an attempt to place a call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is being placed.
    New,
    /// It was asked for before, with the same key.
    Known,
}

/// Why a call is not placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// By the rules.
    Rule(NotPlaced),
    /// The key was used for another call.
    KeyReused,
}

impl From<NotPlaced> for Refused {
    fn from(reason: NotPlaced) -> Refused {
        Refused::Rule(reason)
    }
}

impl Calls {
    /// With what a former process left behind: its calls are over, and count with all that was kept for them.
    pub fn new(
        key: Option<String>,
        passwords: HashMap<String, String>,
        ledger: Ledger,
        lines: &[Line],
        now_ms: i64,
    ) -> Calls {
        let ledger = Arc::new(ledger);
        let (mut rules, mut table) = (Outbound::default(), Table::default());
        let ends: HashMap<&str, (EndCause, u64, i64)> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Ended { id, cause, cost, at_ms } => Some((id.as_str(), (*cause, *cost, *at_ms))),
                Line::Placed { .. } => None,
            })
            .collect();
        for line in lines {
            let Line::Placed { id, key, request, trunk, reserved, at_ms } = line else { continue };
            let (cause, cost, ended_ms) = ends.get(id.as_str()).copied().unwrap_or_else(|| {
                let _ = ledger.append(Line::Ended {
                    id: id.clone(),
                    cause: EndCause::RelayRestart,
                    cost: *reserved,
                    at_ms: now_ms,
                });
                (EndCause::RelayRestart, *reserved, now_ms)
            });
            rules.spend(day_of(ended_ms), trunk, cost);
            let placed = Placed {
                request: request.clone(),
                trunk: trunk.clone(),
                status: "ended",
                cause: Some(cause),
                placed_ms: *at_ms,
                ended_ms: Some(ended_ms),
                cost: Some(cost),
                ..Placed::default()
            };
            table.insert(id, key, placed);
        }
        Calls {
            key,
            passwords,
            signalling: OnceLock::new(),
            rules: Mutex::new(rules),
            table: Mutex::new(table),
            ledger,
        }
    }

    /// The way to the trunks, once there is one.
    pub fn connect(&self, signalling: Weak<dyn Signalling>) {
        let _ = self.signalling.set(signalling);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> MutexGuard<'_, Outbound> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Placed)) {
        if let Some(placed) = self.table().by_id.get_mut(id) {
            change(placed);
        }
    }

    /// It rings.
    pub fn ringing(&self, id: &str) {
        self.change(id, |placed| placed.status = "ringing");
    }

    /// Somebody answered.
    pub fn answered(&self, id: &str, now: Moment, at_ms: i64) {
        self.change(id, |placed| {
            placed.status = "answered";
            placed.answered = Some((now, at_ms));
        });
    }

    /// The INVITE was refused.
    pub fn refused(&self, id: &str, status: Option<u16>) {
        self.change(id, |placed| placed.sip_status = status);
    }

    /// The call is over: what it cost is counted and written down.
    pub fn ended(&self, id: &str, now: Moment, at_ms: i64, cause: EndCause) {
        let mut table = self.table();
        let Some(placed) = table.by_id.get_mut(id) else { return };
        let talked = placed.answered.map(|(at, _)| now.since(at));
        let cost = self.rules().ended(at_ms, id, talked);
        placed.status = "ended";
        placed.cause = Some(cause);
        placed.ended_ms = Some(at_ms);
        placed.cost = Some(cost);
        placed.hang_up = None;
        drop(table);
        let (ledger, line) = (self.ledger.clone(), Line::Ended { id: id.to_owned(), cause, cost, at_ms });
        // If the disk refuses, the next start takes it for a call that may have cost all that was kept for it.
        tokio::task::spawn_blocking(move || ledger.append(line));
    }

    /// Asks a call to end; whether there is one of that id.
    pub fn hang_up(&self, id: &str) -> bool {
        let table = self.table();
        let Some(placed) = table.by_id.get(id) else { return false };
        if let Some(hang_up) = &placed.hang_up {
            // One wish waits; a second one wants nothing else.
            let _ = hang_up.try_send(());
        }
        true
    }

    /// A call as it is answered.
    pub fn show(&self, id: &str) -> Option<Value> {
        let table = self.table();
        let placed = table.by_id.get(id)?;
        let amount = |micros: u64| serde_json::to_value(Amount(micros)).unwrap_or_default();
        Some(json!({
            "id": id, "status": placed.status, "call_sid": placed.call_sid, "trunk": placed.trunk,
            "to": placed.to.as_ref().map(ToString::to_string), "from": placed.from.as_ref().map(E164::as_str),
            "agent": placed.agent, "locale": placed.locale, "reference": placed.reference,
            "cause": placed.cause.map(EndCause::as_str), "sip_status": placed.sip_status,
            "placed_at": told::time(placed.placed_ms), "answered_at": placed.answered.and_then(|(_, at_ms)| told::time(at_ms)),
            "ended_at": placed.ended_ms.and_then(told::time), "cost": placed.cost.map(amount),
        }))
    }
}

impl Table {
    fn insert(&mut self, id: &str, key: &str, placed: Placed) {
        if self.order.len() >= MOST_REMEMBERED
            && let Some(at) =
                self.order.iter().position(|(id, _)| self.by_id.get(id).is_none_or(|old| old.status == "ended"))
            && let Some((id, key)) = self.order.remove(at)
        {
            self.by_id.remove(&id);
            self.by_key.remove(&key);
        }
        self.by_id.insert(id.to_owned(), placed);
        self.by_key.insert(key.to_owned(), id.to_owned());
        self.order.push_back((id.to_owned(), key.to_owned()));
    }

    fn forget(&mut self, id: &str, key: &str) {
        self.by_id.remove(id);
        self.by_key.remove(key);
        self.order.retain(|(known, _)| known != id);
    }
}

/// Places a call, or finds the one that the same key placed. `key` and `request` are hashes.
pub async fn place(
    shared: &Arc<Shared>,
    wish: Wish,
    key: String,
    request: String,
) -> Result<(Answer, String), Refused> {
    let id = Uuid::new_v4().to_string();
    {
        let mut table = shared.calls.table();
        if let Some(id) = table.by_key.get(&key) {
            let same = table.by_id.get(id).is_some_and(|placed| placed.request == request);
            return if same { Ok((Answer::Known, id.clone())) } else { Err(Refused::KeyReused) };
        }
        // From here on the same key finds this one, whatever becomes of it.
        let placed_ms = shared.clock.unix_ms(shared.clock.now());
        table.insert(&id, &key, Placed { request: request.clone(), status: "placing", placed_ms, ..Placed::default() });
    }
    match begin(shared, &wish, &id, &key, request).await {
        Ok(()) => Ok((Answer::New, id)),
        Err(reason) => {
            // Nothing rang: the same key may try again.
            shared.calls.table().forget(&id, &key);
            shared.metrics.not_placed(reason);
            let fields = json!({ "reason": reason.as_str(), "to": wish.to.as_str(), "trunk": wish.trunk, "reference": wish.reference });
            shared.desk.log.event("CALL_NOT_PLACED", Level::Warn, "a call was not placed", fields);
            Err(reason.into())
        }
    }
}

async fn begin(shared: &Arc<Shared>, wish: &Wish, id: &str, key: &str, request: String) -> Result<(), NotPlaced> {
    let granted = Outbound::route(&shared.config, &wish.to, wish.trunk.as_deref())?;
    let Granted { trunk, rules, did, reserved, .. } = granted;
    let now = shared.clock.now();
    if shared.trunks.is_down(now, &trunk.name) {
        return Err(NotPlaced::TrunkDown);
    }
    let signalling = shared.calls.signalling.get().and_then(Weak::upgrade).ok_or(NotPlaced::Draining)?;
    let peer = trunk.peer.clone().ok_or(NotPlaced::NoTrunk)?;
    let at_ms = shared.clock.unix_ms(now);
    // A line of the relay, then one of those that are for calls of ours; given back together.
    shared.take_line(Admitted { trunk, did })?;
    let placed = shared.calls.rules().place(now, at_ms, &shared.config, granted, id);
    let give_back = || {
        shared.calls.rules().ended(at_ms, id, None);
        shared.ended(&trunk.name, &did.number.0);
    };
    if let Err(reason) = placed {
        shared.ended(&trunk.name, &did.number.0);
        return Err(reason);
    }
    let Ok(pair) = shared.ports.open(now, dice) else {
        give_back();
        return Err(NotPlaced::Full);
    };
    let settings = &shared.config.media;
    let address = settings.advertised.or(shared.config.sip.advertised).unwrap_or(settings.bind);
    let mut local = Local::new(SocketAddr::new(address, pair.port), u64::from(dice()) << 32 | u64::from(dice()));
    let (codecs, allowed) = policy_of(trunk);
    let description = local.offer(Policy { codecs, allowed: &allowed });
    let mut did = did.clone();
    did.agent = wish.agent.clone().unwrap_or(did.agent);
    let locale = wish.locale.unwrap_or(did.locale.0);
    let call_sid = Uuid::new_v4().to_string();
    let opening = Opening {
        correlation_id: id.to_owned(),
        call_sid: call_sid.clone(),
        origin: Origin::MtnSip,
        trunk: trunk.name.clone(),
        from: Some(did.number.0.as_str().to_owned()),
        to: wish.to.as_str().to_owned(),
        agent: did.agent.clone(),
        locale,
        direction: Direction::Outbound,
        reference: wish.reference.clone(),
    };
    let line =
        Line::Placed { id: id.to_owned(), key: key.to_owned(), request, trunk: trunk.name.clone(), reserved, at_ms };
    let ledger = shared.calls.ledger.clone();
    let on_disk = tokio::task::spawn_blocking(move || ledger.append(line)).await;
    // Both before the telephone rings: after a kill the call is known, ended once, and not placed again.
    let opened = opening.entry(at_ms);
    let on_disk =
        on_disk.is_ok_and(|written| written.is_ok()) && shared.desk.journal.append(id, opened.clone()).await.is_ok();
    if !on_disk {
        shared.ports.give_back(now, pair.port);
        give_back();
        let (ledger, cause) = (shared.calls.ledger.clone(), EndCause::Withdrawn);
        let line = Line::Ended { id: id.to_owned(), cause, cost: 0, at_ms };
        tokio::task::spawn_blocking(move || ledger.append(line));
        return Err(NotPlaced::Unwritten);
    }
    let credentials = rules
        .digest
        .as_ref()
        .and_then(|digest| Some((digest.username.clone(), shared.calls.passwords.get(&trunk.name)?.clone())));
    let outgoing = Outgoing {
        peer: peer.0,
        from: did.number.0.clone(),
        to: wish.to.clone(),
        call_id: call_sid.clone(),
        offer: description.clone(),
        credentials,
    };
    let (sender, hang_up) = mpsc::channel(1);
    shared.calls.change(id, |placed| {
        placed.call_sid.clone_from(&call_sid);
        placed.to = Some(wish.to.clone());
        placed.from = Some(did.number.0.clone());
        placed.trunk.clone_from(&trunk.name);
        placed.agent.clone_from(&did.agent);
        placed.locale = Some(locale);
        placed.reference.clone_from(&wish.reference);
        placed.status = "calling";
        placed.hang_up = Some(sender);
    });
    let ring = wish.ring_seconds.unwrap_or(rules.ring_seconds).min(rules.ring_seconds);
    let start = Start {
        incoming: signalling.call(outgoing),
        call_sid,
        origin: Origin::MtnSip,
        trunk: trunk.clone(),
        did,
        locale,
        caller: Some(wish.to.clone()),
        pair: Some(pair),
        line: None,
        local,
        description,
        agreed: None,
        interval: None,
        placed: Some(call::Placed {
            opening,
            opened,
            hang_up,
            ring_within: Duration::from_secs(ring),
            longest: granted.longest(),
        }),
    };
    shared.metrics.placed();
    shared.metrics.began();
    shared.trunks.called(now, &trunk.name);
    tokio::spawn(call::run(shared.clone(), start));
    Ok(())
}
