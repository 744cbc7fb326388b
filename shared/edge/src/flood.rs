//! Counts who writes, at the counters of the edge (`[[ratelimits]]` in wrangler.toml), before their message is queued.
//!
//! A message over a limit is queued all the same, with `over_limit`: it is stored and not answered, so that nothing is lost and
//! a flood costs neither a model nor an SMS. Where nobody counts, everybody is let in: the database counts as well.

use std::cell::Cell;

use ihuza_core::{
    flood::{Keys, Over},
    log::{Event, Level},
    turn,
};
use js_sys::futures::JsFuture;

use crate::{context::Cx, decision::Line, endpoint::Outcome, queue::Envelope, reply::Reply, shell};

/// Messages of one body that are counted. Only Meta sends more at once, what it kept during an outage of ours.
const COUNTED_MAX: usize = 100;

/// Like [`Outcome::accepted`], once the senders of `work` are counted: each by its place in `work`.
pub fn accepted(
    cx: Cx,
    mut work: Vec<(&'static str, Envelope)>,
    mut senders: Vec<(usize, Keys)>,
    reply: Reply,
    lines: Vec<Line>,
) -> Outcome {
    if senders.is_empty() {
        return Outcome::accepted(cx, work, reply, lines);
    }
    senders.truncate(COUNTED_MAX);
    Outcome::Later(Box::pin(async move {
        // Who is over the first limit is not counted by the second: one who floods uses up no neighbour's count.
        for over in [Over::Sender, Over::Prefix] {
            senders.retain(|(_, keys)| keys.counted_by(over).is_some());
            if senders.is_empty() {
                break;
            }
            let keys: Vec<&str> = senders.iter().filter_map(|(_, keys)| keys.counted_by(over)).collect();
            let counted = JsFuture::from(shell::counted(&cx.env, limiter(over), &keys.join("\n"))).await;
            let counted = counted.ok().and_then(|counted| counted.as_string()).unwrap_or_default();
            say_where_nobody_counts(&cx, over, &counted);
            let mut counted = counted.bytes();
            senders.retain(|(place, _)| {
                let full = counted.next() == Some(b'1');
                if full {
                    mark(work.get_mut(*place), over);
                }
                !full
            });
        }
        Outcome::accepted(cx, work, reply, lines).decided().await
    }))
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
    if (counted.is_empty() || counted.contains('?')) && !SAID.replace(true) {
        let said = [limiter(over), " of wrangler.toml does not count: messages are let in uncounted"].concat();
        cx.log(Level::Warn, Event::SenderNotCounted, &said, &[]);
    }
}
