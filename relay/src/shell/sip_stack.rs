//! `signalling` on rsipstack: the only file that knows it.
//!
//! What the stack leaves to us is done here: the state of every refused transaction is drained, every in-dialog request
//! is answered, and a dialog that is over is taken out of its table.

mod socket;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rsipstack::EndpointBuilder;
use rsipstack::dialog::DialogId;
use rsipstack::dialog::authenticate::Credential;
use rsipstack::dialog::dialog::{
    Dialog as AnyDialog, DialogState, DialogStateReceiver, TerminatedReason, TransactionHandle,
};
use rsipstack::dialog::dialog_layer::DialogLayer;
use rsipstack::dialog::invitation::InviteOption;
use rsipstack::dialog::invite_dialog::InviteDialog;
use rsipstack::sip::{
    HasHeaders, Header, HeadersExt, Method, Request, Response, SipMessage, StatusCode, Uri, Version, typed,
};
use rsipstack::transaction::endpoint::MessageInspector;
use rsipstack::transaction::key::{TransactionKey, TransactionRole};
use rsipstack::transaction::make_tag;
use rsipstack::transaction::transaction::Transaction;
use rsipstack::transport::tls::{TlsConfig, TlsListenerConnection};
use rsipstack::transport::udp::UdpConnection;
use rsipstack::transport::{SipAddr, TcpListenerConnection, TransportLayer};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::signalling::{Accepted, Dialog, Incoming, Invite, Later, Outgoing, Reception, Refused, Signal, Signalling};
use crate::config::{PeerAddress, Sip, Transport};
use crate::sip::digest;
use crate::sip::precheck::{Verdict, settle};

/// What may be waiting for one call; more is a peer that floods its own call.
const MOST_SIGNALS: usize = 32;
/// An ACK is looked for so often, and for as long as a 200 is repeated (64*T1).
const LOOK_EVERY: Duration = Duration::from_millis(50);
const MOST_LOOKS: u32 = 640;
const ALLOW: [Method; 8] = [
    Method::Invite,
    Method::Ack,
    Method::Bye,
    Method::Cancel,
    Method::Options,
    Method::Update,
    Method::Info,
    Method::Notify,
];
/// Carries the address of the socket a message came from through the stack; what a peer writes there is taken off.
const SOURCE: &str = "X-Ihuza-Source";

/// Why SIP cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// An address cannot be listened on.
    #[error("cannot listen for SIP on {0}: {1}")]
    Listen(SocketAddr, String),
    /// A file of the TLS settings cannot be read.
    #[error("cannot read {0}: {1}")]
    File(String, std::io::Error),
    /// The stack itself does not start.
    #[error("SIP does not start: {0}")]
    Start(String),
}

/// Listens and serves until `stop`, by which time what it gives is gone.
pub async fn serve(
    settings: &Sip,
    reception: Arc<dyn Reception>,
    stop: CancellationToken,
) -> Result<Weak<dyn Signalling>, StackError> {
    let streams: Vec<SocketAddr> =
        settings.tcp.into_iter().chain(settings.tls.as_ref().map(|tls| tls.listen)).collect();
    for listen in &streams {
        claim(*listen).map_err(|error| StackError::Listen(*listen, error.to_string()))?;
    }
    let transport = TransportLayer::new(stop.clone());
    let external = |listen: SocketAddr| settings.advertised.map(|ip| SocketAddr::new(ip, listen.port()));
    if let Some(listen) = settings.udp {
        let socket = socket::Checked::bind(listen, reception.clone()).await;
        let socket = socket.map_err(|error| StackError::Listen(listen, error.to_string()))?;
        let udp = UdpConnection::from_socket(Arc::new(socket), external(listen), Some(stop.clone())).await;
        transport.add_transport(udp.map_err(|error| StackError::Listen(listen, error.to_string()))?.into());
    }
    if let Some(listen) = settings.tcp {
        let tcp = TcpListenerConnection::new(listen, external(listen)).await;
        transport.add_transport(tcp.map_err(|error| StackError::Listen(listen, error.to_string()))?.into());
    }
    if let Some(tls) = &settings.tls {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| StackError::File(path.display().to_string(), error))
        };
        let files =
            TlsConfig { cert: Some(read(&tls.certificate)?), key: Some(read(&tls.key)?), ..TlsConfig::default() };
        let listener = TlsListenerConnection::new(tls.listen, external(tls.listen), files).await;
        transport.add_transport(listener.map_err(|error| StackError::Listen(tls.listen, error.to_string()))?.into());
    }
    let guard = reception.clone();
    transport.set_whitelist(move |source: IpAddr| {
        let known = guard.knows(source);
        async move { known }
    });
    let endpoint = EndpointBuilder::new()
        .with_cancel_token(stop.clone())
        .with_user_agent("ihuza-relay")
        .with_transport_layer(transport)
        .with_allows(ALLOW.to_vec())
        .with_inspector(Box::new(Marker))
        .build();
    let mut incoming = endpoint.incoming_transactions().map_err(|error| StackError::Start(error.to_string()))?;
    let served = endpoint.inner.clone();
    let stack = Arc::new(Stack { layer: Arc::new(DialogLayer::new(endpoint.inner.clone())), reception });
    let as_signalling: Arc<dyn Signalling> = stack.clone();
    let signalling = Arc::downgrade(&as_signalling);
    tokio::spawn(async move { served.serve().await });
    tokio::spawn(async move {
        while let Some(transaction) = incoming.recv().await {
            stack.transaction(transaction);
        }
        drop(endpoint);
    });
    for listen in streams {
        until_taken(listen).await?;
    }
    Ok(signalling)
}

/// Whether nobody listens there. rsipstack 0.7.14 opens its streams later, in a task that keeps quiet about failures.
fn claim(listen: SocketAddr) -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
    // With it the stack may open the same address meanwhile, and without a listener nobody is disturbed.
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())
}

/// Waits until the stack listens.
async fn until_taken(listen: SocketAddr) -> Result<(), StackError> {
    for _ in 0..200 {
        if claim(listen).is_err() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(StackError::Listen(listen, "the stack does not open it".into()))
}

async fn within(mut dialog: AnyDialog, mut transaction: Transaction) {
    if !matches!(transaction.original.method, Method::Ack | Method::Cancel | Method::PRack) {
        let is_bye = transaction.original.method == Method::Bye;
        until_confirmed(&dialog, is_bye).await;
    }
    let _ = dialog.handle(&mut transaction).await;
}

/// A request of a dialog that nobody knows, yet: rsipstack 0.7.14 acknowledges the 200 to our INVITE before it notes the
/// dialog under the peer's tag, and a BYE right behind the 200 may come in between. Refused with 481, the peer would have
/// hung up while we go on talking.
async fn within_a_late_dialog(layer: Arc<DialogLayer>, transaction: Transaction) {
    let named = DialogId::try_from((&transaction.original, TransactionRole::Server));
    for _ in 0..200 {
        let is_begun = named.as_ref().is_ok_and(|id| {
            let begun = DialogId { remote_tag: String::new(), ..id.clone() };
            layer.get_dialog(&begun).is_some()
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        if let Some(dialog) = layer.match_dialog(&transaction) {
            return within(dialog, transaction).await;
        }
        if !is_begun {
            break;
        }
    }
    refuse(transaction, 481, Vec::new());
}

/// Waits until a dialog takes requests: rsipstack 0.7.14 drops, without an answer, what comes while the ACK or the request
/// before it is still being worked on. On a stream nobody would send it again.
async fn until_confirmed(dialog: &AnyDialog, is_bye: bool) {
    for _ in 0..200 {
        let state = dialog.state();
        // A BYE may come before the ACK.
        if state.is_confirmed() || state.is_terminated() || is_bye && state.waiting_ack() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Notes where a message came from, and puts digests as the stack and the trunks understand them.
struct Marker;

impl MessageInspector for Marker {
    fn before_send(&self, mut message: SipMessage, _: Option<&SipAddr>) -> SipMessage {
        if let SipMessage::Request(request) = &mut message {
            for header in request.headers.iter_mut() {
                match header {
                    Header::Authorization(given) => *given = digest::standard_credentials(given.value()).into(),
                    Header::ProxyAuthorization(given) => *given = digest::standard_credentials(given.value()).into(),
                    _ => {}
                }
            }
        }
        message
    }

    fn after_received(&self, message: SipMessage, from: Option<&SipAddr>) -> SipMessage {
        match message {
            SipMessage::Request(mut request) => {
                request.headers.retain(|header| !header.name().eq_ignore_ascii_case(SOURCE));
                if let Some(from) = from.and_then(|from| from.get_socketaddr().ok()) {
                    request.headers.push(Header::Other(SOURCE.into(), from.ip().to_string()));
                }
                SipMessage::Request(request)
            }
            SipMessage::Response(mut response) => {
                if [401, 407].contains(&response.status_code.code()) {
                    for name in ["WWW-Authenticate", "Proxy-Authenticate"] {
                        put_challenge(&mut response, name);
                    }
                }
                SipMessage::Response(response)
            }
        }
    }
}

/// Leaves one challenge of that name, the best; none if none can be answered.
fn put_challenge(response: &mut Response, name: &'static str) {
    let is_one = |header: &Header| header.name().eq_ignore_ascii_case(name);
    let values: Vec<&str> = response.headers.iter().filter(|header| is_one(header)).map(Header::value).collect();
    let best = digest::readable_challenge(&values);
    response.headers.retain(|header| !is_one(header));
    response.headers.extend(best.map(|best| rsipstack::sip::headers::make_header(name, best)).into_iter().collect());
}

struct Stack {
    layer: Arc<DialogLayer>,
    reception: Arc<dyn Reception>,
}

impl Stack {
    fn transaction(&self, mut transaction: Transaction) {
        if let Some(dialog) = self.layer.match_dialog(&transaction) {
            tokio::spawn(within(dialog, transaction));
            return;
        }
        if let Some((status, headers)) = self.unfit(&mut transaction) {
            return refuse(transaction, status, headers);
        }
        match transaction.original.method {
            Method::Ack => {}
            Method::Invite if !has_to_tag(&transaction.original) => self.invite(transaction),
            Method::Options => match self.reception.unavailable(source_of(&transaction.original)) {
                None => {
                    let accept = Header::Accept("application/sdp".into());
                    refuse(transaction, 200, vec![accept, allow(), Header::Supported("timer".into())]);
                }
                Some(refused) => refuse(transaction, refused.status, headers_of(refused)),
            },
            Method::Invite
            | Method::Bye
            | Method::Cancel
            | Method::Update
            | Method::Info
            | Method::PRack
            | Method::Refer
            | Method::Notify => {
                tokio::spawn(within_a_late_dialog(self.layer.clone(), transaction));
            }
            _ => refuse(transaction, 405, vec![allow()]),
        }
    }

    /// What a request over a stream is refused with before anybody looks at what it wants: datagrams were looked at by
    /// their socket, streams are cut into messages by the stack.
    fn unfit(&self, transaction: &mut Transaction) -> Option<(u16, Vec<Header>)> {
        if !transaction.connection.as_ref()?.is_reliable() {
            return None;
        }
        let source = transaction.original.header_value(SOURCE)?.parse().ok()?;
        let bytes = transaction.original.to_bytes();
        let Verdict::Refuse { refusal, fault, header, .. } = settle(&bytes, SocketAddr::new(source, 0), usize::MAX)
        else {
            return None;
        };
        self.reception.unfit(source, refusal, fault);
        // The answer has the version of the request.
        transaction.original.version = Version::V2;
        let headers = header.into_iter().map(|(name, value)| rsipstack::sip::headers::make_header(name, value));
        Some((refusal.status()?, headers.collect()))
    }

    fn invite(&self, transaction: Transaction) {
        let Some(invite) = read(&transaction.original) else { return refuse(transaction, 400, Vec::new()) };
        match self.reception.judge(&invite) {
            Err(Some(refused)) => return refuse(transaction, refused.status, headers_of(refused)),
            Err(None) => return,
            Ok(()) => {}
        }
        let (states, changes) = self.layer.new_dialog_state_channel();
        // Headers are read lazily: what is broken shows here.
        let dialog =
            match self.layer.get_or_create_server_invite(&transaction, states, None, self.contact(&transaction)) {
                Ok(dialog) => dialog,
                Err(_) => return refuse(transaction, 400, Vec::new()),
            };
        let (sender, signals) = mpsc::channel(MOST_SIGNALS);
        let (mut handled, mut transaction) = (dialog.clone(), transaction);
        tokio::spawn(async move { handled.handle(&mut transaction).await });
        tokio::spawn(watch(self.layer.clone(), dialog.clone(), changes, sender));
        self.reception.begin(invite, Incoming { dialog: Arc::new(Handle { dialog }), signals });
    }

    /// The address at which the peer reaches us again: the one its INVITE came in by.
    fn contact(&self, transaction: &Transaction) -> Option<Uri> {
        let address = transaction.connection.as_ref()?.get_addr().clone();
        let scheme = match address.r#type {
            Some(rsipstack::sip::Transport::Tcp) => ";transport=tcp",
            Some(rsipstack::sip::Transport::Tls) => ";transport=tls",
            _ => "",
        };
        Uri::try_from(format!("sip:ihuza@{}{scheme}", address.addr).as_str()).ok()
    }
}

impl Stack {
    /// OPTIONS outside of any dialog (RFC 3261 §11.1).
    fn options(&self, peer: &PeerAddress) -> Option<Transaction> {
        let endpoint = &self.layer.endpoint;
        let ours = self.listener(peer.transport);
        let host = ours.as_ref().map_or_else(|| "localhost".to_owned(), |ours| ours.addr.to_string());
        let from = typed::From {
            display_name: None,
            uri: Uri::try_from(format!("sip:ihuza@{host}").as_str()).ok()?,
            params: vec![],
        };
        let target = uri_of(None, peer)?;
        let to = typed::To { display_name: None, uri: target.clone(), params: vec![] };
        let via = endpoint.get_via(ours, None).ok()?;
        let mut request =
            endpoint.make_request(Method::Options, target.clone(), via, from.with_tag(make_tag()), to, 1, None);
        request.headers.push(Header::Contact(format!("<sip:ihuza@{host}>").into()));
        request.headers.push(Header::Accept("application/sdp".into()));
        let key = TransactionKey::from_request(&request, TransactionRole::Client).ok()?;
        let mut transaction = Transaction::new_client(key, request, endpoint.clone(), None);
        transaction.destination = SipAddr::try_from(target).ok();
        Some(transaction)
    }

    /// The listener whose address is ours towards a peer.
    fn listener(&self, transport: Transport) -> Option<SipAddr> {
        let wanted = transport_of(transport);
        self.layer.endpoint.transport_layer.get_listen_addrs().into_iter().find(|ours| ours.r#type == Some(wanted))
    }
}

impl Signalling for Stack {
    fn ping(&self, peer: &PeerAddress) -> Later<'static, Option<u16>> {
        let options = self.options(peer);
        Box::pin(async move {
            let mut transaction = options?;
            transaction.send().await.ok()?;
            loop {
                if let SipMessage::Response(response) = transaction.receive().await?
                    && response.status_code.code() >= 200
                {
                    return Some(response.status_code.code());
                }
            }
        })
    }

    fn call(&self, outgoing: Outgoing) -> Incoming {
        let (sender, signals) = mpsc::channel(MOST_SIGNALS);
        let (states, changes) = self.layer.new_dialog_state_channel();
        let begun = self.invitation(&outgoing).and_then(|option| self.layer.do_invite_async(option, states).ok());
        let Some((dialog, answered)) = begun else {
            let _ = sender.try_send(Signal::Refused(None));
            return Incoming { dialog: Arc::new(NoDialog), signals };
        };
        let nowhere = sender.clone();
        tokio::spawn(watch(self.layer.clone(), dialog.clone(), changes, sender));
        tokio::spawn(async move {
            // Every answer shows in the dialog's states; that none came, or none that can be read, does not.
            if !matches!(answered.await, Ok(Ok((_, Some(_))))) {
                let _ = nowhere.send(Signal::Refused(None)).await;
            }
        });
        Incoming { dialog: Arc::new(Handle { dialog }), signals }
    }
}

impl Stack {
    /// The INVITE; nothing if an address cannot be written.
    fn invitation(&self, outgoing: &Outgoing) -> Option<InviteOption> {
        let peer = &outgoing.peer;
        let ours = self.listener(peer.transport);
        let host = ours.map_or_else(|| "localhost".to_owned(), |ours| ours.addr.to_string());
        let caller = format!("sip:{}@{host}", outgoing.from.as_str());
        let callee = uri_of(Some(outgoing.to.as_str()), peer)?;
        Some(InviteOption {
            caller: Uri::try_from(caller.as_str()).ok()?,
            destination: SipAddr::try_from(&callee).ok(),
            callee,
            contact: Uri::try_from(format!("sip:ihuza@{host}").as_str()).ok()?,
            offer: Some(outgoing.offer.clone().into_bytes()),
            call_id: Some(outgoing.call_id.clone()),
            credential: outgoing.credentials.clone().map(|(username, password)| Credential {
                username,
                password,
                realm: None,
                auth_username: None,
            }),
            headers: Some(vec![
                Header::Allow(ALLOW.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ").into()),
                Header::Supported("timer".into()),
                Header::Other("P-Asserted-Identity".into(), format!("<{caller}>")),
            ]),
            ..InviteOption::default()
        })
    }
}

/// In the place of a dialog that never came to be.
struct NoDialog;

impl Dialog for NoDialog {
    fn ring(&self) {}
    fn accept(&self, _: &Accepted) {}
    fn reject(&self, _: u16) {}
    fn cancel(&self) -> Later<'_, ()> {
        Box::pin(async {})
    }
    fn hang_up(&self, _: u8) -> Later<'_, ()> {
        Box::pin(async {})
    }
    fn refer(&self, _: String) -> Later<'_, Option<u16>> {
        Box::pin(async { None })
    }
    fn refresh(&self, _: String) -> Later<'_, bool> {
        Box::pin(async { false })
    }
}

fn transport_of(transport: Transport) -> rsipstack::sip::Transport {
    match transport {
        Transport::Udp => rsipstack::sip::Transport::Udp,
        Transport::Tcp => rsipstack::sip::Transport::Tcp,
        Transport::Tls => rsipstack::sip::Transport::Tls,
    }
}

/// The address of a peer, or of a number there.
fn uri_of(number: Option<&str>, peer: &PeerAddress) -> Option<Uri> {
    let user = number.map(|number| format!("{number}@")).unwrap_or_default();
    let transport = match peer.transport {
        Transport::Udp => ";transport=udp",
        Transport::Tcp => ";transport=tcp",
        Transport::Tls => ";transport=tls",
    };
    Uri::try_from(format!("sip:{user}{}{transport}", peer.host_and_port()).as_str()).ok()
}

/// Turns the states of a dialog into signals, until it is over.
async fn watch(
    layer: Arc<DialogLayer>,
    dialog: InviteDialog,
    mut changes: DialogStateReceiver,
    signals: mpsc::Sender<Signal>,
) {
    let ours = dialog.role() == TransactionRole::Client;
    let mut acknowledged = false;
    while let Some(state) = changes.recv().await {
        match state {
            // Told again after every request within the dialog.
            DialogState::Confirmed(_, answer) if ours && !std::mem::replace(&mut acknowledged, true) => {
                let session_expires = answer.header_value("Session-Expires");
                let _ = signals.send(Signal::PickedUp { answer: answer.body().clone(), session_expires }).await;
            }
            DialogState::Early(_, answer) if ours => {
                let _ = signals.send(Signal::Ringing(answer.body().clone())).await;
            }
            DialogState::Confirmed(..) if !std::mem::replace(&mut acknowledged, true) => {
                let body = dialog.last_remote_ack().map(|ack| ack.body().clone()).unwrap_or_default();
                let _ = signals.send(Signal::Acknowledged(body)).await;
            }
            DialogState::Updated(_, request, handle) => {
                update(&signals, &request, handle).await;
                if wants_offer(&request) {
                    tokio::spawn(wait_for_answer(dialog.clone(), request.header_value("CSeq"), signals.clone()));
                }
            }
            DialogState::Info(_, request, handle) => {
                let text = String::from_utf8_lossy(request.body()).into_owned();
                let _ = signals.send(Signal::Info(text)).await;
                let _ = handle.reply(StatusCode::OK).await;
            }
            DialogState::Options(_, _, handle) => {
                let _ = handle.reply(StatusCode::OK).await;
            }
            DialogState::Refer(_, _, handle)
            | DialogState::Message(_, _, handle)
            | DialogState::Publish(_, _, handle) => {
                let _ = handle.reply(StatusCode::MethodNotAllowed).await;
            }
            DialogState::Notify(_, request, handle) => {
                let is_of_refer = request.header_value("Event").is_some_and(|event| event.trim().starts_with("refer"));
                let status = if is_of_refer { StatusCode::OK } else { StatusCode::CallTransactionDoesNotExist };
                let _ = handle.reply(status).await;
                if is_of_refer {
                    let fragment = String::from_utf8_lossy(request.body()).into_owned();
                    let _ = signals.send(Signal::TransferTold(fragment)).await;
                }
            }
            DialogState::Terminated(id, reason) => {
                let signal = match reason {
                    TerminatedReason::UasOther(status) if ours => Some(Signal::Refused(Some(status.code()))),
                    TerminatedReason::ProxyAuthRequired if ours => Some(Signal::Refused(Some(407))),
                    TerminatedReason::UasBye if ours => Some(Signal::HungUp),
                    // Our own CANCEL or BYE.
                    TerminatedReason::UacCancel | TerminatedReason::UacBye if ours => None,
                    TerminatedReason::UacCancel => Some(Signal::Cancelled),
                    TerminatedReason::Timeout => Some(Signal::NotAcknowledged),
                    TerminatedReason::UacBye => Some(Signal::HungUp),
                    // Our own doing.
                    _ => None,
                };
                if let Some(signal) = signal {
                    let _ = signals.send(signal).await;
                }
                layer.remove_dialog(&id);
                break;
            }
            DialogState::Calling(_)
            | DialogState::Trying(_)
            | DialogState::Early(..)
            | DialogState::WaitAck(..)
            | DialogState::Confirmed(..) => {}
        }
    }
}

/// A re-INVITE without an offer asks for ours (RFC 3261 §14.2); an UPDATE without one only refreshes.
fn wants_offer(request: &Request) -> bool {
    request.method == Method::Invite && request.body().is_empty()
}

/// The stack keeps the ACK to a re-INVITE, and tells nobody that it came.
async fn wait_for_answer(dialog: InviteDialog, cseq: Option<String>, signals: mpsc::Sender<Signal>) {
    let number = |value: &str| value.split_whitespace().next().and_then(|number| number.parse::<u32>().ok());
    let Some(wanted) = cseq.as_deref().and_then(number) else { return };
    for _ in 0..MOST_LOOKS {
        tokio::time::sleep(LOOK_EVERY).await;
        let ack = dialog.last_remote_ack();
        let is_it = |ack: &Request| ack.header_value("CSeq").as_deref().and_then(number) == Some(wanted);
        if let Some(ack) = ack.filter(is_it) {
            let _ = signals.send(Signal::Acknowledged(ack.body().clone())).await;
            return;
        }
    }
}

async fn update(signals: &mpsc::Sender<Signal>, request: &Request, handle: TransactionHandle) {
    let (answer, decided) = oneshot::channel();
    let signal = Signal::Reoffer {
        offer: request.body().clone(),
        wants_offer: wants_offer(request),
        session_expires: request.header_value("Session-Expires"),
        supports_timer: tags(request, "Supported").iter().any(|tag| tag.eq_ignore_ascii_case("timer")),
        answer,
    };
    if signals.send(signal).await.is_err() {
        let _ = handle.reply(StatusCode::CallTransactionDoesNotExist).await;
        return;
    }
    let _ = match decided.await {
        Ok(Ok(accepted)) => {
            let body = accepted.description.clone().map(String::into_bytes);
            handle.respond(StatusCode::OK, Some(headers_of_accepted(&accepted)), body).await
        }
        Ok(Err(refused)) => handle.respond(refused.status.into(), Some(headers_of(refused)), None).await,
        Err(_) => handle.reply(StatusCode::CallTransactionDoesNotExist).await,
    };
}

struct Handle {
    dialog: InviteDialog,
}

impl Dialog for Handle {
    fn ring(&self) {
        let _ = self.dialog.ringing(None, None);
    }

    fn accept(&self, accepted: &Accepted) {
        let body = accepted.description.clone().map(String::into_bytes);
        let _ = self.dialog.accept(Some(headers_of_accepted(accepted)), body);
    }

    fn reject(&self, status: u16) {
        let _ = self.dialog.reject(Some(status.into()), None);
    }

    fn cancel(&self) -> Later<'_, ()> {
        // Whether it is a CANCEL or, if a 200 crossed it, a BYE, only the dialog knows.
        Box::pin(async move {
            let _ = self.dialog.hangup_with_reason("Q.850;cause=16".to_owned()).await;
        })
    }

    fn hang_up(&self, q850: u8) -> Later<'_, ()> {
        Box::pin(async move {
            let _ = self.dialog.bye_with_reason(format!("Q.850;cause={q850}")).await;
        })
    }

    fn refer(&self, number: String) -> Later<'_, Option<u16>> {
        Box::pin(async move {
            let host = self.dialog.initial_request().uri.host().to_string();
            let answer = self.dialog.refer(format!("<sip:{number}@{host};user=phone>"), None, None).await;
            answer.ok().flatten().map(|response| response.status_code.code())
        })
    }

    fn refresh(&self, session_expires: String) -> Later<'_, bool> {
        Box::pin(async move {
            let headers = vec![Header::SessionExpires(session_expires.into()), Header::Supported("timer".into())];
            let answer = self.dialog.update(Some(headers), None).await;
            matches!(answer, Ok(Some(response)) if (200..300).contains(&response.status_code.code()))
        })
    }
}

fn headers_of_accepted(accepted: &Accepted) -> Vec<Header> {
    let mut headers = vec![Header::Supported("timer".into())];
    if accepted.description.is_some() {
        headers.push(Header::ContentType("application/sdp".into()));
    }
    if let Some(session_expires) = &accepted.session_expires {
        headers.push(Header::SessionExpires(session_expires.clone().into()));
    }
    if accepted.require_timer {
        headers.push(Header::Require("timer".into()));
    }
    headers
}

fn headers_of(refused: Refused) -> Vec<Header> {
    refused.headers.into_iter().map(|(name, value)| rsipstack::sip::headers::make_header(name, value)).collect()
}

/// Answers finally, and keeps the transaction until it has absorbed what comes again.
fn refuse(mut transaction: Transaction, status: u16, headers: Vec<Header>) {
    tokio::spawn(async move {
        if transaction.reply_with(status.into(), headers, None).await.is_ok() {
            while transaction.receive().await.is_some() {}
        }
    });
}

/// Every method that is served (RFC 3261 §20.5).
fn allow() -> Header {
    Header::Allow(ALLOW.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ").into())
}

fn source_of(request: &Request) -> Option<IpAddr> {
    request.header_value(SOURCE)?.parse().ok()
}

fn has_to_tag(request: &Request) -> bool {
    request.to_header().ok().and_then(|to| to.tag().ok().flatten()).is_some()
}

fn tags(request: &Request, name: &str) -> Vec<String> {
    let of_name = request.headers().iter().filter(|header| header.name().eq_ignore_ascii_case(name));
    of_name
        .flat_map(|header| header.value().split(','))
        .map(|tag| tag.trim().to_owned())
        .filter(|tag| !tag.is_empty())
        .collect()
}

/// What admission needs; nothing if a header that every request has is missing or broken.
fn read(request: &Request) -> Option<Invite> {
    let from = request.from_header().ok()?;
    let from_tag = from.tag().ok()??.to_string();
    request.to_header().ok()?.tag().ok()?;
    let cseq = request.cseq_header().ok()?;
    cseq.seq().ok()?;
    let via = request.via_header().ok()?.value().to_owned();
    let caller = request.header_value("P-Asserted-Identity").unwrap_or_else(|| from.value().to_owned());
    Some(Invite {
        source: source_of(request),
        scheme: request.uri.scheme.as_ref().map_or_else(|| "sip".to_owned(), ToString::to_string),
        called: request.uri.user().map_or_else(|| request.uri.host().to_string(), str::to_owned),
        caller: user_of(&caller),
        call_id: request.call_id_header().ok()?.value().to_owned(),
        from_tag,
        cseq: cseq.value().to_owned(),
        branch: branch_of(&via),
        max_forwards: request.header_value("Max-Forwards").and_then(|hops| hops.trim().parse().ok()),
        required: tags(request, "Require"),
        supported: tags(request, "Supported"),
        content_type: request.header_value("Content-Type").filter(|_| !request.body().is_empty()),
        user_agent: request.header_value("User-Agent"),
        authorization: request.header_value("Authorization"),
        session_expires: request.header_value("Session-Expires"),
        offer: request.body().clone(),
    })
}

/// The user part of the first address in a header: `"Keza" <sip:+250788123456@mtn>;tag=1`.
fn user_of(value: &str) -> String {
    let address = value.split_once('<').map_or(value, |(_, rest)| rest.split('>').next().unwrap_or_default());
    let (_, rest) = address.split_once(':').unwrap_or_default();
    rest.split(['@', ';', '>']).next().unwrap_or_default().trim().to_owned()
}

fn branch_of(via: &str) -> String {
    let first = via.split(',').next().unwrap_or_default();
    let branch = first.split(';').find_map(|parameter| parameter.trim().strip_prefix("branch="));
    branch.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_read_out_of_every_form_of_address() {
        for (value, user) in [
            ("\"Keza\" <sip:+250788123456@mtn.example>;tag=1", "+250788123456"),
            ("<tel:+250788123456>", "+250788123456"),
            ("sip:0788123456;phone-context=x@mtn.example", "0788123456"),
            ("<sip:mtn.example>", "mtn.example"),
            ("anonymous", ""),
        ] {
            assert_eq!(user_of(value), user, "{value}");
        }
    }

    #[test]
    fn the_branch_is_that_of_the_first_via() {
        let via = "SIP/2.0/UDP a:5060;rport;branch=z9hG4bK1;received=1.2.3.4, SIP/2.0/UDP b;branch=z9hG4bK2";
        assert_eq!(branch_of(via), "z9hG4bK1");
        assert_eq!(branch_of("SIP/2.0/UDP a"), "");
    }
}
