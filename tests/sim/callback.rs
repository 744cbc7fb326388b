//! Posting to our webhooks, as a carrier or Meta would, and remembering what came of it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::control::{Fault, Met};
use crate::edge::client;
use crate::error::{Context, Result, Trouble};
use crate::runtime;

/// How long a poster waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// First wait of a poster that tries again; doubled each time.
const RETRY_BASE: Duration = Duration::from_millis(250);

/// One POST.
#[derive(Clone, Debug)]
pub struct Callback {
    pub url: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// What a webhook answered.
#[derive(Clone, Debug)]
pub struct Posted {
    pub at: DateTime<Utc>,
    pub body: String,
    /// None when there was no answer at all.
    pub status: Option<u16>,
    pub answer: String,
}

impl Posted {
    /// The answer as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.answer).unwrap_or(Value::Null)
    }
}

/// Posts, and keeps a record. The address comes later than the simulator, so it is set once it is known.
pub struct Poster {
    http: reqwest::Client,
    url: OnceLock<String>,
    /// Further tries after an answer other than 2xx, or none.
    retries: u32,
    posted: Mutex<Vec<Posted>>,
}

impl Poster {
    pub fn new(retries: u32) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { http: client()?, url: OnceLock::new(), retries, posted: Mutex::default() }))
    }

    /// The webhook's address; the first one stays.
    pub fn set_url(&self, url: String) {
        let _ = self.url.set(url);
    }

    pub fn url(&self) -> Result<&str> {
        let url = self.url.get().map(String::as_str);
        url.ok_or_else(|| Trouble::new("nobody said where reports go: the functions are not running"))
    }

    /// Everything posted so far, every try by itself.
    pub fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Posts once and tells what was answered.
    pub async fn post(self: &Arc<Self>, callback: Callback) -> Result<Posted> {
        let poster = self.clone();
        runtime::on(async move {
            let mut request = poster.http.post(&callback.url).timeout(PATIENCE);
            for (name, value) in &callback.headers {
                request = request.header(*name, value);
            }
            let answer = request.body(callback.body.clone()).send().await;
            let mut posted = Posted { at: Utc::now(), body: callback.body, status: None, answer: String::new() };
            let outcome = match answer {
                Ok(answer) => {
                    posted.status = Some(answer.status().as_u16());
                    posted.answer = answer.text().await.unwrap_or_default();
                    Ok(posted.clone())
                }
                Err(error) => Err(error).context(format!("no answer from {}", callback.url)),
            };
            poster.posted.lock().unwrap_or_else(PoisonError::into_inner).push(posted);
            outcome
        })
        .await
    }

    /// Posts until 2xx, as often as this poster is willing to.
    pub async fn deliver(self: &Arc<Self>, callback: Callback) {
        for tried in 0..=self.retries {
            let outcome = self.post(callback.clone()).await;
            let taken = outcome.is_ok_and(|posted| posted.status.is_some_and(|status| (200..300).contains(&status)));
            if taken {
                return;
            }
            tokio::time::sleep(RETRY_BASE * 2_u32.pow(tried.min(6))).await;
        }
    }
}

/// One report of a message, due some time after it was accepted.
#[derive(Clone, Debug)]
pub struct Due {
    pub after: Duration,
    pub callback: Callback,
}

/// Sends the reports of one message, spoiled as its fault says. Returns when those that must precede the answer are out.
pub async fn send_reports(poster: &Arc<Poster>, mut reports: Vec<Due>, met: Met) {
    if met.is(Fault::NoReport) || poster.url().is_err() {
        return;
    }
    if met.is(Fault::Reorder) {
        let times: Vec<Duration> = reports.iter().map(|due| due.after).collect();
        reports.reverse();
        for (due, after) in reports.iter_mut().zip(times) {
            due.after = after;
        }
    }
    if met.is(Fault::Duplicate) {
        reports = reports.into_iter().flat_map(|due| [due.clone(), due]).collect();
    }
    let mut reports = reports.into_iter();
    if met.is(Fault::EarlyReport)
        && let Some(first) = reports.next()
    {
        poster.deliver(first.callback).await;
    }
    let poster = poster.clone();
    runtime::spawn(async move {
        let accepted = tokio::time::Instant::now();
        for due in reports {
            tokio::time::sleep_until(accepted + due.after).await;
            poster.deliver(due.callback).await;
        }
    });
}
