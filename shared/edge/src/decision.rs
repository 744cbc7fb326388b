//! What is to be done about one request, as one text for `shell.js`: the work for the queue, the lines for the log, the
//! answer. The answer and the lines are given only when the queue, or Postgres in its place, holds all of the work.

use ihuza_core::log::Level;

use crate::{reply::Reply, shell::PART};

/// One line for the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub level: Level,
    pub text: String,
}

/// The method of `console` that stands for a level.
pub fn console_method(level: Level) -> &'static str {
    match level {
        Level::Info => "log",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What is to be counted before it is carried out; mostly nothing. Else the limiter's binding; `1` where the decision stands if
    /// nobody is over the limit, `0` where it is made again in any case; and the keys to count.
    pub ask: Vec<String>,
    pub reply: Reply,
    /// Texts for queues, each a whole message behind the name of its binding.
    pub work: Vec<(String, String)>,
    pub lines: Vec<Line>,
}

impl From<Reply> for Decision {
    fn from(reply: Reply) -> Decision {
        Decision { ask: Vec::new(), reply, work: Vec::new(), lines: Vec::new() }
    }
}

impl Decision {
    /// The form that `Door` in `shell.js` reads.
    pub fn to_text(&self) -> String {
        let Decision { ask, reply, work, lines } = self;
        let (header_count, line_count, text_count) = (reply.headers.len() + 1, lines.len(), work.len());
        let mut parts = vec![
            reply.status.to_string(),
            header_count.to_string(),
            line_count.to_string(),
            text_count.to_string(),
            ask.len().to_string(),
        ];
        parts.extend(ask.iter().cloned());
        parts.push("content-type".to_owned());
        parts.push(reply.content_type.to_owned());
        for (name, value) in &reply.headers {
            parts.push((*name).to_owned());
            parts.push(value.clone());
        }
        for line in lines {
            parts.push(console_method(line.level).to_owned());
            parts.push(line.text.clone());
        }
        for (queue, text) in work {
            parts.push(queue.clone());
            parts.push(text.clone());
        }
        // A line break in a part would shift all that follow; only the body, which is last, may have one.
        debug_assert!(parts.iter().all(|part| !part.contains(PART)), "{parts:?}");
        let mut text = String::with_capacity(parts.iter().map(|part| part.len() + 1).sum::<usize>() + reply.body.len());
        for part in &parts {
            text.push_str(part);
            text.push(PART);
        }
        text.push_str(&reply.body);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_one_text_with_the_body_last() {
        let reply = Reply::text(202, "a\nb").with_header("x-correlation-id", "id-7");
        let line = Line { level: Level::Warn, text: "{}".to_owned() };
        let decision = Decision {
            work: [("Q", "{1}"), ("R", "{2}")].map(|(queue, text)| (queue.to_owned(), text.to_owned())).to_vec(),
            lines: vec![line],
            ..reply.into()
        };
        assert_eq!(
            decision.to_text(),
            "202\n2\n1\n2\n0\ncontent-type\ntext/plain; charset=utf-8\nx-correlation-id\nid-7\nwarn\n{}\nQ\n{1}\nR\n{2}\na\nb"
        );
        let asked = Decision { ask: ["L", "1", "a", "b"].map(str::to_owned).to_vec(), ..Reply::text(200, "").into() };
        assert_eq!(asked.to_text(), "200\n1\n0\n0\n4\nL\n1\na\nb\ncontent-type\ntext/plain; charset=utf-8\n");
    }
}
