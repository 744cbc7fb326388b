//! Counts who writes, at the counters of the edge (`[[ratelimits]]` in wrangler.toml), before their message is queued.
//!
//! A message over a limit is queued all the same, with `over_limit`: it is stored and not answered, so that nothing is lost and
//! a flood costs neither a model nor an SMS. Where nobody counts, everybody is let in: the database counts as well.

use std::cell::Cell;

use ihuza_core::{
    flood::{Keys, Over},
    log::{Event, Level},
    problem::Problem,
    turn,
};

use crate::{context::Cx, decision::Line, endpoint::Outcome, incoming::Incoming, queue::Envelope, reply::Reply};

/// Messages of one body that are counted; those behind them are over a limit where one before them from the same sender was. Only
/// Meta sends more at once, what it kept during an outage of ours.
const COUNTED_MAX: usize = 100;

/// Like [`Outcome::accepted`], once the senders of `work` are counted: each by its place in `work`.
///
/// The counters are asked by `shell.js`, between this decision and the next, which is made with what they said ([`Incoming::counts`]). Where
/// nobody is over a limit, which is nearly always, the first decision stands, and nothing of it crosses twice.
pub fn accepted(
    cx: Cx,
    request: &Incoming,
    mut work: Vec<(&'static str, Envelope)>,
    mut senders: Vec<(usize, Keys)>,
    reply: Reply,
    lines: Vec<Line>,
) -> Outcome {
    let mut counts = request.counts();
    // Who is over the first limit is not counted by the second: one who floods uses up no neighbour's count.
    for over in [Over::Sender, Over::Prefix] {
        senders.retain(|(_, keys)| keys.counted_by(over).is_some());
        if senders.is_empty() {
            break;
        }
        let Some(counted) = counts.next() else {
            let last = over == Over::Prefix || senders.iter().all(|(_, keys)| keys.counted_by(Over::Prefix).is_none());
            let (mut decision, settles) = match Outcome::accepted(cx, work, reply, lines) {
                Outcome::Now(Ok(decision)) if last => (decision, "1"),
                // What is too large for a queue is placed once it is known whether it is over a limit.
                _ => (Reply::problem(&Problem::unavailable(30)).into(), "0"),
            };
            let keys = senders.iter().take(COUNTED_MAX).filter_map(|(_, keys)| keys.counted_by(over));
            decision.ask = [limiter(over), settles].into_iter().chain(keys).map(str::to_owned).collect();
            return Outcome::Now(Ok(decision));
        };
        say_where_nobody_counts(&cx, over, counted);
        let mut counted = counted.bytes();
        let mut full: Vec<String> = Vec::new();
        senders.retain(|(place, keys)| {
            let key = keys.counted_by(over).unwrap_or_default();
            let is_known = full.iter().any(|known| known == key);
            let is_over = counted.next().map_or(is_known, |said| said == b'1');
            if is_over {
                mark(work.get_mut(*place), over);
                if !is_known {
                    full.push(key.to_owned());
                }
            }
            !is_over
        });
    }
    Outcome::accepted(cx, work, reply, lines)
}

fn limiter(over: Over) -> &'static str {
    match over {
        Over::Sender => "SENDER_LIMIT",
        Over::Prefix => "PREFIX_LIMIT",
    }
}

fn mark(work: Option<&mut (&'static str, Envelope)>, over: Over) {
    if let Some(fields) = work.and_then(|(_, envelope)| envelope.body.as_object_mut()) {
        fields.insert(turn::OVER_LIMIT.to_owned(), over.as_str().into());
    }
}

thread_local! {
    /// Whether this isolate has said that nobody counts.
    static SAID: Cell<bool> = const { Cell::new(false) };
}

fn say_where_nobody_counts(cx: &Cx, over: Over, counted: &str) {
    if counted.contains('?') && !SAID.replace(true) {
        let said = [limiter(over), " of wrangler.toml does not count: messages are let in uncounted"].concat();
        cx.log(Level::Warn, Event::SenderNotCounted, &said, &[]);
    }
}
