//! What one does in a world: a call that ended, a text message, a look at the state until it is right.

use std::fmt::Display;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::callback::Posted;
use crate::error::{Context, Result, Trouble};
use crate::mtn::Inbound;
use crate::world::World;

/// How often a state is looked at while we wait for it.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// A call that took place, as the relay would have left it in the database.
#[derive(Clone, Debug)]
pub struct CallSeed {
    pub phone: String,
    /// Number that was called.
    pub to: String,
    pub origin: String,
    pub locale: Option<String>,
    /// (`user` or `assistant`, text), in order.
    pub transcript: Vec<(String, String)>,
    pub started_at: DateTime<Utc>,
    /// None: the call goes on.
    pub ended_at: Option<DateTime<Utc>>,
    /// Evidence in the caller's profile. None: no profile is made.
    pub has_whatsapp: Option<bool>,
    /// The caller wrote on WhatsApp at this time; the simulator's window agrees.
    pub wrote_on_whatsapp_at: Option<DateTime<Utc>>,
    pub allows_sms: bool,
    /// A summary that is in the database already: headline, points, next step.
    pub summary: Option<(String, Vec<String>, Option<String>)>,
}

impl CallSeed {
    /// A call of three minutes that ended now, about a house in Kimironko.
    pub fn new(phone: &str) -> Self {
        let now = Utc::now();
        let said = [
            ("assistant", "Hello, this is EasyMO. How can I help you?"),
            ("user", "Hello, I want to rent a house in Kimironko."),
            ("assistant", "Gladly. What is your budget, and how many bedrooms do you need?"),
            ("user", "300k RWF a month, two bedrooms."),
            ("assistant", "Thank you. We will send you matching houses today."),
        ];
        Self {
            phone: phone.to_owned(),
            to: "+250788000000".to_owned(),
            origin: "mtn_sip".to_owned(),
            locale: Some("en".to_owned()),
            transcript: said.map(|(role, text)| (role.to_owned(), text.to_owned())).to_vec(),
            started_at: now - TimeDelta::minutes(3),
            ended_at: Some(now),
            has_whatsapp: None,
            wrote_on_whatsapp_at: None,
            allows_sms: true,
            summary: None,
        }
    }

    pub fn locale(mut self, locale: &str) -> Self {
        self.locale = Some(locale.to_owned());
        self
    }

    /// What was said, as (`user` or `assistant`, text).
    pub fn transcript(mut self, lines: &[(&str, &str)]) -> Self {
        self.transcript = lines.iter().map(|(role, text)| ((*role).to_owned(), (*text).to_owned())).collect();
        self
    }

    pub fn has_whatsapp(mut self, has: bool) -> Self {
        self.has_whatsapp = Some(has);
        self
    }

    /// On WhatsApp, and wrote there just now: the service window is open.
    pub fn on_whatsapp_now(mut self) -> Self {
        self.has_whatsapp = Some(true);
        self.wrote_on_whatsapp_at = Some(Utc::now() - TimeDelta::minutes(1));
        self
    }

    pub fn allows_sms(mut self, allows: bool) -> Self {
        self.allows_sms = allows;
        self
    }

    pub fn in_progress(mut self) -> Self {
        self.ended_at = None;
        self
    }

    /// A summary that is already written.
    pub fn summary(mut self, headline: &str, points: &[&str], next_step: Option<&str>) -> Self {
        let points = points.iter().map(|point| (*point).to_owned()).collect();
        self.summary = Some((headline.to_owned(), points, next_step.map(str::to_owned)));
        self
    }
}

/// A call in the database.
#[derive(Clone, Debug)]
pub struct SeededCall {
    pub id: Uuid,
    pub provider_call_id: String,
    pub profile_id: Option<Uuid>,
    pub phone: String,
}

/// An answer of one of our functions.
#[derive(Clone, Debug)]
pub struct Answered {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Answered {
    /// The correlation id that an accepted request is answered with, in the spelling of the answer.
    pub fn correlation_id(&self) -> Option<&str> {
        let named = self.body.get("correlation_id").or(self.body.get("correlationId"));
        named.and_then(Value::as_str)
    }
}

impl World {
    /// Writes a call, its transcript and, if asked for, its caller's profile into the database.
    pub async fn seed_call(&self, seed: &CallSeed) -> Result<SeededCall> {
        let profile_id = match seed.has_whatsapp {
            Some(has) => Some(self.seed_profile(seed, has).await?),
            None => None,
        };
        let call = SeededCall {
            id: Uuid::new_v4(),
            provider_call_id: format!("call-{}", Uuid::new_v4().simple()),
            profile_id,
            phone: seed.phone.clone(),
        };
        let status = if seed.ended_at.is_some() { "completed" } else { "in_progress" };
        self.execute(
            "insert into public.voice_calls
               (id, profile_id, origin, provider_call_id, from_number, to_number, locale, status, started_at, answered_at, ended_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10)",
            &[
                &call.id,
                &call.profile_id,
                &seed.origin,
                &call.provider_call_id,
                &seed.phone,
                &seed.to,
                &seed.locale,
                &status,
                &seed.started_at,
                &seed.ended_at,
            ],
        )
        .await?;
        for (seq, (role, text)) in seed.transcript.iter().enumerate() {
            self.execute(
                "insert into public.transcripts (call_id, seq, role, text, language) values ($1, $2, $3, $4, $5)",
                &[&call.id, &(seq as i32), role, text, &seed.locale],
            )
            .await?;
        }
        if let Some((headline, points, next_step)) = &seed.summary {
            self.execute(
                "insert into public.call_summaries (call_id, language, headline, points, next_step) values ($1, $2, $3, $4, $5)",
                &[&call.id, &seed.locale, headline, &json!(points), next_step],
            )
            .await?;
        }
        Ok(call)
    }

    async fn seed_profile(&self, seed: &CallSeed, has_whatsapp: bool) -> Result<Uuid> {
        if let Some(at) = seed.wrote_on_whatsapp_at {
            self.whatsapp().open_window_at(&seed.phone, at);
        }
        let id = Uuid::new_v4();
        let row = self
            .query(
                "insert into public.profiles (id, phone_number, has_whatsapp, has_whatsapp_source, has_whatsapp_at, allows_sms,
                   locale, last_whatsapp_inbound_at)
                 values ($1, $2, $3, 'inbound', now(), $4, $5, $6)
                 on conflict (phone_number) do update set has_whatsapp = excluded.has_whatsapp,
                   has_whatsapp_source = excluded.has_whatsapp_source, has_whatsapp_at = excluded.has_whatsapp_at,
                   allows_sms = excluded.allows_sms, locale = excluded.locale,
                   last_whatsapp_inbound_at = excluded.last_whatsapp_inbound_at
                 returning id",
                &[&id, &seed.phone, &has_whatsapp, &seed.allows_sms, &seed.locale, &seed.wrote_on_whatsapp_at],
            )
            .await?;
        row.first().map(|row| row.get(0)).ok_or_else(|| Trouble::new("the profile was not written"))
    }

    /// Asks for the notification of a call, with the service key.
    pub async fn post_call_notify(&self, call: &SeededCall) -> Result<Answered> {
        self.post_call_notify_with(&json!({"callId": call.id, "phoneNumber": call.phone})).await
    }

    /// The same with a body of one's own.
    pub async fn post_call_notify_with(&self, body: &Value) -> Result<Answered> {
        let key = format!("Bearer {}", self.secret("SUPABASE_SERVICE_ROLE_KEY")?);
        let headers = [("authorization", key.as_str()), ("content-type", "application/json")];
        self.post("post-call-notify", "", &headers, body.to_string()).await
    }

    /// What became of a notification, as its endpoint tells.
    pub async fn notification(&self, correlation_id: &str) -> Result<Answered> {
        let url = format!("{}/post-call-notify/{correlation_id}", self.edge()?.url("post-call-notify")?);
        let key = format!("Bearer {}", self.secret("SUPABASE_SERVICE_ROLE_KEY")?);
        self.send(self.http.get(url).header("authorization", key)).await
    }

    /// POSTs to a function; `path` is appended to its name.
    pub async fn post(
        &self,
        function: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answered> {
        let url = format!("{}/{function}{path}", self.edge()?.url(function)?);
        let mut request = self.http.post(url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answered> {
        let answer = request.send().await.context("the function does not answer")?;
        let status = answer.status().as_u16();
        let show = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers = answer.headers().iter().map(show).collect();
        let text = answer.text().await.context("the function broke off")?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answered { status, headers, body })
    }

    /// A text message from a phone, through MTN to our webhook.
    pub async fn sms_from(&self, phone: &str, text: &str) -> Result<Posted> {
        self.mtn().deliver(&Inbound::new(phone, text)).await
    }

    /// A WhatsApp message from a phone, through Meta to our webhook.
    pub async fn whatsapp_from(&self, phone: &str, text: &str) -> Result<Posted> {
        self.whatsapp().deliver(phone, text).await
    }

    /// Runs a query as the owner of the database.
    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<tokio_postgres::Row>> {
        let client = self.db().await?;
        client.query(sql, parameters).await.context(format!("the query failed: {sql}"))
    }

    /// Runs a statement as the owner of the database; the number of rows it touched.
    pub async fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        let client = self.db().await?;
        client.execute(sql, parameters).await.context(format!("the statement failed: {sql}"))
    }

    /// The rows of a query as JSON objects, column names as keys.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Map<String, Value>>> {
        let rows = self.query(&format!("select to_jsonb(q) from ({sql}) q"), &[]).await?;
        let objects = rows.iter().map(|row| row.get::<_, Value>(0));
        Ok(objects.filter_map(|value| value.as_object().cloned()).collect())
    }

    /// Looks until `look` finds something, and returns it. `what` finishes the sentence "waited for …".
    pub async fn wait_for<T, F, W>(&self, what: impl Display, deadline: Duration, mut look: F) -> Result<T>
    where
        F: FnMut() -> W,
        W: Future<Output = Result<Option<T>>>,
    {
        let since = Instant::now();
        loop {
            let last = match look().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => None,
                Err(trouble) => Some(trouble),
            };
            if since.elapsed() >= deadline {
                let lines = self.recent_lines();
                return Err(match last {
                    Some(trouble) => {
                        Trouble::new(format!("waited {deadline:?} for {what}; at last: {trouble:?}{lines}"))
                    }
                    None => Trouble::new(format!("waited {deadline:?} for {what}, in vain{lines}")),
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks until the query returns a row that holds `true`, such as `select count(*) = 1 from …`.
    pub async fn wait_for_sql(&self, sql: &str, deadline: Duration) -> Result<()> {
        let client = self.db().await?;
        self.wait_for(sql, deadline, || async {
            let row = client.query_opt(sql, &[]).await.context("the query failed")?;
            Ok(row.and_then(|row| row.get::<_, bool>(0).then_some(())))
        })
        .await
    }

    /// The end of the functions' log, for the reader of a failure.
    fn recent_lines(&self) -> String {
        const SHOWN: usize = 25;
        let lines = self.logs().unwrap_or_default();
        if lines.is_empty() {
            return String::new();
        }
        let from = lines.len().saturating_sub(SHOWN);
        let shown: Vec<&str> = lines.iter().skip(from).map(|line| line.text.as_str()).collect();
        format!("\nthe functions' last lines:\n{}", shown.join("\n"))
    }
}
