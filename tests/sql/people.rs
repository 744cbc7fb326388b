//! Many people who call and write, by SMS and on WhatsApp, under every spelling of their number, under an id without a number,
//! twice the same, in bursts, and again after days: a model says whose every message is and to which conversation it
//! belongs. Nothing ever reaches, or shows, somebody else.
//!
//! What they send goes through the readers of the webhooks, then through the functions of the database. Ten thousand people
//! under `cargo xtask soak`, a seeded sample in `cargo xtask test`.

use std::collections::HashMap;

use ihuza_core::phone::E164;
use ihuza_core::{mtn, whatsapp};
use serde_json::{Value, json};

use crate::support::{Db, Dice, at, at_text, attempt, ended_call, in_full, seed, text, token, unique, with};

const PEOPLE: usize = 10_000;
const SAMPLE: usize = 80;
/// Each comes back so often, at some time.
const VISITS: usize = 4;
const HOUR_MS: i64 = 3_600_000;
/// A conversation rests as long as this and is still the same.
const IDLE_MS: i64 = 72 * HOUR_MS;
/// Between two visits of one person, on average: some come back in time and some do not.
const PAUSE_MS: i64 = 40 * HOUR_MS;
const OUR_NUMBER: &str = "118";

/// Somebody. The mark stands in everything that they write and that is written to them.
struct Person {
    /// Nine digits, as in `0788123456` without the zero.
    national: String,
    user_id: Option<String>,
    /// Whether WhatsApp shows us their number: always, never, or now and then.
    shows_number: usize,
}

impl Person {
    fn new(n: usize, dice: &mut Dice) -> Self {
        let operator = ["78", "79", "72", "73"][n % 4];
        Self {
            national: format!("{operator}{:07}", 1_000_000 + n),
            user_id: (dice.below(4) > 0).then(|| format!("RW.{}", 70_000_000_000 + n)),
            shows_number: dice.below(3),
        }
    }

    fn e164(&self) -> String {
        format!("+250{}", self.national)
    }

    /// As a carrier, a person or a header may write it.
    fn spelled(&self, dice: &mut Dice) -> String {
        let (a, b) = self.national.split_at(3);
        match dice.below(7) {
            0 => format!("+250{a}{b}"),
            1 => format!("0{a}{b}"),
            2 => format!("250{a}{b}"),
            3 => format!("{a}{b}"),
            4 => format!("00250{a}{b}"),
            5 => format!("tel:+250{a}{b}"),
            _ => format!("+250 {a} {}-{}", &b[..3], &b[3..]),
        }
    }
}

/// A profile, by the design: names lead to it, and it has at most one conversation at a time.
#[derive(Default)]
struct Profile {
    id: Option<String>,
    person: usize,
    session: Option<Session>,
}

#[derive(Clone)]
struct Session {
    id: String,
    last_activity: i64,
    /// The newest call in it.
    call: Option<String>,
}

/// Whom names lead to.
#[derive(Default)]
struct Model {
    by_number: HashMap<String, usize>,
    by_user_id: HashMap<String, usize>,
    profiles: Vec<Profile>,
    /// Profiles by their id in the database, and by the conversations that they have had.
    by_id: HashMap<String, usize>,
    by_session: HashMap<String, usize>,
    messages: u64,
}

impl Model {
    /// The number first; then the id; else somebody new. Whoever shows both has both from then on, and an id goes with its
    /// number.
    fn profile(&mut self, person: usize, number: Option<&str>, user_id: Option<&str>) -> usize {
        let known = number.and_then(|number| self.by_number.get(number));
        let known = known.or_else(|| user_id.and_then(|id| self.by_user_id.get(id)));
        let profile = known.copied().unwrap_or_else(|| {
            self.profiles.push(Profile { person, ..Profile::default() });
            self.profiles.len() - 1
        });
        if let Some(number) = number {
            self.by_number.entry(number.to_owned()).or_insert(profile);
        }
        if let Some(id) = user_id {
            self.by_user_id.insert(id.to_owned(), profile);
        }
        assert_eq!(self.profiles[profile].person, person, "the model itself mixes people up");
        profile
    }

    /// Which conversation goes on now, if one does.
    fn going_on(&self, profile: usize, now: i64) -> Option<&Session> {
        self.profiles[profile].session.as_ref().filter(|session| now - session.last_activity <= IDLE_MS)
    }

    /// The database has found this profile and conversation.
    fn check(&mut self, profile: usize, profile_id: &str, session_id: &str, now: i64, what: &str) {
        let expected = self.profiles[profile].id.get_or_insert_with(|| profile_id.to_owned());
        assert_eq!(expected, profile_id, "{what}: this is somebody else");
        let owner = *self.by_id.entry(profile_id.to_owned()).or_insert(profile);
        assert_eq!(owner, profile, "{what}: two people are one");
        match self.going_on(profile, now) {
            Some(session) => assert_eq!(session.id, session_id, "{what}: the conversation was to go on"),
            None => {
                let before = self.by_session.insert(session_id.to_owned(), profile);
                assert_eq!(before, None, "{what}: a conversation of before, or of another");
                self.profiles[profile].session =
                    Some(Session { id: session_id.to_owned(), last_activity: now, call: None });
            }
        }
        self.touch(profile, now);
    }

    fn touch(&mut self, profile: usize, now: i64) {
        if let Some(session) = &mut self.profiles[profile].session {
            session.last_activity = session.last_activity.max(now);
        }
    }
}

fn mark(person: usize) -> String {
    format!("p{person}.")
}

/// Everything in it is of this person.
fn only_of(person: usize, texts: &Value, what: &str) {
    for said in texts.as_array().unwrap() {
        let words = text(said, "/text");
        assert!(words.contains(&mark(person)), "{what}: shows {words:?} to person {person}");
    }
}

/// What a webhook has put onto the queue.
struct Inbound {
    p: Value,
    number: Option<String>,
    user_id: Option<String>,
}

struct World<'a> {
    db: &'a Db,
    people: Vec<Person>,
    model: Model,
    dice: Dice,
    now: i64,
    /// What was handled, to come again.
    handled: Vec<Value>,
    repeats: u64,
}

impl World<'_> {
    fn sms(&mut self, person: usize) -> Inbound {
        self.model.messages += 1;
        let who = &self.people[person];
        let body = json!({"senderAddress": who.spelled(&mut self.dice), "receiverAddress": "8080", "message": format!("{}hello by SMS", mark(person)),
                          "id": format!("sms-{}", unique())});
        let read = mtn::parse_inbound(Some("application/json"), body.to_string().as_bytes(), at(self.now)).unwrap();
        let [message] = read.messages.as_slice() else { panic!("{body} was not read: {read:?}") };
        let number = message.from.as_str().to_owned();
        assert_eq!(number, who.e164(), "{body}");
        let p = json!({"provider": "mtn", "provider_message_id": message.provider_message_id, "from": number, "to": message.to, "text": message.text});
        Inbound { p, number: Some(number), user_id: None }
    }

    fn whatsapp(&mut self, person: usize) -> Inbound {
        self.model.messages += 1;
        let who = &self.people[person];
        let hidden = who.user_id.is_some() && [false, true, self.dice.below(2) == 0][who.shows_number];
        let number = (!hidden).then(|| format!("250{}", who.national));
        let mut message = json!({"id": format!("wamid.{}", unique()), "timestamp": at(self.now).timestamp().to_string(), "type": "text",
                                 "text": {"body": format!("{}hello on WhatsApp", mark(person))}});
        let mut contact = json!({"profile": {"name": format!("Name {person}")}});
        if let Some(number) = &number {
            message["from"] = json!(number);
            contact["wa_id"] = json!(number);
        }
        if let Some(id) = &who.user_id {
            message["from_user_id"] = json!(id);
            contact["user_id"] = json!(id);
        }
        let value = json!({"metadata": {"phone_number_id": OUR_NUMBER}, "contacts": [contact], "messages": [message]});
        let body = json!({"entry": [{"changes": [{"field": "messages", "value": value}]}]});
        let read = whatsapp::parse_webhook(body.to_string().as_bytes(), Some(OUR_NUMBER), at(self.now)).unwrap();
        let [message] = read.messages.as_slice() else { panic!("{body} was not read: {read:?}") };
        let (number, user_id) =
            (message.from.number.as_ref().map(|number| number.as_str().to_owned()), message.from.user_id.clone());
        assert_eq!((number.clone(), user_id.clone()), ((!hidden).then(|| who.e164()), who.user_id.clone()), "{body}");
        let p = json!({"channel": "whatsapp", "provider": "whatsapp", "provider_message_id": message.provider_message_id, "from": number,
                       "user_id": user_id, "display_name": message.from.display_name, "to": message.to, "text": message.text});
        Inbound { p, number, user_id }
    }

    /// One message comes in; what is claimed, if the turn is this one's.
    async fn arrives(&mut self, person: usize, inbound: Inbound, holder: u32) -> Option<Value> {
        let p = with(
            inbound.p,
            json!({"lease_token": token(holder), "lease_seconds": 600, "correlation_id": "c", "received_at": at_text(self.now), "now": at_text(self.now)}),
        );
        let profile = self.model.profile(person, inbound.number.as_deref(), inbound.user_id.as_deref());
        let answer = self.db.rpc("begin_sms_turn", p.clone()).await;
        let what = format!("{p} by person {person}");
        self.handled.push(p.clone());
        let row = format!(
            "select jsonb_build_object('profile', m.profile_id, 'session', m.session_id, 'call', m.call_id) from public.conversation_messages m
              where m.provider_message_id = '{}' and m.direction = 'inbound'",
            text(&p, "/provider_message_id")
        );
        let row = self.db.value(&row).await;
        self.model.check(profile, &text(&row, "/profile"), &text(&row, "/session"), self.now, &what);
        let call = self.model.profiles[profile].session.as_ref().and_then(|session| session.call.clone());
        assert_eq!(row["call"].as_str(), call.as_deref(), "{what}: the call that it goes on from");
        match text(&answer, "/decision").as_str() {
            "go" => {
                assert_eq!(answer["session"]["id"], row["session"], "{what}");
                Some(answer)
            }
            "stored" => None,
            other => panic!("{what}: {other}"),
        }
    }

    /// Answers a claimed turn, and all that came in meanwhile.
    async fn answered(&mut self, person: usize, mut claimed: Value, holder: u32) {
        loop {
            let what = format!("turn of person {person}: {claimed}");
            only_of(person, &claimed["messages"], &what);
            only_of(person, &claimed["history"], &what);
            let channel = text(&claimed, "/channel");
            let who = &self.people[person];
            let to = text(&claimed, if channel == "sms" { "/profile/phone_number" } else { "/profile/whatsapp_to" });
            assert!(
                to == who.e164() || channel == "whatsapp" && Some(&to) == who.user_id.as_ref(),
                "{what}: goes to {to}"
            );
            self.now += 1_000;
            let reply = format!("{}our answer", mark(person));
            let delivery = json!({"id": claimed["delivery_ids"][&channel], "channel": channel, "provider": if channel == "sms" { "mtn" } else { "whatsapp" },
                                  "purpose": "reply", "recipient": to, "content": reply, "payload": {"text": reply},
                                  "attempt": attempt("accepted", self.now)});
            let p = json!({"turn_id": claimed["turn_id"], "lease_token": token(holder), "outcome": "answered", "now": at_text(self.now),
                           "reply": {"content": reply, "source": "model"}, "deliveries": [delivery]});
            let finished = self.db.rpc("finish_sms_turn", p).await;
            let session = text(&claimed, "/session/id");
            let profile = self.model.by_session[&session];
            assert_eq!(self.model.profiles[profile].person, person, "{what}");
            if self.model.profiles[profile].session.as_ref().is_some_and(|current| current.id == session) {
                self.model.touch(profile, self.now);
            }
            if finished["more"] != true {
                return;
            }
            let p = json!({"session_id": finished["session_id"], "correlation_id": "more", "lease_token": token(holder), "lease_seconds": 600,
                           "now": at_text(self.now)});
            claimed = self.db.rpc("begin_sms_turn", p).await;
            assert_eq!(text(&claimed, "/decision"), "go", "{what}");
        }
    }

    /// Writes once or several times, before or after the answer, where they please.
    async fn writes(&mut self, person: usize, holder: u32) {
        let mut turns = Vec::new();
        for _ in 0..1 + self.dice.below(3) {
            let inbound = if self.dice.below(2) == 0 { self.sms(person) } else { self.whatsapp(person) };
            turns.extend(self.arrives(person, inbound, holder).await);
            self.now += 2_000;
            if self.dice.below(2) == 0 {
                for claimed in turns.drain(..) {
                    self.answered(person, claimed, holder).await;
                }
            }
        }
        for claimed in turns {
            self.answered(person, claimed, holder).await;
        }
    }

    /// Calls by telephone, and gets the summary.
    async fn calls(&mut self, person: usize, holder: u32) {
        let number = E164::parse(&self.people[person].spelled(&mut self.dice)).unwrap();
        let call = ended_call(self.db, number.as_str(), self.now - 1_000).await;
        let profile = self.model.profile(person, Some(number.as_str()), None);
        let p = json!({"correlation_id": call, "call_ref": call, "phone_number": number.as_str(), "lease_token": token(holder), "now": at_text(self.now)});
        let claim = self.db.rpc("begin_call_notification", p).await;
        let what = format!("call of person {person}: {claim}");
        assert_eq!(text(&claim, "/decision"), "go", "{what}");
        self.model.check(profile, &text(&claim, "/profile/id"), &text(&claim, "/session/id"), self.now, &what);
        assert_eq!(text(&claim, "/profile/phone_number"), self.people[person].e164(), "{what}");
        self.model.profiles[profile].session.as_mut().unwrap().call = Some(call);
        self.now += 1_000;
        let summary = format!("{}your call", mark(person));
        let delivery = json!({"id": claim["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "recipient": number.as_str(), "purpose": "call_summary",
                              "content": summary, "payload": {"text": summary}, "attempt": attempt("accepted", self.now)});
        let p = json!({"notification_id": claim["notification_id"], "lease_token": token(holder), "outcome": "done", "deliveries": [delivery],
                       "thread_content": summary, "now": at_text(self.now)});
        self.db.rpc("finish_call_notification", p).await;
        self.model.touch(profile, self.now);
    }

    /// Something handled long ago comes again: nothing may follow.
    async fn repeats(&mut self) {
        let again = self.handled[self.dice.below(self.handled.len())].clone();
        let p = with(again, json!({"lease_token": token(9_999_999), "now": at_text(self.now)}));
        let answer = self.db.rpc("begin_sms_turn", p.clone()).await;
        assert_eq!(text(&answer, "/decision"), "duplicate", "{p}");
        self.repeats += 1;
    }

    /// At the end, over all rows: whose each is by its words, its profile, its conversation and its recipient.
    async fn nobody_has_what_is_not_theirs(&self) {
        let owner: HashMap<&str, usize> =
            self.model.profiles.iter().filter_map(|profile| Some((profile.id.as_deref()?, profile.person))).collect();
        let sql = "select m.content, m.profile_id::text, s.profile_id::text, t.profile_id::text, m.direction
                     from public.conversation_messages m join public.omnichannel_sessions s on s.id = m.session_id
                     join public.conversation_threads t on t.id = m.thread_id and t.session_id = s.id";
        let mut inbound = 0;
        for row in self.db.admin.query(sql, &[]).await.unwrap() {
            let content: &str = row.get(0);
            for column in 1..4 {
                let person = owner[row.get::<_, &str>(column)];
                assert!(content.starts_with(&mark(person)), "{content:?} is with person {person}");
            }
            inbound += u64::from(row.get::<_, &str>(4) == "inbound");
        }
        assert_eq!(inbound, self.model.messages, "every message once");
        let sql = "select l.content, l.recipient, l.profile_id::text from public.message_delivery_log l where l.direction = 'outbound'";
        for row in self.db.admin.query(sql, &[]).await.unwrap() {
            let (content, recipient): (&str, &str) = (row.get(0), row.get(1));
            let person = owner[row.get::<_, &str>(2)];
            let who = &self.people[person];
            assert!(content.starts_with(&mark(person)), "{content:?} is with person {person}");
            assert!(
                recipient == who.e164() || Some(recipient) == who.user_id.as_deref(),
                "{content:?} went to {recipient}"
            );
        }
        for (what, sql) in [
            ("is unanswered", "select count(*) from public.conversation_messages where direction = 'inbound' and handled_at is null"),
            ("turn is open", "select count(*) from public.conversation_turns where status <> 'answered'"),
            (
                "goes on from somebody else's",
                "select count(*) from public.omnichannel_sessions s join public.omnichannel_sessions b on b.id = s.previous_session_id
                  where b.profile_id <> s.profile_id",
            ),
            (
                "person has two conversations",
                "select count(*) from (select from public.omnichannel_sessions where status in ('active', 'follow_up') group by profile_id having count(*) > 1) x",
            ),
        ] {
            assert_eq!(self.db.count(sql).await, 0, "{what}");
        }
        assert_eq!(self.db.count("select count(*) from public.profiles").await, self.model.profiles.len() as i64);
        assert_eq!(
            self.db.count("select count(*) from public.omnichannel_sessions").await,
            self.model.by_session.len() as i64
        );
    }
}

#[tokio::test]
async fn every_message_is_linked_to_its_person_and_conversation_whatever_they_do() {
    let count = if in_full() { PEOPLE } else { SAMPLE };
    let db = Db::new().await;
    let mut dice = Dice(seed());
    let people = (0..count).map(|n| Person::new(n, &mut dice)).collect();
    let mut world =
        World { db: &db, people, model: Model::default(), dice, now: HOUR_MS, handled: Vec::new(), repeats: 0 };
    for holder in 1..=(count * VISITS) as u32 {
        let person = world.dice.below(count);
        // As far apart that the same person comes again after PAUSE_MS, on average.
        world.now += world.dice.below((2 * PAUSE_MS) as usize / count) as i64;
        if world.dice.below(4) == 0 {
            world.calls(person, holder).await;
        } else {
            world.writes(person, holder).await;
        }
        if !world.handled.is_empty() && world.dice.below(3) == 0 {
            world.repeats().await;
        }
    }
    world.nobody_has_what_is_not_theirs().await;
    let (model, ends) = (&world.model, world.model.by_session.len() - world.model.profiles.len());
    assert!(ends > count / 20, "only {ends} conversations ended: the sample says little");
    assert!(model.profiles.len() > count * 9 / 10);
    println!("counted {count} people who switched channels, numbers and conversations");
    println!("counted {} messages linked to their person", model.messages);
    println!("counted {} repeated webhooks without effect among them", world.repeats);
}
