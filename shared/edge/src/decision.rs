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
    pub reply: Reply,
    /// Texts for `queue`, each a whole message.
    pub work: Vec<String>,
    /// Name of the binding.
    pub queue: String,
    pub lines: Vec<Line>,
}

impl From<Reply> for Decision {
    fn from(reply: Reply) -> Decision {
        Decision { reply, work: Vec::new(), queue: String::new(), lines: Vec::new() }
    }
}

impl Decision {
    /// The form that `Door` in `shell.js` reads.
    pub fn to_text(&self) -> String {
        let Decision { reply, work, queue, lines } = self;
        let (header_count, line_count, text_count) = (reply.headers.len() + 1, lines.len(), work.len());
        let mut parts = vec![
            reply.status.to_string(),
            header_count.to_string(),
            line_count.to_string(),
            text_count.to_string(),
            queue.clone(),
            "content-type".to_owned(),
            reply.content_type.to_owned(),
        ];
        for (name, value) in &reply.headers {
            parts.push((*name).to_owned());
            parts.push(value.clone());
        }
        for line in lines {
            parts.push(console_method(line.level).to_owned());
            parts.push(line.text.clone());
        }
        parts.extend(work.iter().cloned());
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
            work: vec!["{1}".to_owned(), "{2}".to_owned()],
            queue: "Q".to_owned(),
            lines: vec![line],
            ..reply.into()
        };
        assert_eq!(
            decision.to_text(),
            "202\n2\n1\n2\nQ\ncontent-type\ntext/plain; charset=utf-8\nx-correlation-id\nid-7\nwarn\n{}\n{1}\n{2}\na\nb"
        );
    }
}
