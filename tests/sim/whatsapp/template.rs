//! Approved templates, and whether a call of one fits it.

use serde_json::{Map, Value};

use super::judge::{Verdict, units};

const MAX_HYDRATED: usize = 1024;

/// A template with named parameters, `{{name}}` in its body.
#[derive(Clone, Debug)]
pub struct Template {
    pub name: String,
    /// Each is an approval of its own.
    pub languages: Vec<String>,
    pub body: String,
    /// How many quick reply buttons it has.
    pub buttons: usize,
}

impl Template {
    /// The summary of a call, as `docs` ask operators to create it.
    pub fn call_summary() -> Self {
        Self {
            name: "call_summary_v1".to_owned(),
            languages: ["en", "fr", "rw_RW", "sw"].map(str::to_owned).to_vec(),
            body: "Hello, here is the summary of your call with EasyMO about {{topic}}. Next step: {{next_step}}. \
                   Thank you for calling."
                .to_owned(),
            buttons: 1,
        }
    }

    fn parameters(&self) -> Vec<&str> {
        let pieces = self.body.split("{{").skip(1);
        pieces.filter_map(|piece| piece.split_once("}}")).map(|(name, _)| name).collect()
    }
}

/// A request to send a template.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    pub language: String,
    /// Name, if it was given one, and value.
    parameters: Vec<(Option<String>, String)>,
    buttons: Vec<usize>,
}

impl Call {
    pub fn parse(content: &Map<String, Value>) -> Verdict<Self> {
        let missing = |what: &str| (131_008, format!("The parameter {what} is required."));
        let name = content.get("name").and_then(Value::as_str);
        let language = content.get("language").and_then(|language| language.get("code"));
        let mut call = Self {
            name: name.ok_or_else(|| missing("template.name"))?.to_owned(),
            language: language.and_then(Value::as_str).ok_or_else(|| missing("template.language.code"))?.to_owned(),
            parameters: Vec::new(),
            buttons: Vec::new(),
        };
        let components = content.get("components").and_then(Value::as_array).cloned().unwrap_or_default();
        for component in components {
            let parameters = component.get("parameters").and_then(Value::as_array).cloned().unwrap_or_default();
            match component.get("type").and_then(Value::as_str) {
                Some("body") => {
                    for parameter in parameters {
                        call.parameters.push(body_parameter(&parameter)?);
                    }
                }
                Some("button") => {
                    let index = component.get("index").and_then(index);
                    call.buttons.push(index.ok_or_else(|| missing("button index"))?);
                }
                _ => return Err((100, "component type must be body or button".to_owned())),
            }
        }
        Ok(call)
    }
}

/// Meta takes it as text and as number.
fn index(value: &Value) -> Option<usize> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64().and_then(|number| usize::try_from(number).ok()),
    }
}

fn body_parameter(parameter: &Value) -> Verdict<(Option<String>, String)> {
    if parameter.get("type").and_then(Value::as_str) != Some("text") {
        return Err((132_012, "body parameters must be of type text".to_owned()));
    }
    let text = parameter.get("text").and_then(Value::as_str).unwrap_or_default();
    if text.is_empty() {
        return Err((131_008, "Parameter of type text is missing text value".to_owned()));
    }
    if text.contains(['\n', '\r', '\t']) || text.contains("     ") {
        let why = "Param text cannot have new-line/tab characters or more than 4 consecutive spaces";
        return Err((132_018, why.to_owned()));
    }
    let name = parameter.get("parameter_name").and_then(Value::as_str).map(str::to_owned);
    Ok((name, text.to_owned()))
}

/// The template as the person reads it.
pub fn fill(templates: &[Template], call: &Call) -> Verdict<String> {
    let template =
        templates.iter().find(|template| template.name == call.name && template.languages.contains(&call.language));
    let template = template.ok_or_else(|| {
        let why = format!("template name ({}) does not exist in {}", call.name, call.language);
        (132_001, why)
    })?;
    let wanted = template.parameters();
    if wanted.len() != call.parameters.len() {
        let why = format!("body: number of parameters is {}, expected {}", call.parameters.len(), wanted.len());
        return Err((132_000, why));
    }
    if let Some(index) = call.buttons.iter().find(|index| **index >= template.buttons) {
        return Err((132_000, format!("there is no button {index}")));
    }
    let mut shown = template.body.clone();
    for name in wanted {
        let value = call.parameters.iter().find(|(given, _)| given.as_deref() == Some(name));
        let (_, value) = value.ok_or_else(|| (132_012, format!("parameter {name} is missing or not named")))?;
        shown = shown.replace(&format!("{{{{{name}}}}}"), value);
    }
    if units(&shown) > MAX_HYDRATED {
        return Err((132_005, "Template hydrated text is too long".to_owned()));
    }
    Ok(shown)
}
