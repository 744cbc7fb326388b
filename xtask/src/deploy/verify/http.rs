//! A small HTTP client for the checks: JSON in, JSON out, every status is an answer.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

pub struct Http(ureq::Agent);

pub struct Answer {
    pub status: u16,
    /// Null when it was no JSON.
    pub body: Value,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body: String = self.body.to_string().chars().take(300).collect();
        write!(f, "{} {body}", self.status)
    }
}

impl Http {
    pub fn new() -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false).build();
        Self(config.into())
    }

    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let request = headers.iter().fold(self.0.get(url), |request, (name, value)| request.header(*name, *value));
        read(request.call().with_context(|| format!("GET {url} got no answer"))?)
    }

    pub fn post(&self, url: &str, headers: &[(&str, &str)], body: &Value) -> Result<Answer> {
        self.post_text(url, headers, &body.to_string())
    }

    pub fn post_text(&self, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
        let request = self.0.post(url).header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        read(request.send(body).with_context(|| format!("POST {url} got no answer"))?)
    }
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<Answer> {
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().context("the answer broke off")?;
    Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::Null) })
}
