//! The story of the demo: what happens to whom, and how it is seen to have happened.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ihuza_sim::phone::PhoneCall;
use ihuza_sim::verbs::{CallSeed, SeededCall};
use ihuza_sim::whatsapp::Statuses;
use ihuza_sim::world::{Provider, World};
use serde_json::{Map, Value, json};

use super::bill::{self, Bill};
use super::phone_call;
use crate::local_world::Keys;
use crate::progress;

/// How long any one thing may take to happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// The real model and the real carriers take longer.
const PATIENCE_WITH_REAL_ONES: Duration = Duration::from_secs(90);

/// What an operator enters before the first message: prices of the story, nobody's real ones.
const BUDGET: &str = "insert into public.client_budgets (client_id, currency, soft_limit, hard_limit, sms_segment_price, whatsapp_template_price)
                      select id, 'RWF', 400000, 500000, 12, 9 from public.clients where is_default
                      on conflict (client_id) do nothing";

/// How long a person takes to look at a message.
const READ_AFTER: Duration = Duration::from_millis(400);

const MUKAMANA: &str = "+250788100100";
const ERIC: &str = "+250788200200";
const UWASE: &str = "+250788300300";

pub struct Story<'a> {
    pub(super) world: &'a World,
    keys: &'a Keys,
    pub(super) patience: Duration,
    timings: Map<String, Value>,
    phone_call: Option<PhoneCall>,
    bill: Option<Bill>,
}

/// How a call comes about.
enum Way {
    /// Somebody phones.
    Phone,
    /// Another call handler wrote it into the database, and tells post-call-notify of its end.
    Reported(Box<CallSeed>),
}

/// A session, as a step finds it.
struct Session {
    id: String,
    status: String,
}

impl<'a> Story<'a> {
    pub fn new(world: &'a World, keys: &'a Keys) -> Self {
        let patience = if keys.real.is_empty() { PATIENCE } else { PATIENCE_WITH_REAL_ONES };
        Self { world, keys, patience, timings: Map::new(), phone_call: None, bill: None }
    }

    /// Milliseconds that each step took, by person and step.
    pub fn timings(&self) -> &Map<String, Value> {
        &self.timings
    }

    /// The call that was phoned.
    pub fn phone_call(&self) -> Option<&PhoneCall> {
        self.phone_call.as_ref()
    }

    /// What the story cost, when it was told to its end.
    pub fn bill(&self) -> Option<&Bill> {
        self.bill.as_ref()
    }

    pub async fn tell(&mut self, only_to: Option<&str>) -> Result<()> {
        let started = Instant::now();
        self.world.execute(BUDGET, &[]).await.context("the budget was not written")?;
        for entry in [bill::PRICES, bill::RATE] {
            self.world.execute(entry, &[]).await.context("the prices were not written")?;
        }
        // The people of the story look at what arrives.
        self.world.whatsapp().set_statuses(Statuses { read_after: Some(READ_AFTER), ..Statuses::default() });
        if let Some(number) = only_to {
            let way = self.phone_or(CallSeed::new(number));
            self.call_then_sms("You", "you", number, way, &["sms"]).await?;
        } else {
            let way = self.phone_or(CallSeed::new(MUKAMANA));
            self.call_then_sms("Mukamana, with a feature phone,", "mukamana", MUKAMANA, way, &["sms"]).await?;
            let way = Way::Reported(Box::new(CallSeed::new(ERIC).on_whatsapp_now()));
            let who = "Eric, with WhatsApp on his phone,";
            self.call_then_sms(who, "eric", ERIC, way, &["whatsapp", "sms"]).await?;
            self.goes_on_over_whatsapp(who, "eric", ERIC).await?;
            self.sms_without_call().await?;
        }
        self.delivery_reports().await?;
        let bill = Bill::read(self.world, self.patience).await;
        self.bill.insert(bill.with_context(|| step("The operator", "there is no bill"))?).print();
        progress::headline(&format!("The whole story took {}", progress::seconds(started.elapsed())));
        Ok(())
    }

    /// What the real model would say nobody knows.
    fn phone_or(&self, seed: CallSeed) -> Way {
        if self.keys.is_real(Provider::OpenAi) { Way::Reported(Box::new(seed)) } else { Way::Phone }
    }

    /// A call that ended becomes a summary; the answer to it carries on the same session.
    async fn call_then_sms(&mut self, who: &str, key: &str, phone: &str, way: Way, channels: &[&str]) -> Result<()> {
        progress::headline(&format!("{who} {phone}"));
        let phones = matches!(way, Way::Phone);
        let (call, since) = match way {
            Way::Phone => self.phones(who, key, phone).await?,
            Way::Reported(seed) => self.reported(who, key, &seed).await?,
        };
        for channel in channels {
            let text = self
                .received(channel, phone, 1)
                .await
                .with_context(|| step(who, &format!("no summary arrived by {channel}")))?;
            self.happened(key, &format!("{channel}_summary"), since, &format!("{} summary", name_of(channel)));
            bubble(&text);
            self.check_summary(channel, &text).with_context(|| step(who, "the summary is not as promised"))?;
        }
        let before = self
            .session_of_call(&call)
            .await
            .with_context(|| step(who, "there is no session in follow_up for the call"))?;
        self.check_logged(&before.id, "call_summary", channels)
            .await
            .with_context(|| step(who, "the delivery log does not show the summary"))?;

        let wish = "Change budget to 250k";
        progress::note("An answer by SMS:");
        own_bubble(wish);
        let texts_before = self.sms_to(phone).await?;
        let since = Instant::now();
        self.text(phone, wish).await.with_context(|| step(who, "the SMS was not accepted"))?;
        self.happened(key, "reply_accepted", since, "sms-inbound-webhook accepted it");
        let answer = self
            .received("sms", phone, texts_before + 1)
            .await
            .with_context(|| step(who, "the AI's answer did not arrive by SMS"))?;
        self.happened(key, "answer", since, "the AI answers by SMS");
        bubble(&answer);
        if !self.keys.is_real(Provider::OpenAi) {
            ensure!(answer.contains("250"), step(who, "the answer does not take up the new budget"));
        }
        let after = self
            .session_with_answer(phone, wish)
            .await
            .with_context(|| step(who, "the SMS and its answer are not in one session"))?;
        ensure!(after.id == before.id, step(who, "the answer is in another session than the summary"));
        progress::done(&format!("the same session as the call, now {}", after.status));
        if phones {
            self.budget_is_changed(&call).await.with_context(|| step(who, "the budget is not changed in its row"))?;
            self.one_id(&call, wish).await.with_context(|| step(who, "no one id leads from the call to the answer"))?;
            self.ride_is_changed(who, key, phone, &call, &before.id).await?;
            self.asks_for_a_person(who, key, phone, &before.id).await?;
        }
        Ok(())
    }

    /// He takes the other channel, and the conversation goes on. With real keys nobody here can write in his name.
    async fn goes_on_over_whatsapp(&mut self, who: &str, key: &str, phone: &str) -> Result<()> {
        if self.keys.is_real(Provider::WhatsApp) || self.keys.is_real(Provider::OpenAi) {
            return Ok(());
        }
        let wish = "And 3 bedrooms please";
        progress::note("An answer on WhatsApp:");
        own_bubble(wish);
        let before = self.world.whatsapp().messages_to(phone).len();
        let since = Instant::now();
        let posted = self.world.whatsapp().deliver(phone, wish).await?;
        ensure!(
            posted.status == Some(200),
            step(who, &format!("whatsapp-webhook did not accept it: {}", posted.answer))
        );
        self.happened(key, "whatsapp_accepted", since, "whatsapp-webhook accepted it");
        let answer = self
            .received("whatsapp", phone, before + 1)
            .await
            .with_context(|| step(who, "the AI's answer did not arrive on WhatsApp"))?;
        self.happened(key, "whatsapp_answer", since, "the AI answers on WhatsApp");
        bubble(&answer);
        ensure!(answer.contains("3 bedrooms"), step(who, "the answer does not take up the bedrooms"));
        let sql = format!(
            "select count(*) = 1 and bool_and(s.active_channels @> array['voice', 'sms', 'whatsapp'])
               from public.omnichannel_sessions s join public.profiles p on p.id = s.profile_id where p.phone_number = '{phone}'"
        );
        self.world
            .wait_for_sql(&sql, self.patience)
            .await
            .with_context(|| step(who, "call, SMS and WhatsApp are not one session"))?;
        progress::done("call, SMS and WhatsApp are one session");
        self.ticks(key, phone, since).await.with_context(|| step(who, "the answer is not reported as read"))?;
        self.back_to_sms(who, key, phone).await
    }

    /// What WhatsApp reports of its newest message, as it comes.
    async fn ticks(&mut self, key: &str, phone: &str, since: Instant) -> Result<()> {
        for (status, words) in
            [("sent", "one tick: sent"), ("delivered", "two ticks: delivered"), ("read", "two blue ticks: read")]
        {
            let sql = format!(
                "select exists (
                   select from public.message_status_events e
                    where e.status = '{status}' and e.source = 'provider' and e.delivery_id = (
                      select d.id from public.message_delivery_log d
                       where d.recipient = '{phone}' and d.channel = 'whatsapp' and d.direction = 'outbound'
                       order by d.created_at desc limit 1))"
            );
            self.world.wait_for_sql(&sql, self.patience).await?;
            self.happened(key, &format!("whatsapp_{status}"), since, words);
        }
        Ok(())
    }

    async fn back_to_sms(&mut self, who: &str, key: &str, phone: &str) -> Result<()> {
        let wish = "Can I see it on Saturday?";
        progress::note("And back to SMS:");
        own_bubble(wish);
        let texts_before = self.sms_to(phone).await?;
        let since = Instant::now();
        self.text(phone, wish).await.with_context(|| step(who, "the second SMS was not accepted"))?;
        let answer = self.received("sms", phone, texts_before + 1).await;
        let answer = answer.with_context(|| step(who, "the AI's second answer did not arrive by SMS"))?;
        self.happened(key, "second_answer", since, "the AI answers by SMS");
        bubble(&answer);
        ensure!(answer.contains("3 bedrooms"), step(who, "what was said on WhatsApp is forgotten by SMS"));
        let sql = format!(
            "select count(*) = 1 from public.omnichannel_sessions s join public.profiles p on p.id = s.profile_id where p.phone_number = '{phone}'"
        );
        self.world.wait_for_sql(&sql, self.patience).await.with_context(|| step(who, "there is a second session"))?;
        progress::done("still the same session");
        Ok(())
    }

    async fn phones(&mut self, who: &str, key: &str, phone: &str) -> Result<(SeededCall, Instant)> {
        let told = phone_call::tell(self.world, phone, self.patience).await;
        let told = told.with_context(|| step(who, "the phone call did not go as it should"))?;
        self.timings.extend(told.timings.into_iter().map(|(what, ms)| (format!("{key}.{what}"), ms)));
        let since = told.hung_up;
        self.phone_call = Some(told.call);
        let id = told.id.parse().context("the id of the call is no UUID")?;
        let provider_call_id = told.provider_call_id;
        Ok((SeededCall { id, provider_call_id, profile_id: None, phone: phone.to_owned() }, since))
    }

    async fn reported(&mut self, who: &str, key: &str, seed: &CallSeed) -> Result<(SeededCall, Instant)> {
        let call = self.world.seed_call(seed).await.context("the call was not written into the database")?;
        said(seed);
        progress::note("The call ends, and another call handler tells post-call-notify:");
        let since = Instant::now();
        self.announce(&call).await.with_context(|| step(who, "the notification was not accepted"))?;
        self.happened(key, "accepted", since, "post-call-notify accepted it");
        Ok((call, since))
    }

    /// Writes an SMS, which is answered by SMS in the session that there is; the answer. `what` it is about, for the timings.
    pub(super) async fn says(
        &mut self,
        who: &str,
        key: &str,
        phone: &str,
        session: &str,
        (what, wish): (&str, &str),
    ) -> Result<String> {
        own_bubble(wish);
        let texts_before = self.sms_to(phone).await?;
        let since = Instant::now();
        let failed = |what: &str| step(who, &format!("{what} ({wish:?})"));
        self.text(phone, wish).await.with_context(|| failed("the SMS was not accepted"))?;
        let answer = self.received("sms", phone, texts_before + 1).await;
        let answer = answer.with_context(|| failed("no answer arrived by SMS"))?;
        self.happened(key, what, since, "the AI answers by SMS");
        bubble(&answer);
        let answered = self.session_with_answer(phone, wish).await;
        let answered = answered.with_context(|| failed("the SMS and its answer are not in one session"))?;
        ensure!(answered.id == session, failed("the answer is in another session than the summary"));
        Ok(answer)
    }

    /// What was asked for on the phone is one row, which the SMS has changed.
    async fn budget_is_changed(&self, call: &SeededCall) -> Result<()> {
        let sql = format!(
            "select count(*) = 1 and bool_and(r.budget = 250000 and exists (
                      select from public.request_changes c where c.service_request_id = r.id and c.channel = 'sms' and c.changed_by = 'person'))
               from public.service_requests r where r.call_id = '{}'",
            call.id
        );
        self.world.wait_for_sql(&sql, self.patience).await?;
        progress::done(
            "the request of the call says so now: one row of service_requests, changed by service_request_save",
        );
        Ok(())
    }

    /// The id that the relay drew at the INVITE is on the call, its tool calls and its summary's messages; the turn that
    /// answers the reply is in the conversation which that id leads to, and its messages name the call.
    async fn one_id(&self, call: &SeededCall, wish: &str) -> Result<()> {
        let sid = json!(call.provider_call_id);
        let lines = self.world.relay()?.logs();
        let invite = lines.iter().find(|line| {
            line.get("event").is_some_and(|event| event == "CALL_STARTED") && line.get("call_sid") == Some(&sid)
        });
        let id = invite.and_then(|line| line.get("correlation_id")?.as_str()).context("the relay told of no INVITE")?;
        let id = id.replace('\'', "");
        let sql = format!(
            "select (select correlation_id = '{id}' from public.voice_calls where id = '{call}')
                and (select bool_and(correlation_id = '{id}') from public.mcp_tool_calls where call_id = '{call}' and turn_id is null)
                and (select bool_and(correlation_id = '{id}') from public.message_delivery_log where call_id = '{call}' and purpose = 'call_summary')
                and exists (
                  select from public.conversation_turns turn
                    join public.conversation_messages asked on asked.turn_id = turn.id and asked.role = 'user' and asked.content = '{wish}'
                    join public.conversation_messages answered on answered.turn_id = turn.id and answered.role = 'assistant'
                   where turn.call_correlation_id = '{id}' and turn.finished_at is not null)",
            call = call.id,
        );
        self.world.wait_for_sql(&sql, self.patience).await?;
        progress::done(&format!("one correlation id leads from the INVITE to this answer: {id}"));
        Ok(())
    }

    /// Somebody who never called writes first.
    async fn sms_without_call(&mut self) -> Result<()> {
        let who = "Uwase, who never called,";
        progress::headline(&format!("{who} {UWASE}"));
        let wish = "I want to rent a house in Remera, two bedrooms, 200k";
        own_bubble(wish);
        let since = Instant::now();
        self.text(UWASE, wish).await.with_context(|| step(who, "the SMS was not accepted"))?;
        let answer =
            self.received("sms", UWASE, 1).await.with_context(|| step(who, "the AI's answer did not arrive by SMS"))?;
        self.happened("uwase", "answer", since, "the AI answers by SMS");
        bubble(&answer);
        let session = self
            .session_with_answer(UWASE, wish)
            .await
            .with_context(|| step(who, "the SMS and its answer are not in one session"))?;
        ensure!(session.status == "active", step(who, "her session is not active"));
        progress::done("a session of her own, begun by SMS");
        Ok(())
    }

    /// Carriers report what became of each message; the log follows.
    async fn delivery_reports(&mut self) -> Result<()> {
        progress::headline("Delivery reports");
        let since = Instant::now();
        let arrived = if self.keys.real.is_empty() { "('delivered', 'read')" } else { "('sent', 'delivered', 'read')" };
        self.world
            .wait_for_sql(
                &format!(
                    "select count(*) > 0 and bool_and(status in {arrived}) from public.message_delivery_log
                      where direction = 'outbound'"
                ),
                self.patience,
            )
            .await
            .context(step("The carriers", "not every message is reported as delivered"))?;
        self.happened("all", "delivered", since, "every message is reported as delivered");
        // What a carrier has not billed yet counts with its price.
        let sql = "select p.phone_number, d.channel, d.purpose, d.status, d.segments,
                          trim_scale(s.amount)::text as cost, s.currency::text from public.message_delivery_log d
                     join public.profiles p on p.id = d.profile_id
                     left join public.send_permits s on s.delivery_id = d.id
                    where d.direction = 'outbound' order by d.created_at";
        for row in self.world.rows(sql).await? {
            let text = |column: &str| row.get(column).and_then(Value::as_str).unwrap_or_default().to_owned();
            let segments = match row.get("segments").and_then(Value::as_i64) {
                Some(1) => "1 segment".to_owned(),
                Some(count) => format!("{count} segments"),
                None => String::new(),
            };
            progress::note(&format!(
                "{:<15} {:<9} {:<13} {:<10} {segments:<10} {:>4} {}",
                text("phone_number"),
                text("channel"),
                text("purpose"),
                text("status"),
                text("cost"),
                text("currency")
            ));
            ensure!(!text("cost").is_empty(), step("The operator", "a message has no cost"));
        }
        let sql = "select trim_scale(committed)::text as committed, currency::text, trim_scale(hard_limit)::text as hard_limit from public.v_budget_months";
        for row in self.world.rows(sql).await? {
            let text = |column: &str| row.get(column).and_then(Value::as_str).unwrap_or_default().to_owned();
            progress::note(&format!(
                "this month so far {} {} of {}",
                text("committed"),
                text("currency"),
                text("hard_limit")
            ));
        }
        Ok(())
    }

    async fn announce(&self, call: &SeededCall) -> Result<()> {
        let answer = self.world.post_call_notify(call).await?;
        ensure!(answer.status == 202, "it answered {} {}", answer.status, answer.body);
        ensure!(answer.correlation_id().is_some(), "it named no correlation id: {}", answer.body);
        Ok(())
    }

    /// An SMS into our webhook: from the simulated carrier, or, where the real one is used, with its secret.
    async fn text(&self, phone: &str, text: &str) -> Result<()> {
        if !self.keys.is_real(Provider::Mtn) {
            let posted = self.world.sms_from(phone, text).await?;
            ensure!(posted.status == Some(200), "it answered {:?} {}", posted.status, posted.answer);
            return Ok(());
        }
        let bearer = format!("Bearer {}", self.world.secret("MTN_WEBHOOK_SECRET")?);
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let to = self.world.secret("MTN_SMS_SERVICE_CODE").unwrap_or("EasyMO");
        let body = json!({ "from": phone, "to": to, "message": text }).to_string();
        let answer = self.world.post("sms-inbound-webhook", "", &headers, body).await?;
        ensure!(answer.status == 200, "it answered {} {}", answer.status, answer.body);
        Ok(())
    }

    /// Waits until the carrier holds `count` messages to this phone, and returns the newest.
    async fn received(&self, channel: &str, phone: &str, count: usize) -> Result<String> {
        let what = format!("message {count} to {phone} by {channel}");
        let look = async || {
            let texts = self.arrived(channel, phone).await?;
            Ok(texts.into_iter().nth(count - 1))
        };
        Ok(self.world.wait_for(what, self.patience, look).await?)
    }

    /// How many SMS this phone has got.
    async fn sms_to(&self, phone: &str) -> Result<usize> {
        Ok(self.arrived("sms", phone).await?.len())
    }

    /// What the carrier was given for this phone, oldest first. Where the carrier is the real one, only the delivery log
    /// can tell.
    async fn arrived(&self, channel: &str, phone: &str) -> ihuza_sim::error::Result<Vec<String>> {
        let carrier = if channel == "whatsapp" { Provider::WhatsApp } else { Provider::Mtn };
        if self.keys.is_real(carrier) {
            let sql = format!(
                "select d.content from public.message_delivery_log d join public.profiles p on p.id = d.profile_id
                  where p.phone_number = '{phone}' and d.channel = '{channel}' and d.direction = 'outbound'
                    and d.status in ('sent', 'delivered', 'read') order by d.created_at"
            );
            let rows = self.world.rows(&sql).await?;
            let content =
                |row: &Map<String, Value>| row.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
            return Ok(rows.iter().map(content).collect());
        }
        Ok(if channel == "whatsapp" {
            self.world.whatsapp().messages_to(phone).into_iter().map(|sent| sent.shown).collect()
        } else {
            self.world.mtn().messages_to(phone).into_iter().map(|sms| sms.text).collect()
        })
    }

    fn check_summary(&self, channel: &str, text: &str) -> Result<()> {
        let opening = if channel == "whatsapp" { "EasyMO Call Summary" } else { "EasyMO summary:" };
        ensure!(text.contains(opening), "it does not say {opening:?}");
        Ok(())
    }

    async fn session_of_call(&self, call: &SeededCall) -> Result<Session> {
        let sql = format!(
            "select id::text, status from public.omnichannel_sessions where call_id = '{}' and status = 'follow_up'",
            call.id
        );
        self.session("a session in follow_up", &sql).await
    }

    /// The session in which this person's words are followed by an answer.
    async fn session_with_answer(&self, phone: &str, words: &str) -> Result<Session> {
        let sql = format!(
            "select s.id::text, s.status from public.omnichannel_sessions s
               join public.profiles p on p.id = s.profile_id and p.phone_number = '{phone}'
               join public.conversation_messages asked on asked.session_id = s.id and asked.direction = 'inbound'
                and asked.role = 'user' and asked.channel = 'sms' and asked.content = '{}'
               join public.conversation_messages answered on answered.session_id = s.id and answered.direction = 'outbound'
                and answered.role = 'assistant' and answered.seq > asked.seq",
            words.replace('\'', "''")
        );
        self.session("a question and its answer in one session", &sql).await
    }

    async fn session(&self, what: &str, sql: &str) -> Result<Session> {
        Ok(self
            .world
            .wait_for(what, self.patience, async || {
                let rows = self.world.rows(sql).await?;
                let text = |column: &str| rows.first()?.get(column)?.as_str().map(str::to_owned);
                Ok(text("id").zip(text("status")).map(|(id, status)| Session { id, status }))
            })
            .await?)
    }

    async fn check_logged(&self, session: &str, purpose: &str, channels: &[&str]) -> Result<()> {
        for channel in channels {
            let sql = format!(
                "select count(*) = 1 from public.message_delivery_log where session_id = '{session}' and purpose = '{purpose}'
                   and channel = '{channel}' and direction = 'outbound' and status in ('sent', 'delivered', 'read')"
            );
            self.world.wait_for_sql(&sql, self.patience).await?;
        }
        Ok(())
    }

    fn happened(&mut self, who: &str, what: &str, since: Instant, words: &str) {
        let took = since.elapsed();
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.timings.insert(format!("{who}.{what}"), json!(millis));
        progress::done(&format!("{words} after {millis} ms"));
    }
}

pub(super) fn step(who: &str, what: &str) -> String {
    format!("the story broke off. {who} {what}")
}

fn name_of(channel: &str) -> &'static str {
    if channel == "whatsapp" { "WhatsApp" } else { "SMS" }
}

/// What was said in the call.
fn said(seed: &CallSeed) {
    progress::note("on the phone with the agent:");
    for (role, text) in &seed.transcript {
        let speaker = if role == "user" { "person" } else { "agent" };
        progress::note(&format!("  {speaker:>6}: {text}"));
    }
}

/// A message that arrives on a phone.
fn bubble(text: &str) {
    for line in text.lines() {
        progress::note(&format!("    │ {line}"));
    }
}

/// A message that a person writes.
fn own_bubble(text: &str) {
    progress::note(&format!("    > {text}"));
}
