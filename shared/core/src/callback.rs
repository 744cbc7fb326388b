//! A callback of a carrier that sends names and values: a form, or the same as a JSON object.

use serde_json::Value;

use crate::{form, json, problem::Problem};

/// Most parameters read from one body; no carrier sends half as many.
const MAX_PARAMETERS: usize = 256;

/// Whether a body of this content type is JSON; everything else is read as a form.
pub fn is_json(content_type: Option<&str>) -> bool {
    content_type.is_some_and(|kind| kind.to_ascii_lowercase().contains("json"))
}

/// The parameters of a body. Of JSON the scalars; what is nested is no parameter.
pub fn parameters(content_type: Option<&str>, body: &[u8]) -> Result<Vec<(String, String)>, Problem> {
    if is_json(content_type) {
        let Value::Object(fields) = json::foreign_object(body)? else {
            return Ok(Vec::new());
        };
        let scalars = fields.into_iter().take(MAX_PARAMETERS);
        return Ok(scalars.filter_map(|(name, value)| Some((name, json::as_text(&value)?))).collect());
    }
    Ok(form::parse(&String::from_utf8_lossy(body)))
}

/// The first of several parameters that is not blank, without NUL, cut to `max` characters.
pub fn first(parameters: &[(String, String)], names: &[&str], max: usize) -> Option<String> {
    let found = names.iter().filter_map(|name| form::value(parameters, name)).map(json::without_nul);
    let mut found = found.map(|text| json::clip(text.trim(), max).to_owned());
    found.find(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_form_and_its_json_hold_the_same() {
        let form =
            parameters(Some("application/x-www-form-urlencoded"), b"MessageSid=SM1&ErrorCode=30003&Empty=").unwrap();
        let json = parameters(
            Some("application/json; charset=utf-8"),
            br#"{"MessageSid":"SM1","ErrorCode":30003,"Empty":null,"Nested":{"MessageSid":"SM2"}}"#,
        )
        .unwrap();
        for all in [form, json] {
            assert_eq!(first(&all, &["SmsSid", "MessageSid"], 64).as_deref(), Some("SM1"));
            assert_eq!(first(&all, &["ErrorCode"], 3).as_deref(), Some("300"));
            assert_eq!(first(&all, &["Empty", "Nested"], 64), None);
        }
        assert!(parameters(Some("application/json"), b"MessageSid=SM1").is_err());
    }

    proptest! {
        #[test]
        fn no_body_panics_and_none_gives_more_than_the_bound(body: Vec<u8>, json: bool, times in 0_usize..600) {
            let kind = json.then_some("application/json");
            for body in [body, b"a=b&".repeat(times)] {
                let found = parameters(kind, &body).unwrap_or_default();
                prop_assert!(found.len() <= MAX_PARAMETERS);
                let cut = first(&found, &["a"], 1);
                prop_assert!(cut.is_none_or(|text| text.len() == 1 && text != "\0"));
            }
        }
    }
}
