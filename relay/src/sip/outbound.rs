//! Whether a call is placed: to whom, how many, how fast, for how much. Every refusal has its own code, its own reason in
//! the log and its own metric.
//!
//! The budget is hard: for a call that runs, the price of its longest duration is kept aside, and what it did not use is
//! given back at its end.

use std::collections::HashMap;
use std::time::Duration;

use ihuza_core::phone::E164;
use ihuza_core::problem::Problem;

use super::admission::{Bucket, Refusal};
use crate::config::{Config, Did, Trunk, TrunkOutbound};
use crate::moment::Moment;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $label:literal, $slug:literal, $title:literal, $status:expr, $retry_after:expr;)*) => {
        /// Why a call is not placed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum NotPlaced { $($(#[$doc])* $name,)* }

        /// Every reason there is, for metrics that are there from the start.
        pub const NOT_PLACED: &[NotPlaced] = &[$(NotPlaced::$name,)*];

        impl NotPlaced {
            /// The word in logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(NotPlaced::$name => $label,)* }
            }

            /// As it is answered.
            pub fn problem(self) -> Problem {
                let (mut problem, retry_after_s): (Problem, Option<u16>) =
                    match self { $(NotPlaced::$name => (Problem::new($slug, $title, $status), $retry_after),)* };
                problem.retry_after_s = retry_after_s;
                problem
            }
        }
    };
}

refusals! {
    /// There is no such trunk, or none at all, that calls may be placed on.
    NoTrunk = "no_trunk", "no-outbound-trunk", "There is no trunk that calls may be placed on by that name", 422, None;
    /// The number begins with none of the trunk's prefixes.
    Prefix = "prefix_not_allowed", "number-not-allowed", "That number may not be called", 403, None;
    /// Nobody said what the call would cost.
    NoPrice = "no_price", "number-without-price", "Nobody said what a call to that number costs", 403, None;
    /// The trunk does not answer.
    TrunkDown = "trunk_down", "trunk-down", "The trunk does not answer", 503, Some(30);
    /// As many calls as may be are placed already.
    Calls = "calls_full", "too-many-calls", "As many calls as may be are placed already", 429, Some(10);
    /// As many as may be on this trunk.
    TrunkCalls = "trunk_calls_full", "trunk-full", "As many calls as may be are placed on that trunk already", 429, Some(10);
    /// Too many in a minute.
    Rate = "rate", "calls-too-fast", "Calls are asked for too fast", 429, Some(5);
    /// Too many in a minute on this trunk.
    TrunkRate = "trunk_rate", "trunk-too-fast", "Calls on that trunk are asked for too fast", 429, Some(5);
    /// The day's budget does not suffice for the longest call that this could be.
    Budget = "over_budget", "over-budget", "The day's budget for calls is used up", 429, Some(3600);
    /// All lines are in use, by whomever.
    Full = "relay_full", "relay-full", "All lines are in use", 503, Some(5);
    /// The relay is about to end.
    Draining = "draining", "relay-draining", "The relay is about to end", 503, Some(30);
    /// What must be on disk before a telephone rings could not be written.
    Unwritten = "not_written", "not-written", "The call could not be written down, and so is not placed", 503, Some(60);
}

impl From<Refusal> for NotPlaced {
    /// Of the lines that calls in both directions share.
    fn from(refusal: Refusal) -> NotPlaced {
        if refusal == Refusal::Draining { NotPlaced::Draining } else { NotPlaced::Full }
    }
}

/// A call that may be placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Granted<'c> {
    /// On which trunk.
    pub trunk: &'c Trunk,
    /// By its rules.
    pub rules: &'c TrunkOutbound,
    /// As which number of ours.
    pub did: &'c Did,
    /// What a begun minute costs, in millionths of the currency's unit.
    pub per_minute: u64,
    /// What is kept of the budget while it runs.
    pub reserved: u64,
}

impl Granted<'_> {
    /// How long it may last, so that it costs no more than was kept for it.
    pub fn longest(&self) -> Duration {
        Duration::from_secs(self.rules.longest_minutes * 60)
    }
}

/// What a call costs that lasted so long from its answer on, and nothing if nobody answered.
pub fn cost(per_minute: u64, talked: Option<Duration>) -> u64 {
    // Whoever answered and hung up at once has begun a minute.
    let begun = talked.map_or(0, |talked| talked.as_millis().div_ceil(60_000).max(1));
    per_minute.saturating_mul(u64::try_from(begun).unwrap_or(u64::MAX))
}

#[derive(Debug)]
struct Running {
    trunk: String,
    per_minute: u64,
    reserved: u64,
}

/// What is placed and what it has cost today.
#[derive(Debug, Default)]
pub struct Outbound {
    running: HashMap<String, Running>,
    bucket: Bucket,
    trunk_buckets: HashMap<String, Bucket>,
    /// Days since 1970 in UTC, and what ended calls of that day cost, by trunk.
    day: i64,
    spent: HashMap<String, u64>,
}

/// The day in which the budget counts, of milliseconds since 1970.
pub fn day_of(unix_ms: i64) -> i64 {
    unix_ms.div_euclid(86_400_000)
}

impl Outbound {
    /// Where a call would be placed and what it costs, whatever is full. `trunk` may be left out where the number decides.
    pub fn route<'c>(config: &'c Config, to: &E164, trunk: Option<&str>) -> Result<Granted<'c>, NotPlaced> {
        let named = config.trunks.iter().filter(|known| trunk.is_none_or(|name| known.name == name));
        let able: Vec<(&Trunk, &TrunkOutbound)> =
            named.filter_map(|known| Some((known, known.outbound.as_ref()?))).collect();
        if able.is_empty() {
            return Err(NotPlaced::NoTrunk);
        }
        let may = |rules: &TrunkOutbound| rules.prefixes.iter().any(|prefix| to.as_str().starts_with(prefix.as_str()));
        let (trunk, rules) = able.into_iter().find(|(_, rules)| may(rules)).ok_or(NotPlaced::Prefix)?;
        let fitting = rules.prices.iter().filter(|price| to.as_str().starts_with(price.prefix.as_str()));
        let price = fitting.max_by_key(|price| price.prefix.len()).ok_or(NotPlaced::NoPrice)?;
        let did = trunk.dids.iter().find(|did| did.number == rules.caller).ok_or(NotPlaced::NoTrunk)?;
        let per_minute = price.per_minute.0;
        Ok(Granted { trunk, rules, did, per_minute, reserved: per_minute.saturating_mul(rules.longest_minutes) })
    }

    /// Judges a call and, if it may be placed, counts it. Whoever is granted one tells of its end by `ended`.
    pub fn place(
        &mut self,
        now: Moment,
        unix_ms: i64,
        config: &Config,
        granted: Granted,
        id: &str,
    ) -> Result<(), NotPlaced> {
        let limits = config.outbound.as_ref().ok_or(NotPlaced::NoTrunk)?;
        let Granted { trunk, rules, .. } = granted;
        self.turn_to(day_of(unix_ms));
        if self.running.len() >= limits.calls {
            return Err(NotPlaced::Calls);
        }
        let on_trunk = self.running.values().filter(|running| running.trunk == trunk.name);
        if on_trunk.clone().count() >= rules.calls {
            return Err(NotPlaced::TrunkCalls);
        }
        let kept: u64 = on_trunk.map(|running| running.reserved).sum();
        let spent = self.spent.get(&trunk.name).copied().unwrap_or_default();
        if spent.saturating_add(kept).saturating_add(granted.reserved) > rules.daily_budget.0 {
            return Err(NotPlaced::Budget);
        }
        let (all, own) = (f64::from(limits.calls_per_minute), f64::from(rules.calls_per_minute));
        if !self.trunk_buckets.entry(trunk.name.clone()).or_default().take(now, own / 60.0, own) {
            return Err(NotPlaced::TrunkRate);
        }
        if !self.bucket.take(now, all / 60.0, all) {
            return Err(NotPlaced::Rate);
        }
        let running = Running { trunk: trunk.name.clone(), per_minute: granted.per_minute, reserved: granted.reserved };
        self.running.insert(id.to_owned(), running);
        Ok(())
    }

    /// A call is over; it lasted so long from its answer on, if it was answered. What it cost; nothing if it is not known, or was told before.
    pub fn ended(&mut self, unix_ms: i64, id: &str, talked: Option<Duration>) -> u64 {
        self.turn_to(day_of(unix_ms));
        let Some(running) = self.running.remove(id) else { return 0 };
        let cost = cost(running.per_minute, talked);
        self.spend(day_of(unix_ms), &running.trunk, cost);
        cost
    }

    /// What a call of a former process cost, or, if nobody knows its end, may have.
    pub fn spend(&mut self, day: i64, trunk: &str, micros: u64) {
        self.turn_to(self.day.max(day));
        if day == self.day {
            let spent = self.spent.entry(trunk.to_owned()).or_default();
            *spent = spent.saturating_add(micros);
        }
    }

    fn turn_to(&mut self, day: i64) {
        if day > self.day {
            self.day = day;
            self.spent.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Amount;

    const DAY: i64 = 86_400_000;

    fn config() -> Config {
        Config::parse(include_str!("../../relay.example.toml")).unwrap()
    }

    fn number(text: &str) -> E164 {
        E164::parse(text).unwrap()
    }

    fn place(outbound: &mut Outbound, config: &Config, seconds: u64, id: &str) -> Result<(), NotPlaced> {
        let granted = Outbound::route(config, &number("+250788123456"), None)?;
        outbound.place(Moment::from_millis(seconds * 1000), DAY, config, granted, id)
    }

    #[test]
    fn only_numbers_of_the_settings_are_called_at_the_price_of_the_longest_prefix() {
        let mut config = config();
        let granted = Outbound::route(&config, &number("+250788123456"), Some("mtn_sip")).unwrap();
        assert_eq!(
            (granted.did.number.0.as_str(), granted.per_minute, granted.reserved),
            ("+250788000100", 15_000_000, 450_000_000)
        );
        let refused = |config: &Config, to: &str, trunk| Outbound::route(config, &number(to), trunk).unwrap_err();
        assert_eq!(refused(&config, "+250722123456", None), NotPlaced::Prefix);
        assert_eq!(refused(&config, "+254712345678", None), NotPlaced::Prefix);
        assert_eq!(refused(&config, "+250788123456", Some("other")), NotPlaced::NoTrunk);
        let rules = config.trunks[0].outbound.as_mut().unwrap();
        rules.prices.push(crate::config::Price { prefix: "+250788".into(), per_minute: Amount(1) });
        assert_eq!(Outbound::route(&config, &number("+250788123456"), None).unwrap().per_minute, 1);
        config.trunks[0].outbound.as_mut().unwrap().prices.clear();
        assert_eq!(refused(&config, "+250788123456", None), NotPlaced::NoPrice);
        config.trunks[0].outbound = None;
        assert_eq!(refused(&config, "+250788123456", None), NotPlaced::NoTrunk);
    }

    #[test]
    fn calls_are_counted_on_the_trunk_and_in_all() {
        let (mut config, mut outbound) = (config(), Outbound::default());
        for n in 0..5 {
            assert_eq!(place(&mut outbound, &config, 0, &n.to_string()), Ok(()));
        }
        assert_eq!(place(&mut outbound, &config, 0, "5"), Err(NotPlaced::TrunkCalls));
        config.outbound.as_mut().unwrap().calls = 5;
        assert_eq!(place(&mut outbound, &config, 0, "5"), Err(NotPlaced::Calls));
        outbound.ended(DAY, "0", None);
        assert_eq!(place(&mut outbound, &config, 0, "5"), Ok(()));
    }

    #[test]
    fn so_many_a_minute_and_no_more() {
        let (mut config, mut outbound) = (config(), Outbound::default());
        let mut call = |config: &Config, seconds, id: u32| {
            let placed = place(&mut outbound, config, seconds, &id.to_string());
            outbound.ended(DAY, &id.to_string(), None);
            placed
        };
        for n in 0..10 {
            assert_eq!(call(&config, 0, n), Ok(()));
        }
        assert_eq!((call(&config, 5, 10), call(&config, 6, 11)), (Err(NotPlaced::TrunkRate), Ok(())));
        config.outbound.as_mut().unwrap().calls_per_minute = 1;
        assert_eq!(call(&config, 60, 12), Err(NotPlaced::Rate));
    }

    #[test]
    fn the_budget_counts_what_was_spent_and_what_running_calls_may_still_cost() {
        let (mut config, mut outbound) = (config(), Outbound::default());
        // Two of 30 minutes at 15.
        config.trunks[0].outbound.as_mut().unwrap().daily_budget = Amount(900_000_000);
        assert_eq!((place(&mut outbound, &config, 0, "a"), place(&mut outbound, &config, 0, "b")), (Ok(()), Ok(())));
        assert_eq!(place(&mut outbound, &config, 0, "c"), Err(NotPlaced::Budget));
        assert_eq!(outbound.ended(DAY, "a", None), 0);
        assert_eq!(place(&mut outbound, &config, 0, "c"), Ok(()), "what nobody answered costs nothing");
        assert_eq!(outbound.ended(DAY, "c", Some(Duration::from_millis(60_001))), 30_000_000, "two begun minutes");
        assert_eq!(super::cost(7, Some(Duration::ZERO)), 7, "a minute is begun with the answer");
        assert_eq!(outbound.ended(DAY, "c", Some(Duration::from_secs(600))), 0, "told twice, counted once");
        assert_eq!(place(&mut outbound, &config, 0, "d"), Err(NotPlaced::Budget));
        outbound.ended(2 * DAY, "b", None);
        assert_eq!(place(&mut outbound, &config, 0, "d"), Ok(()), "the next day has a budget of its own");
    }

    #[test]
    fn words_are_unique_and_every_refusal_says_what_it_is() {
        let mut words: Vec<_> = NOT_PLACED.iter().map(|reason| reason.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), NOT_PLACED.len());
        let mut slugs: Vec<_> = NOT_PLACED.iter().map(|reason| reason.problem().type_slug).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), NOT_PLACED.len());
        let documented = include_str!("../../../docs/errors.md");
        assert!(slugs.iter().all(|slug| documented.contains(&format!("\n### {slug}\n"))), "{slugs:?}");
        for reason in NOT_PLACED {
            let problem = reason.problem();
            assert_eq!(problem.retry_after_s.is_some(), [429, 503].contains(&problem.status), "{reason:?}");
        }
    }

    proptest! {
        #[test]
        fn a_day_never_costs_more_than_its_budget(steps in proptest::collection::vec((0_u8..3, 0_usize..6, 0_u64..1801), 1..60)) {
            let (mut config, mut outbound) = (config(), Outbound::default());
            config.trunks[0].outbound.as_mut().unwrap().daily_budget = Amount(1_000_000_000);
            config.trunks[0].outbound.as_mut().unwrap().calls_per_minute = u32::MAX;
            config.outbound.as_mut().unwrap().calls_per_minute = u32::MAX;
            let mut cost = 0;
            for (n, (step, id, talked)) in steps.into_iter().enumerate() {
                match step {
                    // A name that runs already would be the same call: the door never gives one twice.
                    0 if !outbound.running.contains_key(&id.to_string()) => { let _ = place(&mut outbound, &config, n as u64, &id.to_string()); }
                    _ => cost += outbound.ended(DAY, &id.to_string(), Some(Duration::from_secs(talked))),
                }
                prop_assert!(cost <= 1_000_000_000);
            }
        }
    }
}
