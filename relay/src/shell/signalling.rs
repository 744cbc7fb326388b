//! What the rest of the relay knows of SIP: a call that came, what may be done with it, and what happens to it. Which
//! stack does it is nobody's business but `sip_stack`'s.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::sip::admission::Refusal;
use ihuza_core::phone::E164;

use crate::config::PeerAddress;

/// Something that takes its time.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A new INVITE, as far as its admission needs it.
#[derive(Debug, Default)]
pub struct Invite {
    /// From where it came, by the socket and not by what it says.
    pub source: Option<IpAddr>,
    /// Scheme of the request address.
    pub scheme: String,
    /// Its user part.
    pub called: String,
    /// Who calls, as the trunk writes it: `P-Asserted-Identity`, else `From`.
    pub caller: String,
    /// `Call-ID`.
    pub call_id: String,
    /// Tag of `From`.
    pub from_tag: String,
    /// `CSeq`.
    pub cseq: String,
    /// Branch of the topmost `Via`.
    pub branch: String,
    /// `Max-Forwards`.
    pub max_forwards: Option<u32>,
    /// Option tags of `Require`.
    pub required: Vec<String>,
    /// Option tags of `Supported`.
    pub supported: Vec<String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `User-Agent`.
    pub user_agent: Option<String>,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// `Session-Expires`.
    pub session_expires: Option<String>,
    /// The body; empty for a delayed offer.
    pub offer: Vec<u8>,
}

/// A final answer that is no call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its status.
    pub status: u16,
    /// Headers besides the usual ones.
    pub headers: Vec<(&'static str, String)>,
}

/// What happens to a call.
#[derive(Debug)]
pub enum Signal {
    /// The ACK to a 200 of ours, with the answer if the offer was ours.
    Acknowledged(Vec<u8>),
    /// No ACK came; the stack has sent a BYE.
    NotAcknowledged,
    /// CANCEL before our 200.
    Cancelled,
    /// BYE.
    HungUp,
    /// Our INVITE is answered with 180 or 183, with a description of early media if there is one.
    Ringing(Vec<u8>),
    /// Our INVITE is answered with 200, which the stack acknowledges.
    PickedUp {
        /// The answer to our offer; empty if it came with the ringing.
        answer: Vec<u8>,
        /// `Session-Expires`.
        session_expires: Option<String>,
    },
    /// Our INVITE is refused with this status, or went nowhere.
    Refused(Option<u16>),
    /// The other side is gone without a word.
    Lost,
    /// A new offer, or a refresh without one. To be answered.
    Reoffer {
        /// The offer; empty if there is none.
        offer: Vec<u8>,
        /// There is none, and the answer must bring one: the peer's answer to it comes with `Acknowledged`.
        wants_offer: bool,
        /// `Session-Expires`.
        session_expires: Option<String>,
        /// Whether the peer supports timers.
        supports_timer: bool,
        /// Takes the answer.
        answer: oneshot::Sender<Result<Accepted, Refused>>,
    },
    /// What became of a REFER of ours: the body of a NOTIFY.
    TransferTold(String),
    /// The body of an INFO request.
    Info(String),
}

/// What a request that opens or changes a session is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accepted {
    /// Our description; none if nothing was offered and nothing changes.
    pub description: Option<String>,
    /// Value of `Session-Expires`.
    pub session_expires: Option<String>,
    /// Whether the peer must support timers.
    pub require_timer: bool,
}

/// Our side of one dialog.
pub trait Dialog: Send + Sync {
    /// 180.
    fn ring(&self);
    /// 200.
    fn accept(&self, accepted: &Accepted);
    /// A final refusal before any 200.
    fn reject(&self, status: u16);
    /// CANCEL of an INVITE of ours, and BYE if it was answered meanwhile.
    fn cancel(&self) -> Later<'_, ()>;
    /// BYE, with a cause of Q.850.
    fn hang_up(&self, q850: u8) -> Later<'_, ()>;
    /// REFER to a number; the status that it is answered with, if any.
    fn refer(&self, number: String) -> Later<'_, Option<u16>>;
    /// A refresh of the session timer; whether it went through.
    fn refresh(&self, session_expires: String) -> Later<'_, bool>;
}

/// A call that was let in, or is being placed, and what happens to it.
pub struct Incoming {
    /// What can be done with it.
    pub dialog: Arc<dyn Dialog>,
    /// What happens to it.
    pub signals: mpsc::Receiver<Signal>,
}

/// Decides on new calls and on OPTIONS. Must not wait: it stands in the way of all other messages.
pub trait Reception: Send + Sync + 'static {
    /// Whether packets from an address are read at all.
    fn knows(&self, source: IpAddr) -> bool;
    /// A message was answered, or dropped if there was nobody to answer, before anybody looked at what it wants.
    fn unfit(&self, source: IpAddr, refusal: Refusal, fault: &'static str);
    /// Judges a call: none drops it without a word.
    fn judge(&self, invite: &Invite) -> Result<(), Option<Refused>>;
    /// A call that was let in begins.
    fn begin(&self, invite: Invite, incoming: Incoming);
    /// What OPTIONS of this address is answered with: nothing if calls are welcome.
    fn unavailable(&self, source: Option<IpAddr>) -> Option<Refused>;
}

/// What the relay begins by itself.
pub trait Signalling: Send + Sync {
    /// OPTIONS; the status that it is answered with, if any.
    fn ping(&self, peer: &PeerAddress) -> Later<'static, Option<u16>>;
    /// INVITE. It may be refused before this returns: the signals tell.
    fn call(&self, outgoing: Outgoing) -> Incoming;
}

/// A call that is to be placed.
#[derive(Clone)]
pub struct Outgoing {
    /// Where the trunk takes requests.
    pub peer: PeerAddress,
    /// Our number.
    pub from: E164,
    /// Whom to call.
    pub to: E164,
    /// `Call-ID`.
    pub call_id: String,
    /// Our description.
    pub offer: String,
    /// User name and password, should the trunk ask (401, 407).
    pub credentials: Option<(String, String)>,
}
