//! What a provider answered to a message: accepted under an id, or refused with a class.

use crate::channel::Provider;
use crate::error_class::{Classified, TransportFailure, classify, classify_transport};

/// The provider took the message. It has not arrived yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accepted {
    /// The id under which later reports speak of it.
    pub provider_message_id: Option<String>,
    /// The provider's id of the request, for talks with its support.
    pub provider_request_id: Option<String>,
    /// WhatsApp: the recipient's id without `+`.
    pub wa_id: Option<String>,
    /// WhatsApp: the recipient's business-scoped id.
    pub user_id: Option<String>,
}

/// The provider did not take the message, or nobody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status, if there was an answer.
    pub http_status: Option<u16>,
    /// The vendor's code, as text.
    pub error_code: Option<String>,
    /// The provider's id of the request.
    pub provider_request_id: Option<String>,
    /// What it means.
    pub classified: Classified,
}

/// What came of sending.
pub type Outcome = Result<Accepted, Refused>;

impl Refused {
    /// For an answer with an error.
    pub fn answered(provider: Provider, http_status: u16, error_code: Option<String>) -> Refused {
        Refused {
            http_status: Some(http_status),
            classified: classify(provider, Some(http_status), error_code.as_deref()),
            error_code,
            provider_request_id: None,
        }
    }

    /// For no answer.
    pub fn transport(provider: Provider, failure: TransportFailure) -> Refused {
        Refused {
            http_status: None,
            error_code: None,
            provider_request_id: None,
            classified: classify_transport(provider, failure),
        }
    }

    /// For an answer that cannot be read: an error by its status, a success of which nothing is known.
    pub fn unreadable(provider: Provider, http_status: u16) -> Refused {
        if (200..300).contains(&http_status) {
            let classified = classify_transport(provider, TransportFailure::BadBody);
            return Refused { http_status: Some(http_status), error_code: None, provider_request_id: None, classified };
        }
        Refused::answered(provider, http_status, None)
    }
}
