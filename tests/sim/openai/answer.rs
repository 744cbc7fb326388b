//! What the stand-in says: a summary of the transcript, or an answer that shows what it was told before.

use serde_json::{Map, Value, json};

use super::facts::{Facts, Pick};
use super::words::{Language, words};

/// What the model returns.
#[derive(Clone, Debug)]
pub enum Reply {
    Text(String),
    Refusal(String),
    Incomplete(String),
    Tools(Vec<(String, Value)>),
    Failed,
}

/// The answer to a request that was checked before.
pub fn reply(body: &Value) -> Reply {
    let conversation = Conversation::of(body);
    let Some(schema) = body.pointer("/text/format/schema") else {
        return match tool_calls(body, &conversation) {
            Some(calls) => Reply::Tools(calls),
            None => Reply::Text(conversation.answer()),
        };
    };
    let wants_summary = ["headline", "points"]
        .iter()
        .any(|key| schema.pointer(&format!("/properties/{key}")).is_some());
    let known = if wants_summary {
        summary(body)
    } else {
        conversation.structured()
    };
    if !wants_summary && let Some(calls) = tool_calls(body, &conversation) {
        return Reply::Tools(calls);
    }
    Reply::Text(fill(schema, &known).to_string())
}

/// One line of a call.
struct Line {
    caller: bool,
    text: String,
}

/// A value for every property that a summary may have.
fn summary(body: &Value) -> Map<String, Value> {
    let given = items(body)
        .into_iter()
        .map(|item| item.text)
        .collect::<Vec<_>>()
        .join("\n");
    let lines = transcript(&given);
    let caller: Vec<&str> = lines
        .iter()
        .filter(|line| line.caller)
        .map(|line| line.text.as_str())
        .collect();
    let all = lines
        .iter()
        .map(|line| line.text.as_str())
        .collect::<Vec<_>>()
        .join("\n");
    let language = asked_language(body, &given)
        .or_else(|| Language::detect(&all))
        .unwrap_or(Language::En);
    let facts = caller
        .iter()
        .fold(Facts::default(), |facts, text| facts.then(Facts::of(text, Pick::Last)));
    let facts = if facts.nothing() {
        Facts::of(&all, Pick::Last)
    } else {
        facts
    };
    let subject = facts.subject(language);
    let headline = if facts.nothing() {
        let first = caller.first().copied().unwrap_or_default();
        let spoke = language.of([
            "We spoke by phone",
            "Nous avons parlé au téléphone",
            "Twavuganye kuri telefone",
            "Tulizungumza kwa simu",
        ]);
        if first.is_empty() {
            spoke.to_owned()
        } else {
            short(first, 70)
        }
    } else if facts.offers {
        match language {
            Language::En => format!("Your {subject} is registered"),
            Language::Fr => format!("Enregistré : {subject}"),
            Language::Rw => format!("Byanditswe: {subject}"),
            Language::Sw => format!("Imesajiliwa: {subject}"),
        }
    } else {
        match language {
            Language::En => format!("Looking for: {subject}"),
            Language::Fr => format!("Recherche : {subject}"),
            Language::Rw => format!("Urashaka: {subject}"),
            Language::Sw => format!("Unatafuta: {subject}"),
        }
    };
    let mut points = facts.points(language);
    if facts.nothing() {
        points = caller.iter().skip(1).take(3).map(|text| short(text, 60)).collect();
    }
    let next_step = promise(&lines).unwrap_or_else(|| {
        let default = [
            "We will send you matches soon",
            "Nous vous enverrons bientôt des propositions",
            "Turakoherereza ibihuye vuba",
            "Tutakutumia zinazofaa hivi karibuni",
        ];
        language.of(default).to_owned()
    });
    let sms = [vec![headline.clone()], points.clone(), vec![next_step.clone()]]
        .concat()
        .join(". ");
    let intent = if facts.offers {
        "property_listing"
    } else {
        "property_search"
    };
    object(
        json!({"language": language.code(), "headline": headline, "points": points, "next_step": next_step,
                  "sms": short(&sms, 290), "intent": intent, "sentiment": "neutral", "needs_human": false}),
    )
}

/// What the agent said it would do, last.
fn promise(lines: &[Line]) -> Option<String> {
    const PROMISES: [&str; 11] = [
        "i will ",
        "i'll ",
        "we will ",
        "we'll ",
        "nous vous ",
        "nous allons ",
        "je vous ",
        "tura",
        "tuza",
        "tuta",
        "nita",
    ];
    let said = lines
        .iter()
        .filter(|line| !line.caller)
        .flat_map(|line| sentences(&line.text));
    let promised = said.filter(|sentence| {
        let lower = sentence.to_lowercase();
        PROMISES
            .iter()
            .any(|promise| lower.starts_with(promise) || lower.contains(&format!(" {promise}")))
    });
    promised.map(|sentence| short(&sentence, 90)).reduce(|_, later| later)
}

fn sentences(text: &str) -> Vec<String> {
    let pieces = text.split_inclusive(['.', '!', '?']);
    pieces
        .map(|piece| piece.trim().trim_end_matches('.').to_owned())
        .filter(|piece| piece.len() > 3)
        .collect()
}

/// The call's lines in whatever form they were given: JSON objects with role and text, or `role: text` by the line.
fn transcript(given: &str) -> Vec<Line> {
    let from_json = json_pieces(given)
        .into_iter()
        .flat_map(|piece| spoken_lines(&piece))
        .collect::<Vec<_>>();
    if !from_json.is_empty() {
        return from_json;
    }
    let mut lines = Vec::new();
    for line in given.lines() {
        let Some((role, text)) = line.trim().trim_start_matches(['-', '*', '[']).split_once(':') else {
            continue;
        };
        let role = role.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        let role = role.split_whitespace().next().unwrap_or_default();
        let caller = ["user", "caller", "customer", "client"].contains(&role);
        let agent = ["assistant", "agent", "ai", "ihuza"].contains(&role);
        if (caller || agent) && !text.trim().is_empty() {
            lines.push(Line {
                caller,
                text: text.trim().to_owned(),
            });
        }
    }
    if lines.is_empty() && !given.trim().is_empty() {
        lines.extend(given.lines().map(|line| Line {
            caller: true,
            text: line.trim().to_owned(),
        }));
    }
    lines
}

/// Every JSON array or object that begins at the start of a line, or makes up the whole.
fn json_pieces(text: &str) -> Vec<Value> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['[', '{']) {
        let candidate = rest.get(at..).unwrap_or_default();
        let mut stream = serde_json::Deserializer::from_str(candidate).into_iter::<Value>();
        match stream.next() {
            Some(Ok(value)) => {
                let end = stream.byte_offset();
                pieces.push(value);
                rest = candidate.get(end..).unwrap_or_default();
            }
            _ => rest = candidate.get(1..).unwrap_or_default(),
        }
    }
    pieces
}

fn spoken_lines(value: &Value) -> Vec<Line> {
    match value {
        Value::Array(entries) => entries.iter().flat_map(spoken_lines).collect(),
        Value::Object(fields) => {
            let role = fields.get("role").or(fields.get("speaker")).and_then(Value::as_str);
            let text = fields.get("text").or(fields.get("content")).and_then(Value::as_str);
            match (role, text) {
                (Some(role), Some(text)) => vec![Line {
                    caller: role == "user" || role == "caller",
                    text: text.to_owned(),
                }],
                _ => fields.values().flat_map(spoken_lines).collect(),
            }
        }
        _ => Vec::new(),
    }
}

/// The language that the request itself asks for.
fn asked_language(body: &Value, given: &str) -> Option<Language> {
    let allowed = body
        .pointer("/text/format/schema/properties/language/enum")
        .and_then(Value::as_array);
    if let Some([only]) = allowed.map(Vec::as_slice) {
        return Language::ALL.into_iter().find(|language| only == language.code());
    }
    let instructions = body.get("instructions").and_then(Value::as_str).unwrap_or_default();
    let asked = format!("{instructions}\n{given}")
        .to_lowercase()
        .replace(['"', ' '], "");
    let says = |language: &Language| {
        ["language:", "locale:", "language=", "locale="]
            .iter()
            .any(|label| asked.contains(&format!("{label}{}", language.code())))
    };
    let mut named = Language::ALL.into_iter().filter(says);
    let first = named.next();
    if named.next().is_some() { None } else { first }
}

/// One text of the input.
struct Item {
    role: String,
    text: String,
}

fn items(body: &Value) -> Vec<Item> {
    let entries = match body.get("input") {
        Some(Value::String(text)) => vec![json!({"role": "user", "content": text})],
        Some(Value::Array(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    let mut items = Vec::new();
    for entry in entries {
        let role = entry
            .get("role")
            .or(entry.get("type"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let text = match entry.get("content").or(entry.get("output")) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
                texts.collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        };
        items.push(Item { role, text });
    }
    items
}

/// What the agent knows when it answers.
struct Conversation {
    language: Language,
    /// The call's summary and everything else it was told besides the turns.
    from_call: Facts,
    /// The above and the earlier turns.
    before: Facts,
    /// What is asked now.
    now: Facts,
    question: String,
    /// Answers of tools, in this request.
    tool_outputs: Vec<String>,
    knows_something: bool,
}

impl Conversation {
    fn of(body: &Value) -> Self {
        let items = items(body);
        let last_answer = items.iter().rposition(|item| item.role == "assistant");
        let is_question =
            |(index, item): &(usize, &Item)| item.role == "user" && last_answer.is_none_or(|last| *index > last);
        let asked: Vec<&str> = items
            .iter()
            .enumerate()
            .filter(is_question)
            .map(|(_, item)| item.text.as_str())
            .collect();
        let question = asked.join("\n");
        let instructions = body.get("instructions").and_then(Value::as_str).unwrap_or_default();
        // Instructions are for every caller; only what follows the word is about this one.
        let about_caller = instructions
            .to_lowercase()
            .find("summary")
            .and_then(|at| instructions.get(at..))
            .unwrap_or_default();
        let told = items
            .iter()
            .filter(|item| item.role == "developer" || item.role == "system");
        let told = told
            .map(|item| item.text.as_str())
            .chain([about_caller])
            .collect::<Vec<_>>()
            .join("\n");
        let from_call = Facts::of(&told, Pick::First);
        let mut before = from_call.clone();
        let mut turns = 0;
        for (index, item) in items.iter().enumerate() {
            let earlier = last_answer.is_some_and(|last| index <= last);
            if earlier && (item.role == "user" || item.role == "assistant") {
                let pick = if item.role == "user" { Pick::Last } else { Pick::First };
                before = before.then(Facts::of(&item.text, pick));
                turns += 1;
            }
        }
        let everything = items
            .iter()
            .map(|item| item.text.as_str())
            .collect::<Vec<_>>()
            .join("\n");
        let language = Language::detect(&question).or_else(|| Language::detect(&everything));
        Self {
            language: language.unwrap_or(Language::En),
            knows_something: turns > 0 || !from_call.nothing(),
            from_call,
            before,
            now: Facts::of(&question, Pick::Last),
            question,
            tool_outputs: items
                .into_iter()
                .filter(|item| item.role == "function_call_output")
                .map(|item| item.text)
                .collect(),
        }
    }

    fn answer(&self) -> String {
        if let Some(output) = self.tool_outputs.last() {
            return self.after_tool(output);
        }
        let language = self.language;
        let subject = self.before.clone().then(self.now.clone()).subject(language);
        if let (Some(new), Some(old)) = (&self.now.budget, self.before.price(language))
            && self.before.budget.as_ref() != Some(new)
        {
            let new = Facts {
                monthly: self.before.monthly,
                ..self.now.clone()
            }
            .price(language)
            .unwrap_or_default();
            return match language {
                Language::En => {
                    format!("Done: your budget is now {new} instead of {old}. I keep looking for your {subject}.")
                }
                Language::Fr => format!(
                    "C'est fait : votre budget est de {new} au lieu de {old}. Je continue pour votre {subject}."
                ),
                Language::Rw => {
                    format!("Byakozwe: ingengo y'imari ni {new} aho kuba {old}. Ndakomeza gushaka {subject}.")
                }
                Language::Sw => format!("Tayari: bajeti yako ni {new} badala ya {old}. Naendelea kutafuta {subject}."),
            };
        }
        if let (Some(new), Some(old)) = (&self.now.place, &self.before.place)
            && new != old
        {
            return match language {
                Language::En => {
                    format!("Noted: {new} instead of {old}. I now look for your {subject}.")
                }
                Language::Fr => {
                    format!("C'est noté : {new} au lieu de {old}. Je cherche : {subject}.")
                }
                Language::Rw => format!("Byanditswe: {new} aho kuba {old}. Ndashaka {subject}."),
                Language::Sw => format!("Nimeandika: {new} badala ya {old}. Natafuta {subject}."),
            };
        }
        if self.asks_for_price()
            && let Some(price) = self.before.price(language)
        {
            return self.price_answer(&price);
        }
        if !self.knows_something && self.now.nothing() {
            let said = short(&self.question, 60);
            return match language {
                Language::En => {
                    format!("Hello, this is EasyMO. You wrote: \"{said}\". What can I do for you?")
                }
                Language::Fr => {
                    format!("Bonjour, ici EasyMO. Vous avez écrit : \"{said}\". Que puis-je faire pour vous ?")
                }
                Language::Rw => format!("Muraho, ni EasyMO. Mwanditse: \"{said}\". Nabafasha iki?"),
                Language::Sw => {
                    format!("Habari, hapa ni EasyMO. Umeandika: \"{said}\". Nikusaidie nini?")
                }
            };
        }
        let all = self.before.clone().then(self.now.clone());
        let mut known = vec![all.subject(language)];
        known.extend(all.points(language));
        let known = known.join(", ");
        match language {
            Language::En => format!("Thank you. This is what I have from you: {known}. Shall I change anything?"),
            Language::Fr => {
                format!("Merci. Voici ce que j'ai noté : {known}. Dois-je changer quelque chose ?")
            }
            Language::Rw => format!("Murakoze. Ibyo mfite: {known}. Hari icyo mpindura?"),
            Language::Sw => format!("Asante. Nilicho nacho: {known}. Nibadilishe chochote?"),
        }
    }

    fn price_answer(&self, price: &str) -> String {
        let language = self.language;
        let first = self.from_call.price(language).filter(|first| first != price);
        match (language, first) {
            (Language::En, Some(first)) => {
                format!("Your budget is {price}. On the call it was {first}.")
            }
            (Language::Fr, Some(first)) => {
                format!("Votre budget est de {price}. Lors de l'appel, il était de {first}.")
            }
            (Language::Rw, Some(first)) => {
                format!("Ingengo y'imari ni {price}. Kuri telefone yari {first}.")
            }
            (Language::Sw, Some(first)) => {
                format!("Bajeti yako ni {price}. Kwenye simu ilikuwa {first}.")
            }
            (Language::En, None) => format!("Your budget is {price}."),
            (Language::Fr, None) => format!("Votre budget est de {price}."),
            (Language::Rw, None) => format!("Ingengo y'imari ni {price}."),
            (Language::Sw, None) => format!("Bajeti yako ni {price}."),
        }
    }

    fn asks_for_price(&self) -> bool {
        const PRICE: [&str; 10] = [
            "budget", "price", "prix", "combien", "igiciro", "angahe", "bei", "bajeti", "ingapi", "cost",
        ];
        self.now.budget.is_none() && words(&self.question).any(|word| PRICE.contains(&word.as_str()))
    }

    fn wants(&self, known: &[&str]) -> bool {
        words(&self.question).any(|word| known.contains(&word.as_str()))
    }

    fn after_tool(&self, output: &str) -> String {
        let language = self.language;
        let failed = output.contains("\"error\"") || output.contains("\"ok\":false");
        if failed {
            return language
                .of([
                    "I could not do that just now. A person will look into it.",
                    "Je n'ai pas pu le faire. Quelqu'un va s'en occuper.",
                    "Sinashoboye kubikora ubu. Umuntu arabireba.",
                    "Sikuweza kufanya hivyo sasa. Mtu ataangalia.",
                ])
                .to_owned();
        }
        if self.wants(&CLOSING) {
            let subject = self.before.subject(language);
            return match language {
                Language::En => {
                    format!("I closed your request ({subject}). Write again whenever you need us.")
                }
                Language::Fr => {
                    format!("Votre demande ({subject}) est close. Écrivez-nous quand vous voulez.")
                }
                Language::Rw => {
                    format!("Nafunze icyifuzo cyawe ({subject}). Mwongere mwandike igihe mushatse.")
                }
                Language::Sw => format!("Nimefunga ombi lako ({subject}). Andika tena ukitaka."),
            };
        }
        let mut known = vec![self.before.subject(language)];
        known.extend(self.before.points(language));
        let known = known.join(", ");
        match language {
            Language::En => format!("This is your conversation so far: {known}."),
            Language::Fr => format!("Voici où nous en sommes : {known}."),
            Language::Rw => format!("Dore aho tugeze: {known}."),
            Language::Sw => format!("Hapa ndipo tulipo: {known}."),
        }
    }

    fn structured(&self) -> Map<String, Value> {
        let answer = self.answer();
        let intent = if self.now.offers {
            "property_listing"
        } else {
            "property_search"
        };
        object(
            json!({"language": self.language.code(), "reply": answer, "text": answer, "answer": answer, "message": answer,
                      "content": answer, "intent": intent, "needs_human": false}),
        )
    }
}

const CLOSING: [&str; 8] = [
    "close",
    "finish",
    "fermer",
    "terminer",
    "funga",
    "maliza",
    "gufunga",
    "birangiye",
];
const CONTEXT: [&str; 4] = ["context", "contexte", "status", "history"];

/// Tools that the question asks for, if the request offers them and none has answered yet.
fn tool_calls(body: &Value, conversation: &Conversation) -> Option<Vec<(String, Value)>> {
    if !conversation.tool_outputs.is_empty() || body.get("tool_choice") == Some(&Value::from("none")) {
        return None;
    }
    let wanted = if conversation.wants(&CLOSING) {
        "session_update_status"
    } else if conversation.wants(&CONTEXT) {
        "session_get_context"
    } else {
        return None;
    };
    let tools = body.get("tools").and_then(Value::as_array)?;
    let tool = tools
        .iter()
        .find(|tool| tool.get("name") == Some(&Value::from(wanted)))?;
    let known = object(json!({"status": "closed"}));
    let arguments = fill(tool.get("parameters").unwrap_or(&Value::Null), &known);
    Some(vec![(wanted.to_owned(), arguments)])
}

/// A value that fits `schema`, with what is known by name and something harmless for the rest.
fn fill(schema: &Value, known: &Map<String, Value>) -> Value {
    let mut filled = Map::new();
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for (name, property) in properties {
        let value = match known.get(&name) {
            Some(value) if allowed(&property, value) => limited(&property, value.clone()),
            _ => harmless(&property, known),
        };
        filled.insert(name, value);
    }
    Value::Object(filled)
}

fn allowed(schema: &Value, value: &Value) -> bool {
    schema
        .get("enum")
        .and_then(Value::as_array)
        .is_none_or(|values| values.contains(value))
}

fn limited(schema: &Value, mut value: Value) -> Value {
    let most = schema
        .get("maxItems")
        .and_then(Value::as_u64)
        .and_then(|most| usize::try_from(most).ok());
    if let (Value::Array(items), Some(most)) = (&mut value, most) {
        items.truncate(most);
    }
    value
}

fn harmless(schema: &Value, known: &Map<String, Value>) -> Value {
    if let Some(first) = schema
        .get("enum")
        .and_then(Value::as_array)
        .and_then(|values| values.first())
    {
        return first.clone();
    }
    let kinds = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind.clone()],
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(|kind| kind.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    };
    let is = |kind: &str| kinds.iter().any(|known| known == kind);
    if is("null") || kinds.is_empty() {
        Value::Null
    } else if is("object") {
        fill(schema, known)
    } else if is("array") {
        json!([])
    } else if is("boolean") {
        Value::Bool(false)
    } else if is("integer") || is("number") {
        json!(0)
    } else {
        json!("")
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// At most `limit` characters, cut at the end of a word.
fn short(text: &str, limit: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= limit {
        return text;
    }
    let cut: String = text.chars().take(limit).collect();
    let end = cut.rfind(' ').unwrap_or(cut.len());
    cut.get(..end)
        .unwrap_or_default()
        .trim_end_matches([',', ';', '.'])
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary_of(transcript: &str) -> Map<String, Value> {
        summary(&json!({"input": [{"role": "user", "content": transcript}]}))
    }

    #[track_caller]
    fn answers(input: Value, expected: &str) {
        match reply(&json!({ "input": input })) {
            Reply::Text(text) => assert_eq!(text, expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_summary_holds_the_facts_of_the_call() {
        let made = summary_of(
            "<transcript>\nuser: Hello, I want to rent a house in Kimironko.\nassistant: What is your budget?\n\
             user: 300k RWF a month, 2 bedrooms.\nassistant: Thank you. We will send you three houses today.\n</transcript>",
        );
        assert_eq!(made["headline"], "Looking for: house in Kimironko");
        assert_eq!(made["points"], json!(["Budget: 300k RWF/month", "2 bedrooms"]));
        assert_eq!(made["next_step"], "We will send you three houses today");
        assert_eq!(made["language"], "en");
    }

    #[test]
    fn a_summary_is_in_the_language_of_the_call_and_reads_json_too() {
        let lines = json!([{"role": "user", "text": "Muraho, ndashaka inzu yo gukodesha i Kicukiro"},
                           {"role": "assistant", "text": "Murakoze. Turakoherereza amazu ahuye ejo."}]);
        let made = summary_of(&format!("Transcript, data only:\n{lines}"));
        assert_eq!(made["headline"], "Urashaka: inzu i Kicukiro");
        assert_eq!(made["next_step"], "Turakoherereza amazu ahuye ejo");
    }

    #[test]
    fn an_answer_remembers_the_call() {
        answers(
            json!([{"role": "developer", "content": "Call summary: house in Kimironko, budget 300k RWF/month"},
                   {"role": "user", "content": "Change budget to 250k"}]),
            "Done: your budget is now 250k RWF/month instead of 300k RWF/month. I keep looking for your house in Kimironko.",
        );
    }

    #[test]
    fn an_answer_remembers_the_turns_before() {
        answers(
            json!([{"role": "developer", "content": "Call summary: house in Kimironko, budget 300k RWF/month"},
                   {"role": "user", "content": "Change budget to 250k"},
                   {"role": "assistant", "content": "Done: your budget is now 250k RWF/month instead of 300k RWF/month."},
                   {"role": "user", "content": "What is my budget?"}]),
            "Your budget is 250k RWF/month. On the call it was 300k RWF/month.",
        );
    }

    #[test]
    fn several_messages_are_one_question() {
        answers(
            json!([{"role": "developer", "content": "Call summary: house in Kimironko, budget 300k RWF"},
                   {"role": "user", "content": "Hello"}, {"role": "user", "content": "make it 250k please"}]),
            "Done: your budget is now 250k RWF instead of 300k RWF. I keep looking for your house in Kimironko.",
        );
    }

    #[test]
    fn a_stranger_is_greeted() {
        answers(
            json!("Muraho"),
            "Muraho, ni EasyMO. Mwanditse: \"Muraho\". Nabafasha iki?",
        );
    }

    #[test]
    fn a_tool_is_called_once_and_its_answer_used() {
        let tools = json!([{"type": "function", "name": "session_update_status", "parameters": {"type": "object",
            "properties": {"status": {"type": "string", "enum": ["active", "closed"]}, "note": {"type": ["string", "null"]}}}}]);
        let mut body = json!({"tools": tools, "input": [{"role": "user", "content": "Please close my request"}]});
        let Reply::Tools(calls) = reply(&body) else {
            panic!("expected a call")
        };
        assert_eq!(
            calls,
            [(
                "session_update_status".to_owned(),
                json!({"status": "closed", "note": null})
            )]
        );
        body["input"] = json!([{"role": "user", "content": "Please close my request"},
                               {"type": "function_call_output", "call_id": "c1", "output": "{\"ok\":true}"}]);
        let Reply::Text(text) = reply(&body) else {
            panic!("expected words")
        };
        assert!(text.starts_with("I closed your request"), "{text}");
    }
}
