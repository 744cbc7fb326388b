//! Africa's Talking's delivery reports. It signs nothing: the last part of the address is the proof.

use ihuza_core::{africas_talking, callback, problem::Problem, signature};
use ihuza_edge::{
    endpoint::{Call, Outcome},
    host,
};

pub const PATH: &str = "africastalking/";

pub fn report(call: Call) -> Result<Outcome, Problem> {
    let secrets = call.cx.config.secrets(&["AFRICASTALKING_WEBHOOK_SECRET", "AFRICASTALKING_WEBHOOK_SECRET_PREVIOUS"]);
    let known = call.rest.strip_prefix(PATH).is_some_and(|token| signature::equals_any(token, &secrets));
    if !known {
        return Err(Problem::unauthorized());
    }
    let parameters = callback::parameters(call.request.header("content-type"), call.request.body()?)?;
    let report = africas_talking::parse_report(&parameters, host::now())?;
    Ok(crate::accept_one(call, report))
}
