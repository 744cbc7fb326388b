//! The WhatsApp Cloud API at the wire. Bodies and answers are in `ihuza_core::whatsapp`.

use ihuza_core::{
    channel::Provider,
    json_text::to_text,
    send::Refused,
    whatsapp::{self, Recipient},
};
use serde_json::Value;

use crate::{
    context::Cx,
    delivery::{Handed, Message, Refusal},
    outgoing,
};

/// Hands `message` to the Cloud API.
pub async fn send(cx: &Cx, message: &Message) -> Handed {
    // Code 131009 is Meta's own for a parameter that cannot be: a bug of ours, never sent again.
    let unusable = || Refusal::of(Refused::answered(Provider::Whatsapp, 400, Some("131009".to_owned())));
    let recipient = Recipient::parse(&message.recipient).ok_or_else(unusable)?;
    let body = to_text(&body(&recipient, &message.payload, &message.id).ok_or_else(unusable)?);
    let url = format!(
        "{}{}",
        cx.config.text("WHATSAPP_BASE_URL").trim_end_matches('/'),
        whatsapp::messages_path(cx.config.text("GRAPH_API_VERSION"), cx.config.text("WHATSAPP_PHONE_NUMBER_ID")),
    );
    let bearer = format!("Bearer {}", cx.config.text("WHATSAPP_ACCESS_TOKEN"));
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let answer = outgoing::send(
        Some(cx.slots()),
        &url,
        &outgoing::headers(&headers),
        &body,
        cx.config.number("PROVIDER_TIMEOUT_MS"),
    )
    .await
    .map_err(|failure| Refusal::of(Refused::transport(Provider::Whatsapp, failure)))?;
    whatsapp::parse_send_response(answer.status, answer.body.as_bytes())
        .map_err(|refused| Refusal { refused, retry_after: answer.retry_after() })
}

/// The request of a stored payload: `{kind: "text", text}` or `{kind: "template", name, language, params: [{name, text}]}`.
fn body(recipient: &Recipient, payload: &Value, delivery_ref: &str) -> Option<Value> {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    match payload.get("kind").and_then(Value::as_str)? {
        "text" => Some(whatsapp::text_message(recipient, &text(payload, "text")?, delivery_ref)),
        "template" => {
            let params = payload.get("params").and_then(Value::as_array)?;
            let params: Vec<(String, String)> =
                params.iter().filter_map(|param| Some((text(param, "name")?, text(param, "text")?))).collect();
            Some(whatsapp::template_message(
                recipient,
                &text(payload, "name")?,
                &text(payload, "language")?,
                &params,
                delivery_ref,
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stored_payload_becomes_the_request_again() {
        let number = Recipient::parse("+250788123456").unwrap();
        let template = json!({ "kind": "template", "name": "call_summary_v1", "language": "rw_RW", "params": [{ "name": "topic", "text": "Inzu" }] });
        let request = body(&number, &template, "d-1").unwrap();
        assert_eq!(request["template"]["language"]["code"], "rw_RW");
        assert_eq!(request["template"]["components"][0]["parameters"][0]["parameter_name"], "topic");
        assert_eq!(
            body(&number, &json!({ "kind": "text", "text": "Muraho" }), "d-1").unwrap()["text"]["body"],
            "Muraho"
        );
        assert_eq!(body(&number, &json!({ "text": "no kind" }), "d-1"), None);
    }
}
