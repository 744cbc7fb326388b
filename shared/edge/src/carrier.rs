//! How a carrier that signs nothing of its own shows that it is the carrier: three ways, any one will do.

use ihuza_core::{problem::Problem, signature};

use crate::{endpoint::Call, host};

/// Whether a carrier's endpoint has such a path: its own, or `mtn/<secret>`.
pub fn is_path(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with("mtn/")
}

const SECRETS: &[&str] = &["MTN_WEBHOOK_SECRET", "MTN_WEBHOOK_SECRET_PREVIOUS"];

/// Why a request was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It showed one of the secrets.
    Secret,
    /// None at all: it passes because unsigned requests were let in.
    Nothing,
}

/// `X-Signature: sha256=<hex>` over `{X-Timestamp}.{body}` within 300 s; or the secret as bearer token; or as last part of
/// the path, `/mtn/<secret>`, for senders that can set no header. `unsigned` lets others pass as well.
pub fn authenticate(call: &Call, body: &[u8], unsigned: bool) -> Result<Proof, Problem> {
    let config = &call.cx.config;
    let secrets = config.secrets(SECRETS);
    let token = call.rest.strip_prefix("mtn/");
    if let Some(given) = call.request.header("x-signature") {
        let timestamp = call.request.header("x-timestamp");
        let good = signature::timestamped(Some(given), timestamp, body, &secrets, host::now());
        return if good { Ok(Proof::Secret) } else { Err(Problem::unauthorized()) };
    }
    let known = token.is_some_and(|token| signature::equals_any(token, &secrets))
        || signature::bearer(call.request.header("authorization"), &secrets);
    match (known, unsigned) {
        (true, _) => Ok(Proof::Secret),
        (false, true) => Ok(Proof::Nothing),
        (false, false) => Err(Problem::unauthorized()),
    }
}
