//! What is answered: the fixed text of a keyword, else what the agent says, else, when the model stays away, an apology.

use chrono::TimeDelta;
use ihuza_core::{
    agent::{self, HistoryTurn, Pending, Turn},
    channel::Channel,
    error_class::Classified,
    keyword::{self, Keyword},
    locale::{self, Locale},
    log::{Event, Level},
    openai::{AgentRequest, Step, ToolCall, ToolLoop, Usage},
    retry::Purpose,
    summary::{self, CallSummary},
    timestamp,
};
use ihuza_edge::{
    context::Cx,
    database, host, model,
    outbox::{Content, Outbox},
};
use serde_json::{Value, json};

use crate::work::Claim;

/// The parts of `finish_sms_turn` that come from answering.
pub struct Answered {
    /// `answered` or `released`.
    pub outcome: &'static str,
    pub again_in_s: u32,
    pub next_attempt_at: Option<String>,
    pub reply: Value,
    pub deliveries: Vec<Value>,
    pub providers: Vec<Value>,
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

pub async fn answer(cx: &Cx, claim: &Claim) -> Answered {
    let locale = locale_of(claim);
    if let Some(keyword) = claim.keyword.as_deref().and_then(Keyword::parse) {
        cx.log(
            Level::Info,
            Event::KeywordReceived,
            &format!("{} was asked for", keyword.as_str()),
            &[("keyword", json!(keyword.as_str()))],
        );
        let contact = claim.client.contact_number.as_deref();
        let text = keyword::reply(keyword, locale, &claim.client.brand, contact);
        let content = Content {
            whatsapp: text.text.clone(),
            sms: text,
            template: Vec::new(),
        };
        let reply = Reply {
            text: content.sms.text.clone(),
            source: "keyword",
            model: None,
            usage: Usage::default(),
        };
        return deliver(cx, claim, locale, reply, content, Vec::new()).await;
    }
    let mut providers = Vec::new();
    let reply = match ask(cx, claim, locale).await {
        Ok(reply) => {
            providers.push(model::outcome(Ok(())));
            cx.log(
                Level::Info,
                Event::AgentReply,
                "the agent answered",
                &[
                    ("agent", json!(claim.agent.slug)),
                    ("characters", json!(reply.text.chars().count())),
                ],
            );
            reply
        }
        Err(why) => {
            if let Why::Down(down) = &why {
                providers.push(model::outcome(Err(down)));
            }
            if matches!(why, Why::Down(_) | Why::Paused) && claim.claims < PATIENCE {
                let at = host::now() + TimeDelta::seconds(i64::from(AGAIN_IN_S));
                return Answered {
                    outcome: "released",
                    again_in_s: AGAIN_IN_S,
                    next_attempt_at: Some(timestamp::to_rfc3339(at)),
                    reply: Value::Null,
                    deliveries: Vec::new(),
                    providers,
                };
            }
            cx.log(
                Level::Error,
                Event::AgentFallback,
                &format!("the person gets an apology: {}", why.reason()),
                &[("claims", json!(claim.claims))],
            );
            Reply {
                text: agent::apology(locale, &claim.client.brand),
                source: "fallback",
                model: None,
                usage: Usage::default(),
            }
        }
    };
    let content = Content {
        sms: agent::sms_reply(&reply.text),
        whatsapp: agent::whatsapp_reply(&reply.text),
        template: Vec::new(),
    };
    deliver(cx, claim, locale, reply, content, providers).await
}

async fn deliver(
    cx: &Cx,
    claim: &Claim,
    locale: Locale,
    reply: Reply,
    content: Content,
    providers: Vec<Value>,
) -> Answered {
    let outbox = Outbox {
        cx,
        profile: &claim.profile,
        client: &claim.client,
        gates: &claim.providers,
        delivery_ids: &claim.delivery_ids,
        already_sent: &claim.already_sent,
        attempt: claim.attempt,
        purpose: if reply.source == "keyword" {
            Purpose::Keyword
        } else {
            Purpose::Reply
        },
        inbound: Channel::Sms,
        locale,
    };
    let sent = outbox.send(&content, host::now()).await;
    Answered {
        outcome: "answered",
        again_in_s: 0,
        next_attempt_at: None,
        reply: json!({
            "content": content.sms.text,
            "language": locale::detect(&reply.text).unwrap_or(locale),
            "agent_slug": claim.agent.slug,
            "model": reply.model,
            "usage": reply.usage,
            "source": reply.source,
            "routing": sent.routing,
            "renditions": sent.renditions,
        }),
        deliveries: sent.deliveries,
        providers,
    }
}

/// The language the person chose, else the one they just wrote, else the call's, else the client's, else English.
fn locale_of(claim: &Claim) -> Locale {
    let tag = |tag: &Option<String>| tag.as_deref().and_then(Locale::from_tag);
    tag(&claim.profile.locale)
        .or_else(|| claim.language_hint.as_deref().and_then(Locale::from_tag))
        .or_else(|| claim.messages.last().and_then(|message| locale::detect(&message.text)))
        .or_else(|| {
            claim
                .call_summary
                .as_ref()
                .and_then(|row| Locale::from_tag(row.get("language")?.as_str()?))
        })
        .or_else(|| tag(&claim.client.default_locale))
        .unwrap_or(Locale::En)
}

/// Why there is no answer of the agent.
enum Why {
    Down(Classified),
    /// The breaker of the model is open.
    Paused,
    NotConfigured,
    /// The model answered, but not with anything that can be sent.
    Useless(&'static str),
}

impl Why {
    fn reason(&self) -> &'static str {
        match self {
            Why::Down(down) => down.reason,
            Why::Paused => "the breaker of the model is open",
            Why::NotConfigured => "OPENAI_API_KEY is not set",
            Why::Useless(why) => why,
        }
    }
}

/// The agent's turn: ask, run tools, ask again.
async fn ask(cx: &Cx, claim: &Claim, locale: Locale) -> Result<Reply, Why> {
    if cx.config.find("OPENAI_API_KEY").is_none() {
        return Err(Why::NotConfigured);
    }
    if claim.providers.is_open("openai") {
        return Err(Why::Paused);
    }
    let call_summary: Option<CallSummary> = claim
        .call_summary
        .as_ref()
        .and_then(|row| summary::from_value(row, locale));
    let ended_at = claim
        .call_summary
        .as_ref()
        .and_then(|row| timestamp::parse_rfc3339(row.get("call_ended_at")?.as_str()?));
    let history: Vec<HistoryTurn> = claim
        .history
        .iter()
        .filter_map(|turn| serde_json::from_value(turn.clone()).ok())
        .collect();
    let messages: Vec<Pending> = claim
        .messages
        .iter()
        .map(|m| Pending {
            channel: Channel::Sms,
            text: m.text.clone(),
        })
        .collect();
    let turn = Turn {
        brand: &claim.client.brand,
        instructions: claim.agent.instructions_in(locale.as_str()),
        locale,
        channel: Channel::Sms,
        call_summary: call_summary.as_ref(),
        call_ended_at: ended_at,
        history: &history,
        messages: &messages,
        now: host::now(),
    };
    let instructions = agent::instructions(&turn);
    let tools = agent::tools(&agent::TOOLS);
    let name = claim
        .agent
        .model
        .as_deref()
        .unwrap_or_else(|| cx.config.text("OPENAI_TEXT_MODEL"));
    let cache_key = format!("ihuza-{}-{}-sms", claim.agent.slug, locale.as_str());
    let safety_identifier = model::safety_identifier(&claim.profile.id);
    let request = AgentRequest {
        model: name,
        instructions: &instructions,
        tools: &tools,
        safety_identifier: &safety_identifier,
        prompt_cache_key: &cache_key,
    };
    let mut turns = ToolLoop::new(agent::input(&turn));
    let mut usage = Usage::default();
    loop {
        let reply = model::respond(cx, &turns.request(&request), cx.config.number("MODEL_TIMEOUT_MS"))
            .await
            .map_err(Why::Down)?;
        usage = usage.plus(reply.usage);
        let answered_by = reply.model.clone();
        match turns.reply(reply) {
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
                    let output = run_tool(cx, claim, &call).await;
                    outputs.push((call.call_id, output.to_string()));
                }
                turns.outputs(outputs);
            }
        }
    }
}

/// A tool is an SQL function that takes the session and derives the person itself: nothing the model says can reach another.
async fn run_tool(cx: &Cx, claim: &Claim, call: &ToolCall) -> Value {
    let arguments = match agent::check_arguments(&call.name, &call.arguments) {
        Ok(arguments) => arguments,
        Err(error) => return error.to_output(),
    };
    let p = json!({
        "session_id": claim.session.id,
        "turn_id": claim.turn_id,
        "name": call.name,
        "arguments": arguments,
        "idempotency_key": call.idempotency_key(&claim.turn_id),
    });
    let result = database::rpc(cx, "run_agent_tool", &p).await;
    cx.log(
        Level::Info,
        Event::ToolCall,
        &format!("{} {}", call.name, if result.is_ok() { "ran" } else { "failed" }),
        &[("tool", json!(call.name))],
    );
    result.unwrap_or_else(
        |_| json!({ "ok": false, "error": "the tool is not available now; tell the person that it could not be done" }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ihuza_core::sms;

    #[test]
    fn an_apology_fits_one_message_in_every_language() {
        for locale in locale::ALL {
            assert_eq!(
                sms::count(&agent::sms_reply(&agent::apology(locale, "EasyMO")).text).segments,
                1
            );
        }
    }
}
