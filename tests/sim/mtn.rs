//! MTN's SMS API V3: token, outbound messages, delivery reports, and inbound messages to our webhook.
//!
//! It refuses what MTN's documents say is refused, and a little more: a field we do not know is a mistake of ours.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::callback::{Callback, Due, Posted, Poster, send_reports};
use crate::control::{self, Control, Fault, Met, Order, Service};
use crate::error::Result;
use crate::http::{Answer, Request, Server};
use crate::keys::{hmac_hex, secret};

pub(crate) mod form;
mod inbound;
mod outbound;

pub use inbound::{Inbound, Proof, Shape};

use form::decoded as form_decoded;
use inbound::kigali;
use outbound::Outbound;

const TOKEN_PATH: &str = "/v1/oauth/access_token";
const OUTBOUND_PATH: &str = "/v3/sms/messages/sms/outbound";
const TOKEN_LIFE: Duration = Duration::from_secs(3599);
/// Where inbound messages go unless a test says otherwise.
pub const SERVICE_CODE: &str = "8080";

/// What the account is known by.
#[derive(Clone, Debug)]
pub struct Account {
    pub api_key: String,
    pub api_secret: String,
    /// What our webhooks ask for.
    pub webhook_secret: String,
}

impl Account {
    pub fn generate() -> Self {
        Self { api_key: secret(), api_secret: secret(), webhook_secret: secret() }
    }
}

/// When delivery reports come.
#[derive(Clone, Copy, Debug)]
pub struct Reports {
    /// `ACCEPTD` this long after the message was taken; none: no such report.
    pub accepted_after: Option<Duration>,
    /// `DELIVERED`; none: never, and the message stays where it is.
    pub delivered_after: Option<Duration>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { accepted_after: Some(Duration::from_millis(20)), delivered_after: Some(Duration::from_millis(60)) }
    }
}

impl Reports {
    pub fn never() -> Self {
        Self { accepted_after: None, delivered_after: None }
    }
}

/// A message that MTN took.
#[derive(Clone, Debug)]
pub struct Sms {
    pub at: DateTime<Utc>,
    /// With its `+`.
    pub recipient: String,
    pub sender: String,
    pub text: String,
    pub client_correlator_id: String,
    pub transaction_id: String,
}

/// The running simulator.
pub struct Mtn {
    server: Server,
    control: Arc<Control>,
    carrier: Arc<Carrier>,
    /// To the inbound webhook.
    inbound: Arc<Poster>,
}

struct Carrier {
    account: Account,
    /// To the delivery status webhook. MTN is not known to try twice.
    reports: Arc<Poster>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tokens: Vec<(String, Instant)>,
    taken: Vec<Sms>,
    reports: Reports,
    next_report: u64,
}

impl Mtn {
    pub async fn start(port: u16, account: Account, latency: Duration) -> Result<Self> {
        let control = Arc::new(Control::default());
        let carrier = Arc::new(Carrier { account, reports: Poster::new(0)?, state: Mutex::default() });
        let server = control::start(port, carrier.clone(), control.clone(), latency).await?;
        Ok(Self { server, control, carrier, inbound: Poster::new(0)? })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The server itself: it can go away and come back.
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    /// See [`Control::fail_with`]. The token is only met by faults that name its path.
    pub fn fail_with(&self, fault: Fault) -> Order<'_> {
        self.control.fail_with(fault)
    }

    /// Every message taken so far, oldest first.
    pub fn messages(&self) -> Vec<Sms> {
        self.carrier.state().taken.clone()
    }

    /// Those to one number.
    pub fn messages_to(&self, phone: &str) -> Vec<Sms> {
        let mut messages = self.messages();
        messages.retain(|sms| sms.recipient == phone);
        messages
    }

    pub fn set_reports(&self, reports: Reports) {
        self.carrier.state().reports = reports;
    }

    /// Every token given out so far stops working, as after a key rotation.
    pub fn expire_tokens(&self) {
        self.carrier.state().tokens.clear();
    }

    /// The base addresses of our two webhooks.
    pub fn set_webhooks(&self, inbound: String, status: String) {
        self.inbound.set_url(inbound);
        self.carrier.reports.set_url(status);
    }

    /// Every delivery report posted so far.
    pub fn reports(&self) -> Vec<Posted> {
        self.carrier.reports.posted()
    }

    /// Posts a delivery report of any content, as MTN would.
    pub async fn report(&self, body: &Value) -> Result<Posted> {
        let callback = self.carrier.report_callback(body.to_string())?;
        self.carrier.reports.post(callback).await
    }

    /// Posts an inbound message and tells what our webhook answered.
    pub async fn deliver(&self, inbound: &Inbound) -> Result<Posted> {
        let (content_type, body) = inbound.encoded();
        self.post_inbound(content_type, body, inbound.proof).await
    }

    /// Posts anything to the inbound webhook.
    pub async fn post_inbound(&self, content_type: &str, body: String, proof: Proof) -> Result<Posted> {
        let key = &self.carrier.account.webhook_secret;
        let mut url = format!("{}/sms-inbound-webhook", self.inbound.url()?);
        let mut headers = vec![("content-type", content_type.to_owned())];
        match proof {
            Proof::Bearer => headers.push(("authorization", format!("Bearer {key}"))),
            Proof::Signature => {
                let timestamp = Utc::now().timestamp().to_string();
                let signature = hmac_hex(key, &[timestamp.as_bytes(), b".", body.as_bytes()]);
                headers.push(("x-timestamp", timestamp));
                headers.push(("x-signature", format!("sha256={signature}")));
            }
            Proof::PathToken => url = format!("{url}/mtn/{key}"),
            Proof::Nothing => {}
        }
        self.inbound.post(Callback { url, headers, body }).await
    }
}

impl Carrier {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token(&self, request: &Request) -> Answer {
        let form = form_decoded(&request.text());
        let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let grant = form_decoded(&request.query);
        let grant = grant.iter().find(|(key, _)| key == "grant_type").map(|(_, value)| value.as_str());
        if request.method != "POST" {
            return Answer::json(405, &json!({"error": "method_not_allowed"}));
        }
        if grant.or(field("grant_type")) != Some("client_credentials") {
            return Answer::json(400, &json!({"error": "unsupported_grant_type"}));
        }
        let account = &self.account;
        if field("client_id") != Some(&account.api_key) || field("client_secret") != Some(&account.api_secret) {
            return Answer::json(401, &json!({"error": "invalid_client"}));
        }
        let token = secret();
        self.state().tokens.push((token.clone(), Instant::now() + TOKEN_LIFE));
        // Lifetimes are strings in MTN's answers.
        Answer::json(
            200,
            &json!({"access_token": token, "token_type": "BearerToken", "expires_in": TOKEN_LIFE.as_secs().to_string(),
                    "issued_at": Utc::now().timestamp_millis().to_string(), "client_id": account.api_key,
                    "scope": "SEND-SMS", "status": "approved", "api_product_list": "[SMS V3]"}),
        )
    }

    async fn outbound(&self, request: &Request, met: Met) -> Answer {
        let known = request.bearer().is_some_and(|token| {
            let state = self.state();
            let alive = |(known, until): &(String, Instant)| known == token && Instant::now() < *until;
            state.tokens.iter().any(alive)
        });
        if !known || request.header("x-api-key") != Some(&self.account.api_key) {
            return failure(4000, "Unauthorized");
        }
        let message = match Outbound::parse(&request.body) {
            Ok(message) => message,
            Err(why) => return failure(5000, &why),
        };
        let transaction_id = format!("{}{:07}", Utc::now().format("%Y%m%d%H%M%S"), self.state().taken.len());
        for recipient in &message.recipients {
            self.state().taken.push(Sms {
                at: Utc::now(),
                recipient: format!("+{recipient}"),
                sender: message.sender.clone(),
                text: message.text.clone(),
                client_correlator_id: message.correlator.clone(),
                transaction_id: transaction_id.clone(),
            });
        }
        if message.wants_report {
            send_reports(&self.reports, self.due(&message, met), met).await;
        }
        Answer::json(
            200,
            &json!({"statusCode": "0000", "statusMessage": "Message sent successfully",
                    "transactionId": transaction_id, "data": {"status": "PENDING"}}),
        )
    }

    fn due(&self, message: &Outbound, met: Met) -> Vec<Due> {
        let plan = self.state().reports;
        let last = match met.fault {
            Some(Fault::FailedReport) => ("UNDELIVERED", "Absent subscriber", "001".to_owned()),
            Some(Fault::LateCode(code)) => ("REJECTED", "Rejected", code.to_string()),
            _ => ("DELIVERED", "Delivered to handset", "000".to_owned()),
        };
        let first = ("ACCEPTD", "Accepted by the SMSC", "000".to_owned());
        let mut due = Vec::new();
        for recipient in &message.recipients {
            for (after, (status, details, error)) in [(plan.accepted_after, &first), (plan.delivered_after, &last)] {
                let Some(after) = after else { continue };
                let id = {
                    let mut state = self.state();
                    state.next_report += 1;
                    88_120_452 + state.next_report
                };
                let now = Utc::now();
                let done = now + chrono::TimeDelta::from_std(after).unwrap_or_default();
                let body = json!({"id": id, "clientCorrelatorId": message.correlator, "deliveryStatus": status,
                                  "details": details, "error": error, "senderAddress": message.sender,
                                  "receiverAddress": recipient, "submittedDate": kigali(now), "completedDate": kigali(done)});
                if let Ok(callback) = self.report_callback(body.to_string()) {
                    due.push(Due { after, callback });
                }
            }
        }
        due
    }

    /// MTN signs nothing, so the secret is in the address we registered.
    fn report_callback(&self, body: String) -> Result<Callback> {
        let url = format!("{}/delivery-status-webhook/mtn/{}", self.reports.url()?, self.account.webhook_secret);
        Ok(Callback { url, headers: vec![("content-type", "application/json".to_owned())], body })
    }
}

impl Service for Carrier {
    fn subjects(&self, request: &Request) -> Vec<String> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let recipients = body.get("receiverAddress").and_then(Value::as_array).cloned();
        let texts = recipients.unwrap_or_default();
        texts.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
    }

    fn only_by_name(&self, request: &Request) -> bool {
        request.path.starts_with(TOKEN_PATH)
    }

    async fn handle(self: Arc<Self>, request: Request, met: Met) -> Answer {
        match (request.method.as_str(), request.path.as_str()) {
            (_, TOKEN_PATH) => self.token(&request),
            ("POST", OUTBOUND_PATH) => self.outbound(&request, met).await,
            (_, OUTBOUND_PATH) => failure(4001, "Method not allowed"),
            _ => Answer::json(404, &json!({"statusCode": "1000", "statusMessage": "Resource not found"})),
        }
    }

    fn refuse(&self, status: u16, code: Option<i64>) -> Answer {
        match (status, code) {
            (_, Some(code)) => failure(code, "As ordered"),
            (401, _) => failure(4000, "Unauthorized"),
            (429, _) => failure(3006, "Rate limit exceeded"),
            (503, _) => failure(3000, "Service unavailable"),
            // Something in front of the service broke: no code of the service, so nobody can know whether it got through.
            (status, _) => Answer::text(status, "text/html", "<html><body>Internal Server Error</body></html>"),
        }
    }
}

/// MTN's error body; a code that is in no table comes with HTTP 200, which MTN does too.
fn failure(code: i64, support: &str) -> Answer {
    let status = match code {
        1000 => 404,
        1001 | 2000 | 5000 | 5001 => 400,
        1005 | 1007 | 3001 => 500,
        1012 | 3003 => 408,
        1013 | 3006 => 429,
        3000 => 503,
        4000 => 401,
        4001 => 405,
        4004 | 6000 | 6001 => 403,
        _ => 200,
    };
    let message = match code {
        4000 => "Unauthorized",
        5000 => "Invalid parameters",
        6000 | 6001 => "Insufficient funds",
        _ => "Request failed",
    };
    Answer::json(
        status,
        &json!({"statusCode": format!("{code:04}"), "statusMessage": message, "supportMessage": support,
                "transactionId": Uuid::new_v4().simple().to_string(), "timestamp": Utc::now().to_rfc3339(),
                "path": "/messages/sms/outbound", "method": "POST"}),
    )
}

#[cfg(test)]
mod tests;
