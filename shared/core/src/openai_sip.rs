//! OpenAI's own SIP: a call that comes to the vendor's address, of which we hear by webhook, and which waits for our word.
//!
//! Shapes from the vendor's guide "Telephony and SIP" and package `openai` 3.52.0 (`types/webhooks`, `types/realtime/call_*`).
//! Whatever a SIP header says was written by the caller's side: it names who calls, and proves nothing.

use serde_json::Value;

use crate::error_class::ErrorClass;
use crate::json::{self, field, foreign_object, items_at, obj, str_at, text};
use crate::openai;
use crate::phone::{E164, is_short_code};
use crate::problem::Problem;

/// What a webhook tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A call waits for `accept` or `reject`.
    Call(Call),
    /// Something that is not for us, by its type.
    Other(String),
}

/// A call that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The vendor's id, `rtc_…`: letters, digits, `_` and `-`, at most 128.
    pub call_id: String,
    /// Who calls, in E.164; none where that is withheld or no telephone number.
    pub from: Option<String>,
    /// The numbers that may have been called, the likeliest first: E.164, or a short code.
    pub called: Vec<String>,
    /// Whether the sound is encrypted on its way to the vendor, where it says so.
    pub srtp: Option<bool>,
}

/// Headers that name who calls: what the network asserts comes before what the telephone says (RFC 3325).
const CALLER: [&str; 3] = ["p-asserted-identity", "remote-party-id", "from"];
/// Headers that name who was called. At the vendor's address the first may hold a project (`proj_…`); then the number is the
/// one that the call was sent on from (RFC 5806, RFC 7315).
const CALLED: [&str; 3] = ["to", "p-called-party-id", "diversion"];

const MOST_HEADERS: usize = 200;
const HEADER_LIMIT_BYTES: usize = 1024;

/// Reads the body of a webhook whose signature holds.
///
/// # Errors
/// The 400 of a body that is no JSON object, the 422 of a call without a sound id.
pub fn incoming(body: &[u8]) -> Result<Incoming, Problem> {
    let event = json::object(body)?;
    let kind = str_at(&event, "type").unwrap_or_default();
    if kind != "realtime.call.incoming" {
        return Ok(Incoming::Other(json::clip(kind, 80).to_owned()));
    }
    let data = event.get("data").unwrap_or(&Value::Null);
    let call_id = str_at(data, "call_id").filter(|id| is_call_id(id));
    let call_id =
        call_id.ok_or_else(|| Problem::missing_field("data.call_id", "the id of a call, such as rtc_u1_abc"))?;
    let headers: Vec<(&str, &str)> = items_at(data, "sip_headers")
        .iter()
        .take(MOST_HEADERS)
        .filter_map(|header| Some((str_at(header, "name")?, str_at(header, "value")?)))
        .filter(|(_, value)| value.len() <= HEADER_LIMIT_BYTES)
        .collect();
    let values = |wanted: &'static str| {
        headers.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value)
    };
    let from = CALLER.iter().flat_map(|name| values(name)).find_map(|value| {
        let number = E164::parse_msisdn(&user_of(value)?).ok()?;
        Some(number.as_str().to_owned())
    });
    let mut called: Vec<String> = Vec::new();
    for number in CALLED.iter().flat_map(|name| values(name)).filter_map(|value| number_of(&user_of(value)?)) {
        if called.len() < 5 && !called.contains(&number) {
            called.push(number);
        }
    }
    let srtp = str_at(data, "sip_media_security").map(|word| word == "srtp");
    Ok(Incoming::Call(Call { call_id: call_id.to_owned(), from, called, srtp }))
}

/// Whether this may stand in a path, and name an object.
fn is_call_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn number_of(user: &str) -> Option<String> {
    if is_short_code(user) {
        return Some(user.to_owned());
    }
    E164::parse_msisdn(user).ok().map(|number| number.as_str().to_owned())
}

/// The user part of the address in a header such as `"A" <sip:+250788123456;phone-context=x@host>;tag=9`, or of a bare one.
///
/// ```
/// use ihuza_core::openai_sip::user_of;
/// assert_eq!(user_of("\"A <b>\" <sip:%2B250788123456;cpc=x@ims.rw;user=phone>;tag=9").as_deref(), Some("+250788123456"));
/// assert_eq!(user_of("tel:+250-788-123-456;a=b").as_deref(), Some("+250-788-123-456"));
/// assert_eq!(user_of("sip:host.rw"), None);
/// ```
pub fn user_of(value: &str) -> Option<String> {
    // A name in quotes may hold anything.
    let value = value.trim();
    let address = match value.strip_prefix('"') {
        Some(rest) => end_of_quoted(rest),
        None => value,
    };
    let address = match address.split_once('<') {
        Some((_, inner)) => inner.split('>').next().unwrap_or_default(),
        None => address.split([';', ',']).next().unwrap_or_default(),
    };
    let (scheme, rest) = address.trim().split_once(':')?;
    let user = match scheme.to_ascii_lowercase().as_str() {
        "sip" | "sips" => rest.split_once('@')?.0,
        "tel" => rest,
        _ => return None,
    };
    // A `+` is itself in a SIP address, and no space.
    let user = user.split([';', ':', '?']).next().unwrap_or_default().replace('+', "%2B");
    let user = crate::form::decode(&user);
    (!user.is_empty()).then_some(user)
}

/// What follows a quoted text whose first quote is taken off already.
fn end_of_quoted(rest: &str) -> &str {
    let mut escaped = false;
    for (at, letter) in rest.char_indices() {
        match letter {
            '"' if !escaped => return rest.get(at + 1..).unwrap_or_default(),
            _ => escaped = letter == '\\' && !escaped,
        }
    }
    ""
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Nobody here has the number that was called.
    UnknownNumber,
    /// No agent is there to answer.
    NoAgent,
    /// The client has used up its budget of the month.
    Budget,
    /// The model is held for down.
    ModelDown,
    /// The database does not answer, or a setting is missing: without a record no call is taken.
    NotReady,
}

/// Every reason there is.
pub const REJECTS: [Reject; 5] =
    [Reject::UnknownNumber, Reject::NoAgent, Reject::Budget, Reject::ModelDown, Reject::NotReady];

impl Reject {
    /// By the word in `admit_openai_call`.
    pub fn from_name(name: &str) -> Option<Reject> {
        REJECTS.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The word in rows, answers and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reject::UnknownNumber => "unknown_number",
            Reject::NoAgent => "no_agent",
            Reject::Budget => "budget",
            Reject::ModelDown => "model_down",
            Reject::NotReady => "not_ready",
        }
    }

    /// What the caller's side is told (RFC 3261, section 21). With 503 a trunk may send the call elsewhere, with the others
    /// it has its answer.
    pub fn sip_status(self) -> u16 {
        match self {
            Reject::UnknownNumber => 404,
            Reject::NoAgent | Reject::Budget => 480,
            Reject::ModelDown | Reject::NotReady => 503,
        }
    }

    /// The body of `reject`.
    pub fn body(self) -> Value {
        obj(&mut [("status_code", self.sip_status().into())])
    }
}

/// What can be done about a call, as the last part of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take it, with a session as body.
    Accept,
    /// Do not take it.
    Reject,
    /// Hand it over to a number.
    Refer,
    /// End it.
    Hangup,
}

impl Action {
    /// The last part of the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Accept => "accept",
            Action::Reject => "reject",
            Action::Refer => "refer",
            Action::Hangup => "hangup",
        }
    }
}

/// Where something is done about a call, below `OPENAI_BASE_URL`.
///
/// ```
/// use ihuza_core::openai_sip::{Action, url};
/// assert_eq!(url("https://api.openai.com/v1/", "rtc_1", Action::Accept), "https://api.openai.com/v1/realtime/calls/rtc_1/accept");
/// ```
pub fn url(base_url: &str, call_id: &str, action: Action) -> String {
    [base_url.trim_end_matches('/'), "/realtime/calls/", call_id, "/", action.as_str()].concat()
}

/// Where a call is observed, with the scheme of `base_url`: a Worker asks for a socket by `fetch`.
pub fn sideband_url(base_url: &str, call_id: &str) -> String {
    [base_url.trim_end_matches('/'), "/realtime?", &crate::form::encode(&[("call_id", call_id)])].concat()
}

/// The body of `refer`.
pub fn refer_body(number: &E164) -> Value {
    let target = ["tel:", number.as_str()].concat();
    obj(&mut [("target_uri", target.into())])
}

/// What the vendor says to an [`Action`], and to a request for the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// There is no such call any more.
    Gone,
    /// It was accepted or rejected before, by whoever was first.
    DecidedBefore,
    /// Not now, or nobody knows: the same may be asked again.
    Again(&'static str),
    /// No, and no again.
    Refused(&'static str),
}

/// Reads the answer to a request about a call.
pub fn answer(http_status: u16, body: &[u8]) -> Answer {
    if (200..300).contains(&http_status) || http_status == 101 {
        return Answer::Done;
    }
    let said = foreign_object(body).unwrap_or_default();
    let code = field(&said, "error").and_then(|error| text(error, "code")).unwrap_or_default();
    if code == "decision_already_made" {
        return Answer::DecidedBefore;
    }
    if matches!(http_status, 404 | 410) {
        return Answer::Gone;
    }
    let down = openai::refused(http_status, &said).classified;
    match down.class {
        ErrorClass::Retryable | ErrorClass::Unknown => Answer::Again(down.reason),
        ErrorClass::Permanent | ErrorClass::Config | ErrorClass::Bug => Answer::Refused(down.reason),
    }
}

/// The same session without hints of languages to the transcription: not each model of the vendor's takes each language.
pub fn without_hints(session: &Value) -> Value {
    let mut session = session.clone();
    if let Some(Value::Object(fields)) = session.pointer_mut("/audio/input/transcription") {
        fields.remove("languages");
    }
    session
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use proptest::prelude::*;

    fn body(headers: &[(&str, &str)]) -> Vec<u8> {
        let headers: Vec<Value> = headers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        json!({"object": "event", "id": "evt_1", "type": "realtime.call.incoming", "created_at": 1_795_000_000,
               "data": {"call_id": "rtc_u1_abc", "sip_media_security": "srtp", "sip_headers": headers}})
        .to_string()
        .into_bytes()
    }

    fn call(headers: &[(&str, &str)]) -> Call {
        match incoming(&body(headers)).unwrap() {
            Incoming::Call(call) => call,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_calls_whom_is_read_from_the_headers() {
        let found = call(&[
            ("From", "<sip:0788123456@ims.example.rw>;tag=9"),
            ("To", "<sip:+250788000000@sip.api.openai.com>"),
            ("Call-ID", "a84b4c76e66710"),
        ]);
        assert_eq!(found.from.as_deref(), Some("+250788123456"));
        assert_eq!((found.called, found.srtp), (vec!["+250788000000".to_owned()], Some(true)));
        assert_eq!(found.call_id, "rtc_u1_abc");
    }

    #[test]
    fn what_the_network_asserts_comes_before_what_the_telephone_says() {
        let asserted = [("from", "<sip:anonymous@anonymous.invalid>"), ("P-Asserted-Identity", "<tel:+250788123456>")];
        assert_eq!(call(&asserted).from.as_deref(), Some("+250788123456"));
        let other = [("From", "<sip:+254712345678@x>"), ("P-Asserted-Identity", "\"B\" <sip:+250788123456@x>")];
        assert_eq!(call(&other).from.as_deref(), Some("+250788123456"));
        assert_eq!(call(&[("From", "Anonymous <sip:anonymous@anonymous.invalid>")]).from, None);
        assert_eq!(call(&[]).from, None);
    }

    #[test]
    fn a_call_that_was_sent_on_is_for_the_number_it_was_sent_on_from() {
        let project = ("To", "<sip:proj_abc@sip.api.openai.com;transport=tls>");
        let sent_on =
            [project, ("Diversion", "<sip:+250788000001@mtn.rw>;reason=unconditional, <sip:+250788000002@mtn.rw>")];
        assert_eq!(call(&sent_on).called, ["+250788000001"]);
        let both = [("To", "<sip:8080@x>"), ("Diversion", "<tel:0788000001>"), ("Diversion", "<tel:0788000001>")];
        assert_eq!(call(&both).called, ["8080", "+250788000001"]);
        assert_eq!(call(&[project]).called, Vec::<String>::new());
    }

    #[test]
    fn what_is_no_call_is_told_by_its_type_and_a_call_without_an_id_is_refused() {
        let other = br#"{"type": "live.transport.incoming", "data": {"session_id": "live_1"}}"#;
        assert_eq!(incoming(other).unwrap(), Incoming::Other("live.transport.incoming".to_owned()));
        assert_eq!(incoming(b"{}").unwrap(), Incoming::Other(String::new()));
        for id in [json!(null), json!(7), json!(""), json!("../reject"), json!("a b"), json!("x".repeat(129))] {
            let body = json!({"type": "realtime.call.incoming", "data": {"call_id": id}}).to_string();
            assert_eq!(incoming(body.as_bytes()).unwrap_err().status, 422, "{id}");
        }
        assert!(incoming(b"[]").is_err() && incoming(b"{").is_err());
    }

    #[test]
    fn each_reason_has_a_word_and_a_status_of_sip() {
        for reason in REJECTS {
            assert_eq!(Reject::from_name(reason.as_str()), Some(reason));
            assert!((300..700).contains(&reason.sip_status()));
            assert_eq!(reason.body(), json!({"status_code": reason.sip_status()}));
        }
        assert_eq!(Reject::from_name("go"), None);
    }

    #[test]
    fn an_answer_tells_whether_to_ask_again() {
        let error = |code: &str| json!({"error": {"code": code, "type": "invalid_request_error"}}).to_string();
        let read = |status: u16, code: &str| answer(status, error(code).as_bytes());
        assert_eq!(answer(200, b""), Answer::Done);
        assert_eq!(read(404, "call_not_found"), Answer::Gone);
        assert_eq!(read(409, "decision_already_made"), Answer::DecidedBefore);
        assert_eq!(read(404, "decision_already_made"), Answer::DecidedBefore);
        assert!(matches!(read(429, "rate_limit_exceeded"), Answer::Again(_)));
        assert!(matches!(answer(500, b"<html>"), Answer::Again(_)));
        assert!(matches!(read(401, "invalid_api_key"), Answer::Refused(_)));
        assert!(matches!(read(400, "unknown_parameter"), Answer::Refused(_)));
    }

    #[test]
    fn hints_can_be_left_out() {
        let session = json!({"audio": {"input": {"transcription": {"model": "m", "languages": ["rw"]}}}, "voice": 1});
        let left = json!({"audio": {"input": {"transcription": {"model": "m"}}}, "voice": 1});
        assert_eq!((without_hints(&session), without_hints(&left)), (left.clone(), left));
        assert_eq!(without_hints(&json!({})), json!({}));
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let _ = incoming(&body);
            let _ = answer(400, &body);
        }

        #[test]
        fn no_header_panics_and_only_numbers_come_of_one(name in "(From|To|Diversion|P-Asserted-Identity|X)", value in "\\PC{0,60}") {
            let found = call(&[(&name, &value)]);
            prop_assert!(found.from.iter().all(|number| number.starts_with('+')));
            prop_assert!(found.called.iter().all(|number| number.bytes().all(|byte| byte == b'+' || byte.is_ascii_digit())));
        }

        #[test]
        fn a_number_is_found_however_it_is_wrapped(
            number in "\\+25078[0-9]{7}", display in "(|\"[^\"\\\\]{0,10}\" |[A-Za-z]{1,8} )", scheme in "(sip|SIP|sips)", tail in "(|;tag=[a-z0-9]{1,8})"
        ) {
            let value = format!("{display}<{scheme}:{number}@ims.example.rw;user=phone>{tail}");
            prop_assert_eq!(call(&[("From", &value)]).from, Some(number.clone()));
            let bare = format!("tel:{number}{tail}");
            prop_assert_eq!(call(&[("To", &bare)]).called, [number]);
        }
    }
}
