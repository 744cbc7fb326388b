//! Twilio's status callbacks: form-encoded, or JSON whose digest the address carries; signed either way.

use ihuza_core::{callback, problem::Problem, signature, twilio};
use ihuza_edge::{
    endpoint::{Call, Outcome},
    host,
};

pub const PATH: &str = "twilio";

pub const SIGNATURE: &str = "x-twilio-signature";

pub fn report(call: Call) -> Result<Outcome, Problem> {
    let body = call.request.body()?;
    let content_type = call.request.header("content-type");
    let signature = call.request.header(SIGNATURE);
    let tokens = call.cx.config.secrets(&["TWILIO_AUTH_TOKEN", "TWILIO_AUTH_TOKEN_PREVIOUS"]);
    let query = call.request.query.as_str();
    let base = call.cx.config.text("TWILIO_STATUS_CALLBACK_URL");
    let url = [base, if query.is_empty() { "" } else { "?" }, query].concat();
    // What is signed of a form is its parameters: it has to be read before it can be believed.
    let parameters = callback::parameters(content_type, body);
    let ours = match &parameters {
        _ if base.is_empty() => false,
        _ if callback::is_json(content_type) => signature::twilio_json(signature, &url, body, &tokens),
        Ok(parameters) => signature::twilio(signature, &url, parameters, &tokens),
        Err(_) => false,
    };
    if !ours {
        return Err(Problem::unauthorized());
    }
    let report = twilio::parse_status(&parameters?, query, host::now())?;
    Ok(crate::accept_one(call, report))
}
