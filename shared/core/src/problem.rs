//! Errors as callers see them: RFC 9457 problem details, each with a stable `type`, the field and what to do.
//!
//! Each `type` has an entry in `docs/errors.md`. No detail is given where it would help an attacker (401), and none ever
//! holds a database row, a token or a whole phone number.

use serde_json::{Map, Value};

/// Where the `type` addresses begin.
pub const TYPE_BASE: &str = "https://ihuza.rw/errors/";

/// The media type of the body.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// One error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The last part of `type`, such as `missing-field`.
    pub type_slug: &'static str,
    /// What kind of problem it is, in a few words that never change.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
    /// What is wrong this time.
    pub detail: Box<str>,
    /// The field at fault, in the spelling we write.
    pub field: Option<&'static str>,
    /// What the caller can do.
    pub hint: Option<&'static str>,
    /// The id under which our logs know the request.
    pub correlation_id: Option<Box<str>>,
    /// For 405: the methods that work.
    pub allow: Option<&'static str>,
    /// For 429 and 503: seconds to wait.
    pub retry_after_s: Option<u16>,
}

impl Problem {
    /// A problem with nothing but its kind.
    pub fn new(type_slug: &'static str, title: &'static str, status: u16) -> Problem {
        Problem {
            type_slug,
            title,
            status,
            detail: Box::default(),
            field: None,
            hint: None,
            correlation_id: None,
            allow: None,
            retry_after_s: None,
        }
    }

    /// Adds what is wrong this time.
    pub fn detail(mut self, detail: impl Into<Box<str>>) -> Problem {
        self.detail = detail.into();
        self
    }

    /// Names the field at fault.
    pub fn field(mut self, field: &'static str) -> Problem {
        self.field = Some(field);
        self
    }

    /// Says what the caller can do.
    pub fn hint(mut self, hint: &'static str) -> Problem {
        self.hint = Some(hint);
        self
    }

    /// Adds the id under which our logs know the request.
    pub fn correlation_id(mut self, id: &str) -> Problem {
        self.correlation_id = Some(id.into());
        self
    }

    /// 400: the body is not JSON (or not the shape at all).
    pub fn bad_json(detail: impl Into<Box<str>>) -> Problem {
        Problem::new("bad-json", "The body is not valid JSON", 400)
            .detail(detail)
            .hint("Send one JSON object in UTF-8 with Content-Type: application/json")
    }

    /// 400: the body is neither JSON nor a form we know.
    pub fn bad_body(detail: impl Into<Box<str>>) -> Problem {
        Problem::new("bad-body", "The body cannot be read", 400).detail(detail)
    }

    /// 422: a field that must be there is not.
    pub fn missing_field(field: &'static str, hint: &'static str) -> Problem {
        let mut detail = String::from("The field ");
        detail.push_str(field);
        detail.push_str(" is missing or empty");
        Problem::new("missing-field", "A required field is missing", 422).detail(detail).field(field).hint(hint)
    }

    /// 422: a field is there but its value will not do.
    pub fn invalid_field(field: &'static str, detail: impl Into<Box<str>>, hint: &'static str) -> Problem {
        Problem::new("invalid-field", "A field has an invalid value", 422).detail(detail).field(field).hint(hint)
    }

    /// 401 without any detail.
    pub fn unauthorized() -> Problem {
        Problem::new("unauthorized", "Not authorised", 401)
    }

    /// 403 without any detail.
    pub fn forbidden() -> Problem {
        Problem::new("forbidden", "Not allowed", 403)
    }

    /// 404.
    pub fn not_found(detail: impl Into<Box<str>>) -> Problem {
        Problem::new("not-found", "There is nothing here", 404).detail(detail)
    }

    /// 409: something that is there once is there already.
    pub fn conflict() -> Problem {
        Problem::new("conflict", "It is there already", 409).hint("Look for it instead of adding it again")
    }

    /// 422: an id names something that is not there, or not any more.
    pub fn unknown_reference() -> Problem {
        Problem::new("unknown-reference", "What this refers to is not there", 422)
            .hint("Check the ids: a profile, session or call may have been deleted meanwhile")
    }

    /// 405 with the `Allow` header.
    pub fn method_not_allowed(allow: &'static str) -> Problem {
        let mut problem = Problem::new("method-not-allowed", "This method is not supported here", 405);
        problem.allow = Some(allow);
        problem.hint = Some("Use one of the methods in the Allow header");
        problem
    }

    /// 413 with the limit.
    pub fn too_large(limit_bytes: usize) -> Problem {
        let mut detail = String::from("The body is larger than ");
        detail.push_str(&limit_bytes.to_string());
        detail.push_str(" bytes");
        Problem::new("too-large", "The body is too large", 413).detail(detail).hint("Send fewer items at once")
    }

    /// 503 with `Retry-After`: the sender keeps the message and tries again.
    pub fn unavailable(retry_after_s: u32) -> Problem {
        let mut problem = Problem::new("unavailable", "The service cannot take this right now", 503)
            .detail("Nothing was stored")
            .hint("Send the same request again after the time in Retry-After");
        problem.retry_after_s = Some(u16::try_from(retry_after_s).unwrap_or(u16::MAX));
        problem
    }

    /// The whole `type` address.
    pub fn type_uri(&self) -> String {
        let mut uri = String::from(TYPE_BASE);
        uri.push_str(self.type_slug);
        uri
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        let mut body = Map::new();
        body.insert("type".into(), Value::String(self.type_uri()));
        body.insert("title".into(), Value::from(self.title));
        body.insert("status".into(), Value::from(self.status));
        if !self.detail.is_empty() {
            body.insert("detail".into(), Value::from(&*self.detail));
        }
        if let Some(field) = &self.field {
            body.insert("field".into(), Value::from(*field));
        }
        if let Some(hint) = &self.hint {
            body.insert("hint".into(), Value::from(*hint));
        }
        if let Some(id) = &self.correlation_id {
            body.insert("correlation_id".into(), Value::from(&**id));
        }
        Value::Object(body)
    }

    /// The headers that belong to it, content type first.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![("content-type", CONTENT_TYPE.to_owned())];
        if let Some(allow) = self.allow {
            headers.push(("allow", allow.to_owned()));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.push(("retry-after", seconds.to_string()));
        }
        if self.status == 401 {
            headers.push(("www-authenticate", "Bearer".to_owned()));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_problem_names_the_field_and_what_to_do() {
        let problem = Problem::missing_field("phone_number", "Send it as +250...").correlation_id("c-1");
        assert_eq!(
            problem.to_json(),
            json!({
                "type": "https://ihuza.rw/errors/missing-field", "title": "A required field is missing", "status": 422,
                "detail": "The field phone_number is missing or empty", "field": "phone_number",
                "hint": "Send it as +250...", "correlation_id": "c-1",
            })
        );
    }

    #[test]
    fn bad_credentials_get_no_detail() {
        let problem = Problem::unauthorized();
        let body = problem.to_json();
        assert_eq!((body.get("detail"), body.get("hint"), body.get("field")), (None, None, None));
        assert_eq!(problem.status, 401);
    }

    #[test]
    fn headers_say_what_works_and_when() {
        assert!(Problem::method_not_allowed("GET, POST").headers().contains(&("allow", "GET, POST".to_owned())));
        assert!(Problem::unavailable(30).headers().contains(&("retry-after", "30".to_owned())));
        assert_eq!(Problem::too_large(262_144).headers(), [("content-type", CONTENT_TYPE.to_owned())]);
    }
}
