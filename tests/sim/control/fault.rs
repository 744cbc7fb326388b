//! The ways to fail, and their names over HTTP.

use std::fmt;
use std::str::FromStr;

/// A way to fail. "Accepted" means that the work was done: the message goes out, the transaction is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused: 401, as with a wrong or expired token.
    Status401,
    /// Refused: 429 without a `Retry-After`.
    Status429,
    /// Refused: 429 with `Retry-After` (`delay_ms`, rounded up to seconds, else 1 s).
    Status429RetryAfter,
    /// 500, and not accepted.
    Status500Before,
    /// Accepted, then 500.
    Status500After,
    /// Refused: 503 with `Retry-After: 1`.
    Status503,
    /// 504 from the gateway, not accepted.
    Status504,
    /// Silence, and not accepted.
    TimeoutBefore,
    /// Accepted, then silence.
    TimeoutAfter,
    /// The connection ends without an answer; not accepted.
    CutBefore,
    /// Accepted, then the connection ends without an answer.
    CutAfter,
    /// Accepted; half the answer, then the connection ends.
    Truncated,
    /// Accepted; the answer is a web page.
    NonJson,
    /// Accepted; each report comes twice. At the gateway: the request is carried out twice.
    Duplicate,
    /// Accepted; the reports come in reverse order.
    Reorder,
    /// Accepted; the first report comes before the answer.
    EarlyReport,
    /// Accepted; no report ever comes.
    NoReport,
    /// Accepted; the report says that the message could not be delivered.
    FailedReport,
    /// Accepted, after `delay_ms` (else 2 s).
    Slow,
    /// PostgREST without its schema cache: 503, code PGRST002.
    Pgrst002,
    /// Refused with this code of the vendor, in the vendor's form. WhatsApp: an error code; MTN: a `statusCode`.
    Code(i64),
    /// Accepted; the report carries this code of the vendor.
    LateCode(i64),
}

impl Fault {
    /// Whether the work is done nevertheless.
    pub fn accepted(self) -> bool {
        use Fault::*;
        match self {
            Status401 | Status429 | Status429RetryAfter | Status500Before | Status503 | Status504 | TimeoutBefore
            | CutBefore | Pgrst002 | Code(_) => false,
            Status500After | TimeoutAfter | CutAfter | Truncated | NonJson | Duplicate | Reorder | EarlyReport
            | NoReport | FailedReport | Slow | LateCode(_) => true,
        }
    }
}

pub(super) const NAMES: [(Fault, &str); 20] = [
    (Fault::Status401, "status_401"),
    (Fault::Status429, "status_429"),
    (Fault::Status429RetryAfter, "status_429_retry_after"),
    (Fault::Status500Before, "status_500_before"),
    (Fault::Status500After, "status_500_after"),
    (Fault::Status503, "status_503"),
    (Fault::Status504, "status_504"),
    (Fault::TimeoutBefore, "timeout_before"),
    (Fault::TimeoutAfter, "timeout_after"),
    (Fault::CutBefore, "cut_before"),
    (Fault::CutAfter, "cut_after"),
    (Fault::Truncated, "truncated"),
    (Fault::NonJson, "non_json"),
    (Fault::Duplicate, "duplicate"),
    (Fault::Reorder, "reorder"),
    (Fault::EarlyReport, "early_report"),
    (Fault::NoReport, "no_report"),
    (Fault::FailedReport, "failed_report"),
    (Fault::Slow, "slow"),
    (Fault::Pgrst002, "pgrst002"),
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code_{code}"),
            Self::LateCode(code) => write!(f, "late_code_{code}"),
            other => {
                let name = NAMES.iter().find(|(fault, _)| fault == other).map_or("unknown", |(_, name)| name);
                f.write_str(name)
            }
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some((fault, _)) = NAMES.iter().find(|(_, name)| *name == text) {
            return Ok(*fault);
        }
        let number = |prefix: &str| text.strip_prefix(prefix).and_then(|code| code.parse().ok());
        if let Some(code) = number("late_code_") {
            return Ok(Self::LateCode(code));
        }
        if let Some(code) = number("code_") {
            return Ok(Self::Code(code));
        }
        let known: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
        Err(format!("unknown kind {text:?}: one of {}, code_<n>, late_code_<n>", known.join(", ")))
    }
}
