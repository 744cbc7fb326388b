//! An answer in a conversation, which shows what it was told before: by the call, and by the turns since.

use serde_json::{Map, Value, json};

use super::answer::{object, short};
use super::facts::{Facts, Pick, show};
use super::input::{Item, items};
use super::wishes::{self, Open};
use super::words::{Language, words};

/// What the agent knows when it answers.
pub struct Conversation {
    language: Language,
    /// The call's summary and everything else it was told besides the turns.
    from_call: Facts,
    /// The above and the earlier turns.
    before: Facts,
    /// What is asked now.
    now: Facts,
    question: String,
    /// Answers of tools, in this request.
    pub tool_outputs: Vec<String>,
    knows_something: bool,
    /// What is booked and asked for.
    open: Open,
    /// First line of the call's summary.
    topic: Option<String>,
}

impl Conversation {
    pub fn of(body: &Value) -> Self {
        let items = items(body);
        let last_answer = items.iter().rposition(|item| item.role == "assistant");
        let is_question =
            |(index, item): &(usize, &Item)| item.role == "user" && last_answer.is_none_or(|last| *index > last);
        let asked: Vec<&str> =
            items.iter().enumerate().filter(is_question).map(|(_, item)| item.text.as_str()).collect();
        let question = asked.join("\n");
        let told = items.iter().filter(|item| item.role == "developer" || item.role == "system");
        let told = told.map(|item| item.text.as_str()).collect::<Vec<_>>().join("\n");
        // A time of day names a zone, not where somebody wants a house.
        // The clock says where it is, which is not where somebody looks for a house.
        let told = told.replace("Kigali time", "").replace("in Kigali.", "");
        let topic = told.split("<<<").nth(1).unwrap_or_default();
        let topic = topic.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
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
        let everything = items.iter().map(|item| item.text.as_str()).collect::<Vec<_>>().join("\n");
        let language = Language::detect(&question).or_else(|| Language::detect(&everything));
        Self {
            language: language.unwrap_or(Language::En),
            topic: topic.clone(),
            knows_something: topic.is_some() || turns > 0 || !from_call.nothing(),
            open: Open::of(&told),
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

    pub fn answer(&self) -> String {
        if let Some(output) = self.tool_outputs.last() {
            return self.after_tool(output);
        }
        let language = self.language;
        let subject = self.before.clone().then(self.now.clone()).subject(language);
        if let (Some(new), Some(old)) = (&self.now.budget, self.before.price(language))
            && self.before.budget.as_ref() != Some(new)
        {
            let new = self.before.clone().then(self.now.clone()).price(language).unwrap_or_default();
            return self.new_price(&old, &new);
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
        if let Some(topic) = self.topic.as_deref().filter(|_| all.nothing()) {
            let topic = short(topic, 80);
            return match language {
                Language::En => format!("We spoke about this: {topic} I pass your message on to a colleague."),
                Language::Fr => format!("Nous en avons parlé : {topic} Je transmets votre message à un collègue."),
                Language::Rw => format!("Twabivuganyeho: {topic} Ndagezaho ubutumwa bwawe mugenzi wanjye."),
                Language::Sw => format!("Tulizungumza kuhusu: {topic} Nampa mwenzangu ujumbe wako."),
            };
        }
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

    /// Old price and new one, the new one first: that is the one we read back out of our own words later.
    fn new_price(&self, old: &str, new: &str) -> String {
        let language = self.language;
        let all = self.before.clone().then(self.now.clone());
        let label = all.price_label(language);
        let subject = all.subject(language);
        let goes_on = match (language, all.offers) {
            (Language::En, true) => format!("Your listing is updated: {subject}."),
            (Language::Fr, true) => format!("Votre annonce est à jour : {subject}."),
            (Language::Rw, true) => format!("Itangazo ryavuguruwe: {subject}."),
            (Language::Sw, true) => format!("Tangazo limesasishwa: {subject}."),
            (Language::En, false) => format!("I keep looking for your {subject}."),
            (Language::Fr, false) => format!("Je continue à chercher : {subject}."),
            (Language::Rw, false) => format!("Ndakomeza gushaka {subject}."),
            (Language::Sw, false) => format!("Naendelea kutafuta {subject}."),
        };
        match language {
            Language::En => format!("Done: your {label} is now {new} instead of {old}. {goes_on}"),
            Language::Fr => format!("C'est fait : votre {label} est de {new} au lieu de {old}. {goes_on}"),
            Language::Rw => format!("Byakozwe: {label} ni {new} aho kuba {old}. {goes_on}"),
            Language::Sw => format!("Tayari: {label} ni {new} badala ya {old}. {goes_on}"),
        }
    }

    fn price_answer(&self, price: &str) -> String {
        let language = self.language;
        let first = self.from_call.price(language).filter(|first| first != price);
        let label = self.before.price_label(language);
        match (language, first) {
            (Language::En, Some(first)) => format!("Your {label} is {price}. On the call it was {first}."),
            (Language::Fr, Some(first)) => {
                format!("Votre {label} est de {price}. Lors de l'appel, il était de {first}.")
            }
            (Language::Rw, Some(first)) => format!("Ubu {label} ni {price}. Kuri telefone yari {first}."),
            (Language::Sw, Some(first)) => format!("Sasa {label} ni {price}. Kwenye simu ilikuwa {first}."),
            (Language::En, None) => format!("Your {label} is {price}."),
            (Language::Fr, None) => format!("Votre {label} est de {price}."),
            (Language::Rw, None) => format!("Ubu {label} ni {price}."),
            (Language::Sw, None) => format!("Sasa {label} ni {price}."),
        }
    }

    fn asks_for_price(&self) -> bool {
        const PRICE: [&str; 10] =
            ["budget", "price", "prix", "combien", "igiciro", "angahe", "bei", "bajeti", "ingapi", "cost"];
        self.now.budget.is_none() && words(&self.question).any(|word| PRICE.contains(&word.as_str()))
    }

    pub fn wants(&self, known: &[&str]) -> bool {
        words(&self.question).any(|word| known.contains(&word.as_str()))
    }

    /// The tool that the question needs, and what it is given.
    pub fn wish(&self) -> Option<(&'static str, Value)> {
        wishes::wish(&self.question, &self.open)
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
        if let Some((old, new)) = new_budget(output) {
            return self.new_price(&old, &new);
        }
        if let Some(said) = told_by(output, language) {
            return said;
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

    pub fn structured(&self) -> Map<String, Value> {
        let answer = self.answer();
        let intent = if self.now.offers { "property_listing" } else { "property_search" };
        object(
            json!({"language": self.language.code(), "reply": answer, "text": answer, "answer": answer, "message": answer,
                      "content": answer, "intent": intent, "needs_human": false}),
        )
    }
}

/// The budget before and now, where a tool changed one.
fn new_budget(output: &str) -> Option<(String, String)> {
    let output: Value = serde_json::from_str(output).ok()?;
    let asked = output.pointer("/result/request")?;
    let before = output.pointer("/result/changed/budget/0")?.as_f64()?;
    let currency = asked.get("currency")?.as_str()?;
    let shown = |amount: f64| show(amount.round() as u64, currency);
    Some((shown(before), shown(asked.get("budget")?.as_f64()?)))
}

/// What a tool answered: names as they are, amounts and times as it says that they are written.
fn told_by(output: &str, language: Language) -> Option<String> {
    let output: Value = serde_json::from_str(output).ok()?;
    let result = output.get("result")?;
    let changed = result.get("changed").and_then(Value::as_object).is_some_and(|changes| !changes.is_empty());
    let done = if changed { language.of(["Done. ", "C'est fait. ", "Byakozwe. ", "Tayari. "]) } else { "" };
    let part = |of: &Value, name: &str| match of.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let said = if let Some(ride) = result.get("booking") {
        let of = |name| part(ride, name);
        let pickup_at = if ride.get("pickup_at_written").is_some() { "pickup_at_written" } else { "pickup_at" };
        format!(
            "{done}Ride {}: {} > {}, {}, {}.",
            of("number"),
            of("pickup"),
            of("destination"),
            of(pickup_at).replace('T', " "),
            of("state")
        )
    } else if let Some(asked) = result.get("request") {
        let of = |name| part(asked, name);
        let budget = match asked.get("budget_written").and_then(Value::as_str) {
            Some(written) => written.to_owned(),
            None => format!("{} {}", of("budget"), of("currency")),
        };
        format!("{done}{} {}: {}, {budget}.", of("kind"), of("number"), of("area"))
    } else if let Some(found) = result.get("services").and_then(Value::as_array) {
        let found: Vec<String> = found.iter().map(|service| part(service, "name")).collect();
        if found.is_empty() { "-".to_owned() } else { found.join(", ") }
    } else if result.get("waiting_before").is_some() {
        // As this tool asks for: who was told, and no time.
        let words = [
            "Yes: a colleague has been asked, and will call or write to you.",
            "Oui : une collègue est prévenue, et vous appellera ou vous écrira.",
            "Yego: mugenzi wanjye yabimenyeshejwe, azaguhamagara cyangwa akwandikire.",
            "Ndiyo: mwenzangu ameombwa, atakupigia au kukuandikia.",
        ];
        language.of(words).to_owned()
    } else if let Some(said) = result.get("say") {
        said.as_str()?.to_owned()
    } else {
        return None;
    };
    Some(said)
}

pub const CLOSING: [&str; 8] = ["close", "finish", "fermer", "terminer", "funga", "maliza", "gufunga", "birangiye"];
pub const CONTEXT: [&str; 4] = ["context", "contexte", "status", "history"];
