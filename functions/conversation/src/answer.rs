//! What is answered: the fixed text of a keyword, else what the agent says, else, when the model stays away, an apology.

use chrono::TimeDelta;
use ihuza_core::{
    agent,
    channel::Channel,
    error_class::{Classified, ErrorClass},
    json::{items_at, obj, str_at},
    json_text::to_text,
    keyword, local_format,
    locale::{self, Locale},
    log::{Event, Level},
    openai::{self, AgentRequest, Step, ToolCall, ToolLoop, Usage},
    retry::Purpose,
    sms, summary, timestamp,
    tool::{self, Surface},
};
use ihuza_edge::{
    claim,
    context::Cx,
    database, host, model,
    outbox::{Content, Outbox},
    tool as edge_tool,
};
use serde_json::{Map, Value};

use crate::work::Turn;

/// The parts of `finish_sms_turn` that come from answering.
pub struct Answered {
    /// `answered`, `released`, or `suppressed`.
    pub outcome: &'static str,
    pub again_in_s: u32,
    pub next_attempt_at: Option<String>,
    pub reply: Value,
    pub deliveries: Vec<Value>,
    pub providers: Vec<Value>,
    /// After an apology: for how long a real answer is tried. Of an answer that is owed already, 0: give it up.
    pub owed_minutes: Option<u32>,
}

/// Claims of one turn that may end without the model before the person gets an apology.
const PATIENCE: u32 = 3;
/// Wait between them.
const AGAIN_IN_S: u32 = 10;

/// A text to send and how it was come by.
struct Reply {
    text: String,
    source: &'static str,
    model: Option<String>,
    usage: Usage,
}

pub async fn answer(cx: &Cx, turn: &Turn) -> Answered {
    let locale = locale_of(turn);
    if let Some(keyword) = turn.keyword {
        cx.log(
            Level::Info,
            Event::KeywordReceived,
            &format!("{} was asked for", keyword.as_str()),
            &[("keyword", keyword.as_str().into())],
        );
        let contact = turn.claim.client.contact_number.as_deref();
        let text = keyword::reply(keyword, turn.channel, locale, &turn.claim.client.brand, contact, &turn.held);
        let content = Content { whatsapp: text.text.clone(), sms: text, template: Vec::new() };
        let reply = Reply { text: content.sms.text.clone(), source: "keyword", model: None, usage: Usage::default() };
        return deliver(cx, turn, locale, reply, content, Vec::new(), None).await;
    }
    if let Some(answered) = unheard(cx, turn, locale).await {
        return answered;
    }
    let mut providers = Vec::new();
    let mut owed_minutes = None;
    let reply = match ask(cx, turn, locale).await {
        Ok(reply) => {
            providers.push(model::outcome(Ok(())));
            cx.log(
                Level::Info,
                Event::AgentReply,
                "the agent answered",
                &[
                    ("agent", (&turn.claim.agent_slug).into()),
                    ("agent_reason", str_at(&turn.agent, "reason").into()),
                    ("characters", reply.text.chars().count().into()),
                ],
            );
            reply
        }
        Err(why) => {
            if let Why::Down(down) = &why {
                providers.push(model::outcome(Err(down)));
            }
            if turn.is_owed || matches!(why, Why::Down(_) | Why::Paused | Why::Late) && turn.claims < PATIENCE {
                let at = host::now() + TimeDelta::seconds(i64::from(AGAIN_IN_S));
                return Answered {
                    outcome: "released",
                    again_in_s: AGAIN_IN_S,
                    next_attempt_at: Some(timestamp::to_rfc3339(at)),
                    reply: Value::Null,
                    deliveries: Vec::new(),
                    providers,
                    owed_minutes: (turn.is_owed && !why.may_pass()).then_some(0),
                };
            }
            if why.may_pass() {
                owed_minutes = Some(cx.config.number("OWED_ANSWER_MINUTES"));
            }
            cx.log(
                Level::Error,
                Event::AgentFallback,
                &format!("the person gets an apology: {}", why.reason()),
                &[("claims", turn.claims.into())],
            );
            Reply {
                text: agent::apology(locale, &turn.claim.client.brand),
                source: "fallback",
                model: None,
                usage: Usage::default(),
            }
        }
    };
    let content = Content {
        sms: agent::sms_reply(&reply.text, turn.claim.client.most_segments(sms::REPLY_MAX_SEGMENTS)),
        whatsapp: agent::whatsapp_reply(&reply.text),
        template: Vec::new(),
    };
    deliver(cx, turn, locale, reply, content, providers, owed_minutes).await
}

/// Where no channel would carry an answer (the budget is spent, the limits are), nobody is asked for one: only that is recorded,
/// with the reasons.
async fn unheard(cx: &Cx, turn: &Turn, locale: Locale) -> Option<Answered> {
    let outbox = Outbox { cx, claim: &turn.claim, purpose: Purpose::Reply, inbound: turn.channel, locale };
    let nothing = Content { sms: agent::sms_reply("", 1), whatsapp: String::new(), template: Vec::new() };
    if outbox.carries(&nothing, host::now()) {
        return None;
    }
    let sent = outbox.send(&nothing, host::now()).await;
    Some(Answered {
        outcome: "suppressed",
        again_in_s: 0,
        next_attempt_at: None,
        reply: Value::Null,
        deliveries: sent.deliveries,
        providers: Vec::new(),
        owed_minutes: None,
    })
}

async fn deliver(
    cx: &Cx,
    turn: &Turn,
    locale: Locale,
    reply: Reply,
    content: Content,
    providers: Vec<Value>,
    owed_minutes: Option<u32>,
) -> Answered {
    let purpose = if reply.source == "keyword" { Purpose::Keyword } else { Purpose::Reply };
    let outbox = Outbox { cx, claim: &turn.claim, purpose, inbound: turn.channel, locale };
    let sent = outbox.send(&content, host::now()).await;
    // What the person was shown: the model must know it when they come back to it.
    let spoken = if sent.routing.sends(Channel::Whatsapp) { &content.whatsapp } else { &content.sms.text };
    Answered {
        outcome: "answered",
        again_in_s: 0,
        next_attempt_at: None,
        reply: obj(&mut [
            ("content", spoken.into()),
            ("language", (locale::detect(&reply.text).unwrap_or(locale)).into()),
            ("agent_slug", (&turn.claim.agent_slug).into()),
            ("model", reply.model.into()),
            ("usage", reply.usage.to_value().into()),
            ("source", reply.source.into()),
            ("routing", sent.routing.to_value().into()),
            ("renditions", sent.renditions.into()),
        ]),
        deliveries: sent.deliveries,
        providers,
        owed_minutes,
    }
}

/// The language the person chose, else the one they just wrote, else that of what they wrote before, else the call's, else the client's, else English.
fn locale_of(turn: &Turn) -> Locale {
    let tag = Locale::from_tag;
    chosen(turn)
        .or_else(|| turn.language_hint.as_deref().and_then(tag))
        .or_else(|| turn.messages.last().and_then(|message| locale::detect(&message.text)))
        .or_else(|| agent::language_before(&turn.history))
        .or_else(|| str_at(&turn.call_summary, "language").and_then(tag))
        .or_else(|| turn.claim.client.default_locale.as_deref().and_then(tag))
        .unwrap_or(Locale::En)
}

/// The language the person chose: nothing but their own word writes it to their profile.
fn chosen(turn: &Turn) -> Option<Locale> {
    turn.claim.profile.locale.as_deref().and_then(Locale::from_tag)
}

/// Why there is no answer of the agent.
enum Why {
    Down(Classified),
    /// The breaker of the model is open.
    Paused,
    /// The rounds took all the time that a turn has.
    Late,
    NotConfigured,
    /// The model answered, but not with anything that can be sent.
    Useless(&'static str),
}

impl Why {
    /// Whether the same question may well be answered some minutes later: the model was slow, gone, or over a limit, or a key is
    /// being changed. What it refused, or would refuse again, and a model that nobody set up, are not waited for.
    fn may_pass(&self) -> bool {
        match self {
            Why::Down(down) => {
                matches!(down.class, ErrorClass::Retryable | ErrorClass::Unknown | ErrorClass::Config)
            }
            Why::Paused | Why::Late => true,
            Why::NotConfigured | Why::Useless(_) => false,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Why::Down(down) => down.reason,
            Why::Paused => "the breaker of the model is open",
            Why::Late => "the model and its tools took too long",
            Why::NotConfigured => "OPENAI_API_KEY is not set",
            Why::Useless(why) => why,
        }
    }
}

/// The agent's turn: ask, run tools, ask again.
async fn ask(cx: &Cx, turn: &Turn, locale: Locale) -> Result<Reply, Why> {
    if cx.config.find("OPENAI_API_KEY").is_none() {
        return Err(Why::NotConfigured);
    }
    if turn.claim.gates.is_open("openai") {
        return Err(Why::Paused);
    }
    let call_summary = summary::from_value(&turn.call_summary, locale);
    let context = agent::Turn {
        brand: &turn.claim.client.brand,
        instructions: claim::instructions_in(&turn.agent, locale.as_str()),
        locale,
        is_chosen: chosen(turn).is_some(),
        channel: turn.channel,
        call_summary: call_summary.as_ref(),
        call_ended_at: str_at(&turn.call_summary, "call_ended_at").and_then(timestamp::parse_rfc3339),
        known: &turn.known,
        history: &turn.history,
        messages: &turn.messages,
        now: host::now(),
    };
    let instructions = agent::instructions(&context);
    // Those of the agent's row: an operator may switch one off.
    let allowed: Vec<&str> = items_at(&turn.agent, "tools").iter().filter_map(Value::as_str).collect();
    let tools = tool::offered(&allowed, Surface::Text);
    let name = turn.claim.agent_model.as_deref().unwrap_or_else(|| cx.config.text("OPENAI_TEXT_MODEL"));
    let cache_key = ["ihuza-", &turn.claim.agent_slug, "-", locale.as_str(), "-", turn.channel.as_str()].concat();
    let safety_identifier = model::safety_identifier(&turn.claim.profile.id);
    let request = AgentRequest {
        model: name,
        instructions: &instructions,
        tools: &tools,
        safety_identifier: &safety_identifier,
        prompt_cache_key: &cache_key,
    };
    let mut rounds = ToolLoop::new(agent::input(&context));
    let mut usage = Usage::default();
    let started = host::now_ms();
    let time_for = |step_ms| openai::time_for(step_ms, cx.config.number("TURN_TIMEOUT_MS"), host::now_ms() - started);
    loop {
        let timeout_ms = time_for(cx.config.number("MODEL_TIMEOUT_MS")).ok_or(Why::Late)?;
        let reply = model::respond(cx, &rounds.request(&request), timeout_ms).await.map_err(Why::Down)?;
        usage = usage.plus(reply.usage);
        let answered_by = reply.model.clone();
        match rounds.reply(reply) {
            Step::Answer(text) => {
                return Ok(Reply {
                    text,
                    source: "model",
                    model: answered_by.or_else(|| Some(name.to_owned())),
                    usage,
                });
            }
            Step::Failed(why) => return Err(Why::Useless(why)),
            Step::RunTools(calls) => {
                let mut outputs = Vec::with_capacity(calls.len());
                // One after the other: a later call may depend on what an earlier one changed.
                for call in calls {
                    // What was done by then is told to the same call when the turn is done again.
                    let limit_ms =
                        tool::find(&call.name).map_or(cx.config.number("DATABASE_TIMEOUT_MS"), |t| t.deadline_ms);
                    let mut output = run_tool(cx, turn, &call, time_for(limit_ms).ok_or(Why::Late)?).await;
                    local_format::spell_out(&mut output, locale);
                    outputs.push((call.call_id, to_text(&output)));
                }
                rounds.outputs(outputs);
            }
        }
    }
}

/// A tool is an SQL function that takes the session and derives the person itself: nothing the model says can reach another.
async fn run_tool(cx: &Cx, turn: &Turn, call: &ToolCall, timeout_ms: u32) -> Value {
    let mut p = Map::new();
    let mut put = |name: &str, value: Value| p.insert(name.to_owned(), value);
    put("session_id", turn.claim.session_id.as_str().into());
    put("turn_id", turn.id.as_str().into());
    put("name", call.name.as_str().into());
    put("idempotency_key", call.idempotency_key(&turn.id).into());
    put("correlation_id", cx.correlation_id.as_str().into());
    tool::put_call(tool::prepare(&call.name, &call.arguments, Surface::Text), &mut p);
    let p = Value::Object(p);
    let result = database::rpc_within(cx, "run_agent_tool", &p, timeout_ms).await;
    cx.log(
        Level::Info,
        Event::ToolCall,
        &format!("{} {}", call.name, if result.is_ok() { "ran" } else { "failed" }),
        &[("tool", (&call.name).into())],
    );
    let error = match result {
        Ok(answer) => return edge_tool::answered(cx, answer).await,
        Err(error) => error,
    };
    // A value that the database refuses is the model's to correct; anything else is not.
    let problem = error.problem(0);
    let said = match problem.status {
        400..=499 => &*problem.detail,
        _ => "",
    };
    let said =
        if said.is_empty() { "the tool is not available now; tell the person that it could not be done" } else { said };
    obj(&mut [("ok", false.into()), ("error", said.into())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apology_fits_one_message_in_every_language() {
        for locale in locale::ALL {
            assert_eq!(agent::sms_reply(&agent::apology(locale, "EasyMO"), 3).segments, 1);
        }
    }
}
