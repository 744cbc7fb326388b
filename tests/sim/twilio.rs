//! Twilio's REST API, as far as we ask it: the messages of an account by day, in pages, and one of them; and its signed
//! status callbacks.
//!
//! Messages are put there by whoever plays: nothing is sent through it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, NaiveDate, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::control::{self, Control, Met, Service};
use crate::error::Result;
use crate::http::{Answer, Request, Server};
use crate::keys::secret;
use crate::mtn::form;

/// Of every world.
pub const ACCOUNT_SID: &str = "AC00000000000000000000000000000001";
/// Where Twilio believes our status callbacks to be: a proxy stands between that and the function.
pub const CALLBACK_URL: &str = "https://edge.example.rw/delivery-status-webhook/twilio";
/// Twilio's own bounds of `PageSize`.
const PAGE_SIZES: std::ops::RangeInclusive<usize> = 1..=1000;

/// What opens the account.
#[derive(Clone, Debug)]
pub struct Account {
    pub auth_token: String,
}

impl Account {
    pub fn generate() -> Self {
        Self { auth_token: secret() }
    }
}

/// A message that Twilio knows.
#[derive(Clone, Debug)]
pub struct Listed {
    pub sid: String,
    pub to: String,
    pub body: String,
    pub status: &'static str,
    pub error_code: Option<u32>,
    /// Negative, as Twilio has it; null until it is known.
    pub price: Option<&'static str>,
    pub direction: &'static str,
    /// None: not sent yet, so that no day's list has it.
    pub date_sent: Option<DateTime<Utc>>,
}

impl Listed {
    /// A message of ours that arrived and has its price.
    pub fn new(to: &str, date_sent: DateTime<Utc>) -> Self {
        Self {
            sid: format!("SM{}", Uuid::new_v4().simple()),
            to: to.to_owned(),
            body: "EasyMO summary: a house in Kimironko".to_owned(),
            status: "delivered",
            error_code: None,
            price: Some("-0.04750"),
            direction: "outbound-api",
            date_sent: Some(date_sent),
        }
    }

    fn json(&self) -> Value {
        let rfc2822 = |at: DateTime<Utc>| at.format("%a, %d %b %Y %H:%M:%S +0000").to_string();
        json!({
            "sid": self.sid, "account_sid": ACCOUNT_SID, "api_version": "2010-04-01", "status": self.status, "to": self.to,
            "from": "+12025550123", "body": self.body, "num_segments": "1", "num_media": "0", "direction": self.direction,
            "price": self.price, "price_unit": "USD", "error_code": self.error_code, "error_message": null,
            "date_created": self.date_sent.map(rfc2822), "date_sent": self.date_sent.map(rfc2822),
            "date_updated": self.date_sent.map(rfc2822), "messaging_service_sid": null,
            "uri": format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{}.json", self.sid),
        })
    }
}

/// The running simulator.
pub struct Twilio {
    server: Server,
    control: Arc<Control>,
    api: Arc<Api>,
}

struct Api {
    account: Account,
    messages: Mutex<Vec<Listed>>,
}

impl Twilio {
    pub async fn start(port: u16, account: Account, latency: Duration) -> Result<Self> {
        let control = Arc::new(Control::default());
        let api = Arc::new(Api { account, messages: Mutex::default() });
        let server = control::start(port, api.clone(), control.clone(), latency).await?;
        Ok(Self { server, control, api })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    /// From now on Twilio knows this message, in the place of any other of its sid.
    pub fn know(&self, message: &Listed) {
        let mut messages = self.api.messages();
        messages.retain(|known| known.sid != message.sid);
        messages.push(message.clone());
    }

    /// `X-Twilio-Signature` of a callback to [`CALLBACK_URL`] with this query and these parameters.
    pub fn signature(&self, query: &str, parameters: &[(&str, &str)]) -> String {
        signature(&self.api.account.auth_token, &with_query(query), parameters)
    }
}

/// [`CALLBACK_URL`] as it is called.
pub fn with_query(query: &str) -> String {
    if query.is_empty() { CALLBACK_URL.to_owned() } else { format!("{CALLBACK_URL}?{query}") }
}

/// HMAC-SHA1 over the address and the sorted parameters, base64.
pub fn signature(token: &str, url: &str, parameters: &[(&str, &str)]) -> String {
    let mut sorted = parameters.to_vec();
    sorted.sort_unstable();
    let parameters: String = sorted.iter().map(|(name, value)| format!("{name}{value}")).collect();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.as_bytes());
    STANDARD.encode(ring::hmac::sign(&key, format!("{url}{parameters}").as_bytes()))
}

/// A form body.
pub fn form_of(parameters: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| format!("{}={}", form::encoded(name), form::encoded(value));
    parameters.iter().map(pair).collect::<Vec<_>>().join("&")
}

impl Api {
    fn messages(&self) -> MutexGuard<'_, Vec<Listed>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages of a day, newest first, a page at a time; the way to the next page is a path with a token.
    fn list(&self, query: &str) -> Answer {
        let mut asked = Asked::default();
        for (name, value) in form::decoded(query) {
            let fits = match name.as_str() {
                "DateSent" => value.parse().map(|day| asked.day = Some(day)).is_ok(),
                "PageSize" => value.parse().map(|size| asked.size = size).is_ok() && PAGE_SIZES.contains(&asked.size),
                "Page" => value.parse().map(|page| asked.page = page).is_ok(),
                "PageToken" => value.strip_prefix("PASM").map(|sid| asked.after = Some(format!("SM{sid}"))).is_some(),
                _ => false,
            };
            if !fits {
                return refusal(400, 20001, &format!("Invalid parameter {name}"));
            }
        }
        if asked.page > 0 && asked.after.is_none() {
            return refusal(400, 20001, "Page without PageToken");
        }
        let mut found = self.messages().clone();
        found.retain(|message| match (message.date_sent, asked.day) {
            (Some(sent), Some(day)) => sent.date_naive() == day,
            (sent, None) => sent.is_some(),
            (None, Some(_)) => false,
        });
        found.sort_by(|one, other| other.date_sent.cmp(&one.date_sent).then(one.sid.cmp(&other.sid)));
        let from = match &asked.after {
            Some(last) => found.iter().position(|message| message.sid == *last).map_or(found.len(), |at| at + 1),
            None => 0,
        };
        let page: Vec<Listed> = found.iter().skip(from).take(asked.size).cloned().collect();
        let path = format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json");
        let day = asked.day.map(|day| format!("&DateSent={day}")).unwrap_or_default();
        let next = page.last().filter(|_| from + page.len() < found.len()).map(|last| {
            let token = last.sid.replacen("SM", "PASM", 1);
            format!("{path}?PageSize={}{day}&Page={}&PageToken={token}", asked.size, asked.page + 1)
        });
        Answer::json(
            200,
            &json!({
                "messages": page.iter().map(Listed::json).collect::<Vec<_>>(), "page": asked.page, "page_size": asked.size,
                "start": from, "end": from + page.len(), "first_page_uri": format!("{path}?PageSize={}{day}&Page=0", asked.size),
                "previous_page_uri": null, "next_page_uri": next, "uri": format!("{path}?{query}"),
            }),
        )
    }

    fn one(&self, sid: &str) -> Answer {
        match self.messages().iter().find(|message| message.sid == sid) {
            Some(message) => Answer::json(200, &message.json()),
            None => refusal(404, 20404, "The requested resource was not found"),
        }
    }
}

/// A question for a list.
struct Asked {
    day: Option<NaiveDate>,
    size: usize,
    page: usize,
    after: Option<String>,
}

impl Default for Asked {
    fn default() -> Self {
        Self { day: None, size: 50, page: 0, after: None }
    }
}

impl Service for Api {
    fn subjects(&self, _: &Request) -> Vec<String> {
        Vec::new()
    }

    async fn handle(self: Arc<Self>, request: Request, _: Met) -> Answer {
        let basic = STANDARD.encode(format!("{ACCOUNT_SID}:{}", self.account.auth_token));
        if request.header("authorization") != Some(&format!("Basic {basic}")) {
            return refusal(401, 20003, "Authenticate");
        }
        let Some(path) = request.path.strip_prefix(&format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Messages")) else {
            return refusal(404, 20404, "The requested resource was not found");
        };
        if request.method != "GET" {
            return refusal(405, 20004, "Method not allowed");
        }
        match path.strip_prefix('/').and_then(|rest| rest.strip_suffix(".json")) {
            Some(sid) => self.one(sid),
            None if path == ".json" => self.list(&request.query),
            None => refusal(404, 20404, "The requested resource was not found"),
        }
    }

    fn refuse(&self, status: u16, code: Option<i64>) -> Answer {
        match (status, code) {
            (_, Some(code)) => refusal(400, code, "As ordered"),
            (401, _) => refusal(401, 20003, "Authenticate"),
            (429, _) => refusal(429, 20429, "Too Many Requests"),
            (status, _) => Answer::text(status, "text/html", "<html><body>Service unavailable</body></html>"),
        }
    }
}

fn refusal(status: u16, code: i64, message: &str) -> Answer {
    let more = format!("https://www.twilio.com/docs/errors/{code}");
    Answer::json(status, &json!({"code": code, "message": message, "more_info": more, "status": status}))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(url: &str, user: &str, token: &str) -> (u16, Value) {
        let http = crate::edge::client().unwrap();
        let answer = http.get(url).basic_auth(user, Some(token)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    #[test]
    fn the_signature_is_that_of_the_fact_sheet() {
        let parameters = [
            ("To", "+250788123456"),
            ("MessageStatus", "delivered"),
            ("MessageSid", "SM0123456789abcdef0123456789abcdef"),
            ("From", "+12025550123"),
            ("ApiVersion", "2010-04-01"),
            ("AccountSid", "AC00000000000000000000000000000001"),
        ];
        let url = "https://edge.example.rw/v1/sms/twilio/status";
        assert_eq!(signature("test_auth_token", url, &parameters), "CLmOACKriVVxQSWENQY/CVYpU6M=");
    }

    #[tokio::test]
    async fn a_day_comes_in_pages_to_whoever_shows_the_token() {
        let account = Account::generate();
        let twilio = Twilio::start(0, account.clone(), Duration::ZERO).await.unwrap();
        let day = "2026-11-20T12:00:00Z".parse::<DateTime<Utc>>().unwrap();
        for minutes in 0..5 {
            twilio.know(&Listed::new("+250788123456", day + chrono::TimeDelta::minutes(minutes)));
        }
        twilio.know(&Listed::new("+250788123456", day + chrono::TimeDelta::days(1)));
        twilio.know(&Listed { date_sent: None, ..Listed::new("+250788123456", day) });
        let path = format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json?DateSent=2026-11-20&PageSize=2");
        let (mut next, mut seen) = (Some(path), Vec::new());
        while let Some(path) = next {
            let (status, page) = ask(&format!("{}{path}", twilio.url()), ACCOUNT_SID, &account.auth_token).await;
            assert_eq!(status, 200, "{page}");
            seen.extend(page["messages"].as_array().unwrap().iter().map(|found| found["sid"].to_string()));
            next = page["next_page_uri"].as_str().map(str::to_owned);
        }
        seen.dedup();
        assert_eq!((seen.len(), twilio.control().requests().len()), (5, 3));

        let of = async |path: &str, token: &str| ask(&format!("{}{path}", twilio.url()), ACCOUNT_SID, token).await.0;
        let list = format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json");
        assert_eq!(of(&list, "wrong").await, 401);
        for query in ["DateSent=yesterday", "PageSize=0", "PageSize=1001", "Page=1", "Since=now"] {
            assert_eq!(of(&format!("{list}?{query}"), &account.auth_token).await, 400, "{query}");
        }
        let one = format!("/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/SM1.json");
        assert_eq!(of(&one, &account.auth_token).await, 404);
    }
}
