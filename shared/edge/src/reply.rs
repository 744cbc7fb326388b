//! What a function answers: a status, a few headers, a body. Plain values, which `shell.js` makes a `Response` of.

use ihuza_core::{
    json_text::to_text,
    problem::{self, Problem},
};
use serde_json::Value;

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply { status, content_type: "application/json", headers: Vec::new(), body: to_text(body) }
    }

    pub fn text(status: u16, body: impl Into<String>) -> Reply {
        Reply { status, content_type: "text/plain; charset=utf-8", headers: Vec::new(), body: body.into() }
    }

    /// The answer of RFC 9457: `application/problem+json`.
    pub fn problem(problem: &Problem) -> Reply {
        Reply {
            status: problem.status,
            content_type: problem::CONTENT_TYPE,
            headers: problem.headers().into_iter().filter(|(name, _)| *name != "content-type").collect(),
            body: to_text(&problem.to_json()),
        }
    }

    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}
