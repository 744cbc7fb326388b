//! The tools of agents: what each is for, what it takes, who may use it. One definition serves texts, calls and MCP.
//!
//! The schema that a model is shown and the check of what it then gives are made of the same table, since Realtime checks
//! nothing and a model may invent fields even under a strict schema. What a tool does is SQL (`run_agent_tool`,
//! `run_voice_tool`), which derives client and person itself: no argument here names either.

use serde_json::{Map, Value};

use crate::json::{as_text, clip, obj};
use crate::sms;

/// Where an agent works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// OpenAI's Responses API: answers to messages.
    Text,
    /// A session of the Realtime API: a phone call.
    Voice,
    /// Any client of our MCP server.
    Mcp,
}

/// What may stand in an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text of at most so many characters.
    Text(usize),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A whole number from the first to the second.
    Whole(i64, i64),
    /// Local time in Kigali, `YYYY-MM-DDTHH:MM`.
    LocalTime,
    /// Time of day, `HH:MM`.
    DayTime,
}

/// An argument of a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// Whether it may be null or left out.
    pub optional: bool,
    /// What it means, for the model; also what an error says.
    pub about: &'static str,
}

/// A tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Its name, a contract.
    pub name: &'static str,
    /// What it is for and when to use it, for the model.
    pub about: &'static str,
    /// What it takes.
    pub arguments: &'static [Argument],
    /// Where it is offered.
    pub surfaces: &'static [Surface],
    /// What a token must allow, where tokens are used (MCP).
    pub scope: &'static str,
    /// How long whoever called it waits, in milliseconds. What is done later all the same is told to the same key.
    pub deadline_ms: u32,
    /// Whether anything is different afterwards. The answer of a tool that only tells is never kept for another call.
    pub changes: bool,
    /// Whether it may send a message, which costs money and the person's attention.
    pub sends: bool,
}

const EVERYWHERE: &[Surface] = &[Surface::Text, Surface::Voice, Surface::Mcp];

const fn must(name: &'static str, kind: Kind, about: &'static str) -> Argument {
    Argument { name, kind, optional: false, about }
}

const fn may(name: &'static str, kind: Kind, about: &'static str) -> Argument {
    Argument { name, kind, optional: true, about }
}

/// A caller hears silence meanwhile.
const DEADLINE_MS: u32 = 5_000;

const fn writes(name: &'static str, scope: &'static str, about: &'static str, arguments: &'static [Argument]) -> Tool {
    Tool { name, about, arguments, surfaces: EVERYWHERE, scope, deadline_ms: DEADLINE_MS, changes: true, sends: false }
}

const fn reads(name: &'static str, scope: &'static str, about: &'static str, arguments: &'static [Argument]) -> Tool {
    Tool { changes: false, ..writes(name, scope, about, arguments) }
}

const fn sends(name: &'static str, about: &'static str) -> Tool {
    const TEXT: &[Argument] =
        &[must("text", Kind::Text(600), "The message, to the person, in their language, plain text without Markdown")];
    Tool { sends: true, ..writes(name, "messages", about, TEXT) }
}

/// What a conversation may be about: each [`crate::intent::Intent`], for which there may be an agent, and whatever else.
const INTENTS: &[&str] = &["housing", "ride", "support", "other"];
/// Languages a person may choose.
const LANGUAGES: &[&str] = &["en", "fr", "rw", "sw"];
const CURRENCIES: &[&str] = &["RWF", "USD", "EUR", "KES", "UGX", "TZS", "BIF"];
const AREA: &str = "District, sector or neighbourhood as the person said it, such as Kimironko";

/// All tools, in the order in which a model is shown them.
pub const TOOLS: [Tool; 14] = [
    reads(
        "session_get_context",
        "session:read",
        "Reads what is known about this conversation: the time now, status, channels, last call, recent messages, what the \
         person asked for, their open bookings, and what is remembered of them.",
        &[may("limit", Kind::Whole(1, 50), "How many of the latest messages; null: 20")],
    ),
    writes(
        "session_get_or_create",
        "session:write",
        "Makes sure that this person has an open conversation: the one that is open, else a new one. Needed only after a \
         conversation was closed.",
        &[],
    ),
    writes(
        "session_update_status",
        "session:write",
        "Changes the status of this conversation: follow_up when something is still owed to the person, closed only when \
         they say that they need nothing more.",
        &[
            must("status", Kind::OneOf(&["active", "follow_up", "closed"]), "The new status"),
            may(
                "intent",
                Kind::OneOf(INTENTS),
                "What they want now; who knows about it answers their next message. support: something went wrong",
            ),
            may("note", Kind::Text(500), "Why, in one sentence"),
        ],
    ),
    writes(
        "profile_update_preferences",
        "profile:write",
        "Keeps what the person themselves asks for about how we write to them. Only what they asked for; null leaves a thing \
         as it is. Nobody can be opted in again after STOP by this: they write START.",
        &[
            may(
                "channels",
                Kind::OneOf(&["both", "sms_only", "whatsapp_only", "none"]),
                "Where they want summaries; none: no messages except answers",
            ),
            may("language", Kind::OneOf(LANGUAGES), "en, fr, rw (Kinyarwanda) or sw (Swahili)"),
            may("quiet_from", Kind::DayTime, "Begin of the hours in which they want no summaries, with quiet_until"),
            may("quiet_until", Kind::DayTime, "End of these hours"),
            may("quiet_hours", Kind::OneOf(&["off"]), "off: they may be written to at any hour"),
        ],
    ),
    reads(
        "search_services",
        "services:read",
        "Looks up what we offer: houses, transport, health and more, also where a word or place is misspelt. On the phone say \
         that you are looking before you call it. Tell only what it answers.",
        &[
            must("query", Kind::Text(200), "What the person looks for, in a few words"),
            may("area", Kind::Text(100), AREA),
            may("category", Kind::Text(100), "One word such as housing, transport, health"),
            may("limit", Kind::Whole(1, 5), "How many at most; null: 3"),
        ],
    ),
    writes(
        "service_request_save",
        "requests:write",
        "Keeps or changes what the person asks for, such as a house to let: area, budget, details. Use it when they ask for \
         something, and again each time they change a part of it (a new budget changes the request, it makes no new one). \
         Null leaves a part as it is. Say that something is noted or changed only when this has answered ok.",
        &[
            may("number", Kind::Whole(1, 999_999_999), "Which request; null: their newest open one of this kind"),
            may(
                "kind",
                Kind::OneOf(&["housing", "transport", "health", "job", "delivery", "repair", "other"]),
                "What it is about; needed for a new request",
            ),
            may("area", Kind::Text(100), AREA),
            may("budget", Kind::Whole(0, 999_999_999_999), "Most they want to pay, in whole units: 250k is 250000"),
            may("currency", Kind::OneOf(CURRENCIES), "Of budget; null: RWF"),
            may("details", Kind::Text(500), "Everything else they said of it, in one or two sentences"),
            may("state", Kind::OneOf(&["open", "closed"]), "closed: they need it no more"),
        ],
    ),
    writes(
        "book_transport",
        "bookings:write",
        "Books a ride, changes or cancels one. To create: read pick-up, destination and time back to the person and get a yes \
         first. A booking is requested until an operator confirms it: never promise a driver, price or arrival.",
        &[
            must("action", Kind::OneOf(&["create", "change", "cancel"]), "What to do"),
            may("number", Kind::Whole(1, 999_999_999), "Which booking to change or cancel; null: their only open one"),
            may("pickup", Kind::Text(200), "Where from; needed to create"),
            may("destination", Kind::Text(200), "Where to; needed to create"),
            may(
                "pickup_at",
                Kind::LocalTime,
                "When, in Kigali's time, such as 2026-11-22T08:30; null: as soon as possible",
            ),
            may("passengers", Kind::Whole(1, 60), "How many travel; null: 1"),
            may("vehicle", Kind::OneOf(&["moto", "car", "van", "bus", "truck"]), "What with; null: whatever fits"),
            may("note", Kind::Text(300), "Anything the driver must know"),
        ],
    ),
    writes(
        "transfer_to_human",
        "handoff:write",
        "Hands the conversation to a person of our team: when they ask for one, are angry twice, or need what you cannot do. \
         On the phone say so first; the call is put through where that is possible, otherwise a colleague calls back.",
        &[
            must("reason", Kind::Text(300), "Why, for the colleague, in one or two sentences"),
            may(
                "department",
                Kind::OneOf(&["sales", "support", "transport", "billing", "safety"]),
                "Who should take it",
            ),
            may("urgent", Kind::OneOf(&["yes", "no"]), "yes: somebody may be in danger or very upset"),
        ],
    ),
    writes(
        "remember",
        "memory:write",
        "Keeps one lasting preference or fact for the next conversation. Only what the person said themselves, nothing \
         sensitive such as health, faith, politics or numbers of documents.",
        &[
            must("key", Kind::Text(60), "A short English name such as preferred_area"),
            must("value", Kind::Text(500), "In the person's words"),
        ],
    ),
    writes(
        "forget",
        "memory:write",
        "Deletes what we remember of the person when they ask for it: one thing, or everything.",
        &[may("key", Kind::Text(60), "Which memory; null: all of them")],
    ),
    sends(
        "messaging_send_sms",
        "Sends the person one SMS beside your answer, such as an address they asked for while on the phone. Not for the \
         answer itself.",
    ),
    sends(
        "messaging_send_whatsapp",
        "Sends the person one WhatsApp message beside your answer. Works only within 24 hours after they wrote there.",
    ),
    sends(
        "messaging_send_dual",
        "Sends the person one message by WhatsApp and SMS, over whichever of them they want and can be reached.",
    ),
    Tool {
        surfaces: &[Surface::Voice],
        ..writes(
            "end_call",
            "call:write",
            "Ends the phone call. Only after the caller has said goodbye or needs nothing more, and you have said goodbye.",
            &[],
        )
    },
];

/// All tools.
pub fn all() -> &'static [Tool] {
    &TOOLS
}

/// The tool of this name.
pub fn find(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.name == name)
}

/// Names of the tools of a call that may be called from outside: those of MCP, but not what changes the call itself, which whoever
/// carries the call has to hear of.
pub fn remote() -> impl Iterator<Item = &'static str> {
    TOOLS
        .iter()
        .filter(|tool| tool.surfaces.contains(&Surface::Mcp) && tool.name != "transfer_to_human")
        .map(|tool| tool.name)
}

/// Definitions of the named tools that this surface may use, for the model; unknown names are left out.
pub fn offered<S: AsRef<str>>(names: &[S], surface: Surface) -> Vec<Value> {
    TOOLS
        .iter()
        .filter(|tool| tool.surfaces.contains(&surface) && names.iter().any(|name| name.as_ref() == tool.name))
        .map(|tool| tool.definition(surface))
        .collect()
}

impl Tool {
    /// As this surface wants to be told of it.
    pub fn definition(&self, surface: Surface) -> Value {
        let name = ("name", self.name.into());
        let about = ("description", self.about.into());
        match surface {
            Surface::Text => obj(&mut [
                ("type", "function".into()),
                name,
                ("strict", true.into()),
                about,
                ("parameters", self.schema().into()),
            ]),
            // A session knows no `strict`.
            Surface::Voice => {
                obj(&mut [("type", "function".into()), name, about, ("parameters", self.schema().into())])
            }
            Surface::Mcp => {
                let hints = obj(&mut [
                    ("readOnlyHint", (!self.changes).into()),
                    ("destructiveHint", matches!(self.name, "forget" | "end_call").into()),
                    ("idempotentHint", (!self.sends).into()),
                    ("openWorldHint", self.sends.into()),
                ]);
                obj(&mut [name, about, ("inputSchema", self.schema().into()), ("annotations", hints.into())])
            }
        }
    }

    /// JSON Schema of the arguments in the strict subset (OpenAI, "Structured outputs"): closed, every property required,
    /// what is optional may be null.
    pub fn schema(&self) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for argument in self.arguments {
            properties.insert(argument.name.to_owned(), argument.schema());
            required.push(Value::from(argument.name));
        }
        obj(&mut [
            ("type", "object".into()),
            ("additionalProperties", false.into()),
            ("properties", Value::Object(properties).into()),
            ("required", Value::Array(required).into()),
        ])
    }

    /// Checks the arguments that a model gave; what comes back holds every argument of the tool, null where it is not given.
    pub fn check(&self, given: &Value) -> Result<Value, ToolError> {
        let given = given.as_object().ok_or(ToolError::NotAnObject)?;
        if let Some(stranger) = given.keys().find(|name| !self.arguments.iter().any(|known| known.name == *name)) {
            return Err(ToolError::UnknownArgument {
                field: clip(stranger, 60).to_owned(),
                known: if self.arguments.is_empty() {
                    "none".to_owned()
                } else {
                    self.arguments.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
                },
            });
        }
        let mut checked = Map::new();
        for argument in self.arguments {
            let value = given.get(argument.name).filter(|value| !is_nothing(value));
            let value = match value {
                Some(value) => argument.kind.read(value).ok_or_else(|| argument.refused(Fault::NotAllowed))?,
                None if argument.optional => Value::Null,
                None => return Err(argument.refused(Fault::Missing)),
            };
            checked.insert(argument.name.to_owned(), value);
        }
        Ok(Value::Object(checked))
    }
}

/// A model that must fill every field writes an empty text where it means nothing.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty())
}

impl Argument {
    fn schema(&self) -> Value {
        let base = match self.kind {
            Kind::Whole(..) => "integer",
            Kind::Text(_) | Kind::OneOf(_) | Kind::LocalTime | Kind::DayTime => "string",
        };
        let kind = if self.optional { Value::from(vec![base, "null"]) } else { Value::from(base) };
        let mut about = self.about.to_owned();
        if let Kind::Text(most) = self.kind {
            about.extend([". At most ", &most.to_string(), " characters."]);
        }
        let mut schema = obj(&mut [("type", kind.into()), ("description", about.into())]);
        if let Some(fields) = schema.as_object_mut() {
            match self.kind {
                Kind::OneOf(words) => {
                    let mut words: Vec<Value> = words.iter().map(|word| Value::from(*word)).collect();
                    if self.optional {
                        words.push(Value::Null);
                    }
                    fields.insert("enum".to_owned(), Value::Array(words));
                }
                Kind::Whole(least, most) => {
                    fields.insert("minimum".to_owned(), least.into());
                    fields.insert("maximum".to_owned(), most.into());
                }
                Kind::Text(_) | Kind::LocalTime | Kind::DayTime => {}
            }
        }
        schema
    }

    fn refused(&self, fault: Fault) -> ToolError {
        ToolError::Argument {
            field: self.name,
            fault,
            hint: [self.kind.hint(), ": ".to_owned(), self.about.to_owned()].concat(),
        }
    }
}

impl Kind {
    /// The value in its own type, or nothing if it is not allowed. A number in a text is a number.
    fn read(self, given: &Value) -> Option<Value> {
        match self {
            Kind::Text(most) => {
                let text = as_text(given)?;
                (text.chars().count() <= most).then(|| Value::from(text))
            }
            Kind::OneOf(words) => {
                let word = given.as_str()?.trim();
                words.iter().find(|known| **known == word).map(|known| Value::from(*known))
            }
            Kind::Whole(least, most) => {
                let number = match given {
                    Value::Number(number) => number.as_i64()?,
                    Value::String(digits) => digits.trim().parse().ok()?,
                    _ => return None,
                };
                (least..=most).contains(&number).then(|| Value::from(number))
            }
            Kind::LocalTime => {
                let text = given.as_str()?.trim();
                let (day, time) = text.split_once(['T', ' '])?;
                // Seconds say nothing here.
                let time = time.strip_suffix(":00").filter(|time| time.len() == 5).unwrap_or(time);
                is_day(day).then_some(())?;
                is_day_time(time).then(|| Value::from([day, "T", time].concat()))
            }
            Kind::DayTime => {
                let text = given.as_str()?.trim();
                is_day_time(text).then(|| Value::from(text))
            }
        }
    }

    fn hint(self) -> String {
        match self {
            Kind::Text(most) => ["text of at most ", &most.to_string(), " characters"].concat(),
            Kind::OneOf(words) => ["one of ", &words.join(", ")].concat(),
            Kind::Whole(least, most) => {
                ["a whole number from ", &least.to_string(), " to ", &most.to_string()].concat()
            }
            Kind::LocalTime => "a time as YYYY-MM-DDTHH:MM".to_owned(),
            Kind::DayTime => "a time of day as HH:MM".to_owned(),
        }
    }
}

/// Two digits at `from`, as a number.
fn two(text: &str, from: usize) -> Option<u32> {
    let digits = text.get(from..from + 2)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn is_day(text: &str) -> bool {
    let year = two(text, 0).is_some_and(|century| century == 20) && two(text, 2).is_some();
    let dashes = text.len() == 10 && text.get(4..5) == Some("-") && text.get(7..8) == Some("-");
    let (month, day) = (two(text, 5), two(text, 8));
    let date = || {
        let year = text.get(..4)?.parse().ok()?;
        chrono::NaiveDate::from_ymd_opt(year, month?, day?)
    };
    year && dashes && date().is_some()
}

fn is_day_time(text: &str) -> bool {
    text.len() == 5
        && text.get(2..3) == Some(":")
        && two(text, 0).is_some_and(|hour| hour < 24)
        && two(text, 3).is_some_and(|minute| minute < 60)
}

/// What is wrong with an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It must be there.
    Missing,
    /// It is there and will not do.
    NotAllowed,
}

/// Why a tool call is not run; the text goes back to the model, which can mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolError {
    /// No such tool, or not here.
    UnknownTool,
    /// Not JSON, or not an object.
    NotAnObject,
    /// A field that the tool does not take.
    UnknownArgument {
        /// Its name.
        field: String,
        /// What it takes.
        known: String,
    },
    /// A field that is missing or has a value outside its range.
    Argument {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        fault: Fault,
        /// What may stand there.
        hint: String,
    },
}

impl ToolError {
    /// In words, for the model.
    pub fn said(&self) -> String {
        match self {
            ToolError::UnknownTool => "there is no tool of this name".to_owned(),
            ToolError::NotAnObject => "arguments must be one JSON object".to_owned(),
            ToolError::UnknownArgument { field, known } => {
                ["there is no argument ", field, "; this tool takes: ", known].concat()
            }
            ToolError::Argument { field, fault, hint } => {
                let wrong = match fault {
                    Fault::Missing => " is missing: ",
                    Fault::NotAllowed => " is not allowed as it is: ",
                };
                ["argument ", field, wrong, hint].concat()
            }
        }
    }
}

/// The fields of `run_agent_tool` and `run_voice_tool` that come from what a model called: `arguments` and, where it sends,
/// `renditions`; or `refused`, since a call that is wrong is kept as well, and its answer tells the model how to mend it.
pub fn put_call(ready: Result<Ready, ToolError>, fields: &mut Map<String, Value>) {
    let mut put = |name: &str, value| fields.insert(name.to_owned(), value);
    match ready {
        Ok(Ready { arguments, renditions, .. }) => {
            put("arguments", arguments);
            if let Some(renditions) = renditions {
                put("renditions", renditions);
            }
        }
        Err(error) => {
            put("refused", error.said().into());
        }
    }
}

/// A tool call that may be run: the tool, its arguments as checked, and what a message of it looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    /// The tool.
    pub tool: &'static Tool,
    /// From [`Tool::check`].
    pub arguments: Value,
    /// `{sms, whatsapp}` of a tool that sends: SQL says to whom and whether, and cannot count segments.
    pub renditions: Option<Value>,
}

/// Reads a tool call of a model: the name, and the arguments as JSON text (empty: none).
pub fn prepare(name: &str, arguments: &str, surface: Surface) -> Result<Ready, ToolError> {
    let given = match arguments.trim() {
        "" => Value::Object(Map::new()),
        text => crate::json::foreign_object(text.as_bytes()).map_err(|_| ToolError::NotAnObject)?,
    };
    prepare_value(name, &given, surface)
}

/// [`prepare`] for arguments that have been parsed.
pub fn prepare_value(name: &str, given: &Value, surface: Surface) -> Result<Ready, ToolError> {
    let tool = find(name).filter(|tool| tool.surfaces.contains(&surface)).ok_or(ToolError::UnknownTool)?;
    let arguments = tool.check(given)?;
    let renditions = tool.sends.then(|| renditions(arguments.get("text").and_then(Value::as_str).unwrap_or_default()));
    Ok(Ready { tool, arguments, renditions })
}

/// The same text for both channels, as `message_delivery_log.payload` holds it.
fn renditions(text: &str) -> Value {
    let sms = crate::agent::sms_reply(text, sms::REPLY_MAX_SEGMENTS);
    obj(&mut [
        (
            "sms",
            obj(&mut [
                ("text", (&sms.text).into()),
                ("encoding", sms.encoding.as_str().into()),
                ("segments", sms.segments.into()),
            ])
            .into(),
        ),
        ("whatsapp", obj(&mut [("kind", "text".into()), ("text", crate::agent::whatsapp_reply(text).into())]).into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn every_tool_has_a_strict_schema_and_a_name_that_vendors_take() {
        for tool in all() {
            assert!(tool.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", tool.name);
            assert!((100..=15_000).contains(&tool.deadline_ms) && !tool.scope.is_empty() && !tool.surfaces.is_empty());
            assert!(tool.changes || !tool.sends, "{}", tool.name);
            let schema = tool.schema();
            let properties = schema["properties"].as_object().unwrap();
            assert_eq!(schema["additionalProperties"], false);
            let required: Vec<&str> =
                schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            assert_eq!(required, tool.arguments.iter().map(|argument| argument.name).collect::<Vec<_>>());
            assert_eq!(required.len(), properties.len(), "{}: an argument twice", tool.name);
            for argument in tool.arguments {
                let kinds = &properties[argument.name]["type"];
                assert_eq!(kinds.is_array(), argument.optional, "{}.{}", tool.name, argument.name);
            }
        }
        let names: std::collections::BTreeSet<&str> = all().iter().map(|tool| tool.name).collect();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn each_surface_is_told_in_its_own_form() {
        let tool = find("session_update_status").unwrap();
        let text = tool.definition(Surface::Text);
        assert_eq!((&text["type"], &text["strict"]), (&json!("function"), &json!(true)));
        let voice = tool.definition(Surface::Voice);
        assert_eq!((voice.get("strict"), &voice["parameters"]), (None, &text["parameters"]));
        let mcp = tool.definition(Surface::Mcp);
        assert_eq!((mcp.get("type"), &mcp["inputSchema"]), (None, &text["parameters"]));
        assert_eq!(mcp["annotations"]["readOnlyHint"], false);
        expect![[r#"{"additionalProperties":false,"properties":{"intent":{"description":"What they want now; who knows about it answers their next message. support: something went wrong","enum":["housing","ride","support","other",null],"type":["string","null"]},"note":{"description":"Why, in one sentence. At most 500 characters.","type":["string","null"]},"status":{"description":"The new status","enum":["active","follow_up","closed"],"type":"string"}},"required":["status","intent","note"],"type":"object"}"#]]
        .assert_eq(&text["parameters"].to_string());
    }

    #[test]
    fn only_named_tools_are_offered_and_none_where_it_does_not_belong() {
        let names = |names: &[&str], surface| -> Vec<String> {
            offered(names, surface).iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
        };
        let wanted = ["end_call", "rm_rf", "search_services", "session_get_context"];
        assert_eq!(names(&wanted, Surface::Text), ["session_get_context", "search_services"]);
        assert_eq!(names(&wanted, Surface::Voice), ["session_get_context", "search_services", "end_call"]);
        assert!(names(&[], Surface::Mcp).is_empty());
        assert_eq!(prepare("end_call", "", Surface::Text), Err(ToolError::UnknownTool));
    }

    #[track_caller]
    fn check(name: &str, arguments: &str, expected: expect_test::Expect) {
        let said = match prepare(name, arguments, Surface::Text) {
            Ok(ready) => ready.arguments.to_string(),
            Err(error) => error.said(),
        };
        expected.assert_eq(&said);
    }

    #[test]
    fn arguments_are_typed_and_what_is_wrong_is_said_so_that_it_can_be_mended() {
        check("session_get_context", "", expect![[r#"{"limit":null}"#]]);
        check(
            "session_update_status",
            r#"{"status":" closed ","note":""}"#,
            expect![[r#"{"intent":null,"note":null,"status":"closed"}"#]],
        );
        check(
            "session_update_status",
            r#"{"status":"expired"}"#,
            expect!["argument status is not allowed as it is: one of active, follow_up, closed: The new status"],
        );
        check(
            "session_update_status",
            "{}",
            expect!["argument status is missing: one of active, follow_up, closed: The new status"],
        );
        check(
            "session_update_status",
            r#"{"status":"closed","profile_id":"x"}"#,
            expect!["there is no argument profile_id; this tool takes: status, intent, note"],
        );
        check("session_update_status", "[1]", expect!["arguments must be one JSON object"]);
        check("session_get_or_create", r#"{"a":1}"#, expect!["there is no argument a; this tool takes: none"]);
        check("drop_tables", "{}", expect!["there is no tool of this name"]);
        check(
            "service_request_save",
            r#"{"budget":"250000"}"#,
            expect![[
                r#"{"area":null,"budget":250000,"currency":null,"details":null,"kind":null,"number":null,"state":null}"#
            ]],
        );
        check(
            "service_request_save",
            r#"{"budget":"250k"}"#,
            expect![
                "argument budget is not allowed as it is: a whole number from 0 to 999999999999: Most they want to pay, in whole units: 250k is 250000"
            ],
        );
        for (given, read) in [
            ("2026-11-22T08:30", Some("2026-11-22T08:30")),
            ("2026-11-22 08:30:00", Some("2026-11-22T08:30")),
            ("2026-02-30T08:30", None),
            ("2026-11-22T24:00", None),
            ("2026-11-22T08:30Z", None),
            ("tomorrow", None),
            ("2026-11-22T08:30:59", None),
        ] {
            assert_eq!(Kind::LocalTime.read(&json!(given)), read.map(Value::from), "{given}");
        }
    }

    #[test]
    fn a_message_is_rendered_for_both_channels_and_bounded() {
        let text = format!("**Muraho!** {}", "a ".repeat(290));
        let ready = prepare("messaging_send_dual", &json!({ "text": text }).to_string(), Surface::Mcp).unwrap();
        let renditions = ready.renditions.unwrap();
        assert!(renditions["sms"]["text"].as_str().unwrap().starts_with("Muraho! a"));
        assert_eq!(renditions["sms"]["encoding"], "gsm7");
        assert!(renditions["sms"]["segments"].as_u64().unwrap() <= 3);
        assert!(renditions["whatsapp"]["text"].as_str().unwrap().starts_with("*Muraho!*"));
        assert_eq!(prepare("remember", r#"{"key":"a","value":"b"}"#, Surface::Text).unwrap().renditions, None);
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[0-9T: -]{0,20}".prop_map(Value::from),
            prop::sample::select(vec!["create", "closed", "rw", "off", "2026-11-22T08:30", "08:00"])
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::from))
    }

    /// Calls of a tool with values of any kind under its own names, and sometimes another.
    fn calls() -> impl Strategy<Value = (&'static Tool, Value)> {
        (prop::sample::select(all().to_vec()), prop::collection::vec(anything(), 9), any::<bool>()).prop_map(
            |(tool, values, stranger)| {
                let tool = find(tool.name).unwrap();
                let mut given = Map::new();
                for (argument, value) in tool.arguments.iter().zip(values) {
                    given.insert(argument.name.to_owned(), value);
                }
                if stranger {
                    given.insert("person".to_owned(), Value::from("somebody else"));
                }
                (tool, Value::Object(given))
            },
        )
    }

    proptest! {
        #[test]
        fn no_text_panics(name: String, arguments: String) {
            let _ = prepare(&name, &arguments, Surface::Voice);
            for tool in all() {
                let _ = prepare(tool.name, &arguments, Surface::Voice);
            }
        }

        #[test]
        fn what_passes_holds_the_tools_own_arguments_in_range_and_passes_again((tool, given) in calls()) {
            match tool.check(&given) {
                Err(error) => prop_assert!(error.said().len() < 500),
                Ok(checked) => {
                    prop_assert!(given.get("person").is_none());
                    prop_assert_eq!(checked.as_object().unwrap().len(), tool.arguments.len());
                    for argument in tool.arguments {
                        let value = &checked[argument.name];
                        prop_assert!(argument.optional || !value.is_null());
                        if let (Kind::Text(most), Some(text)) = (argument.kind, value.as_str()) {
                            prop_assert!(text.chars().count() <= most && !text.contains('\0'));
                        }
                    }
                    prop_assert_eq!(tool.check(&checked).unwrap(), checked);
                }
            }
        }
    }
}
