//! `/mtn-media`: gateways that bring calls over a WebSocket. The socket has a task of its own, and never waits for the call;
//! the call is the same as one over SIP, with another line.

use std::sync::Arc;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::body::Incoming as Body;
use hyper::header::{
    AUTHORIZATION, CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ihuza_core::phone::E164;
use ihuza_core::signature;
use serde_json::json;
use sha1::{Digest as _, Sha1};
use tokio::sync::mpsc;
use tokio_websockets::{CloseCode, Limits, Message, ServerBuilder, WebSocketStream};

use super::call::{self, Start, dice};
use super::log::Level;
use super::relay::Shared;
use super::signalling::{Accepted, Dialog, Incoming, Later, Signal};
use crate::config::Codec;
use crate::gateway::message::{self, MOST_BYTES};
use crate::gateway::played::Played;
use crate::gateway::stream::{Action, Close, START_WITHIN, Stream};
use crate::gateway::{message::Start as Named, token::Rejected};
use crate::journal::entry::Origin;
use crate::media::dtmf::Digit;
use crate::media::playout::Heard;
use crate::moment::Moment;
use crate::sip::admission::{Refusal, Request as Asked};
use crate::sip::description::{Agreed, Direction, Local};

/// Where gateways knock; the id of the call may follow.
pub const PATH: &str = "/mtn-media";
/// The name of these messages, for clients that ask for one.
const PROTOCOL: &str = "ihuza.media.v1";
/// What RFC 6455 (§1.3) has every server add to the client's key.
const KEY_ENDS_WITH: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Messages that wait for the call; beyond it sound is dropped, which the call conceals like any other loss.
const MOST_ARRIVED: usize = 256;
/// Messages that wait for the socket: ten seconds of speech. A gateway that is slower is as good as gone.
const MOST_LEAVING: usize = 512;
const PING_EVERY: Duration = Duration::from_secs(15);
/// The last words of a socket are said within this time.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// What comes for the call.
#[derive(Debug)]
pub enum Arrived {
    /// Sound.
    Packet(Vec<u8>),
    /// A key.
    Digit(Digit),
    /// A mark came back.
    Mark(String),
}

#[derive(Debug)]
enum Leaving {
    Text(String),
    Close(Close),
}

/// The line of one call.
#[derive(Debug)]
pub struct Line {
    arrived: mpsc::Receiver<Arrived>,
    leaving: mpsc::Sender<Leaving>,
    stream_sid: String,
    played: Played,
}

/// The gateway does not take what is said to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck;

impl Line {
    /// What comes next; nothing more once the gateway is gone.
    pub async fn next(&mut self) -> Option<Arrived> {
        self.arrived.recv().await
    }

    /// A packet of speech, for the gateway.
    pub fn say(&mut self, now: Moment, datagram: &[u8]) -> Result<(), Stuck> {
        let Ok(packet) = crate::media::rtp::Packet::parse(datagram) else { return Ok(()) };
        self.send(message::media_to(&self.stream_sid, packet.payload))?;
        match self.played.sent(now) {
            Some(mark) => self.send(message::mark(&self.stream_sid, &mark)),
            None => Ok(()),
        }
    }

    /// The last packet of an item has left.
    pub fn ended(&mut self, now: Moment, heard: Heard) -> Result<(), Stuck> {
        let mark = self.played.ended(now, heard);
        self.send(message::mark(&self.stream_sid, &mark))
    }

    /// A mark came back.
    pub fn echoed(&mut self, now: Moment, name: &str) {
        self.played.echoed(now, name);
    }

    /// Time has passed.
    pub fn timeout(&mut self, now: Moment) {
        self.played.timeout(now);
    }

    /// When `timeout` is to be called next, if ever.
    pub fn next_timeout(&self) -> Option<Moment> {
        self.played.next_timeout()
    }

    /// An item that was played to its end.
    pub fn poll_heard(&mut self) -> Option<Heard> {
        self.played.poll_heard()
    }

    /// Whether the gateway may still hold sound.
    pub fn is_speaking(&self) -> bool {
        self.played.is_waiting()
    }

    /// The caller interrupts: what the gateway holds is thrown away. What was heard of each item that was cut off.
    pub fn cut(&mut self, now: Moment, cut: Vec<Heard>) -> (Vec<Heard>, Result<(), Stuck>) {
        let sent = self.send(message::clear(&self.stream_sid));
        (self.played.cut(now, cut), sent)
    }

    fn send(&self, text: String) -> Result<(), Stuck> {
        self.leaving.try_send(Leaving::Text(text)).map_err(|_| Stuck)
    }
}

/// What can be done with a call over a gateway, in the place of a dialog of SIP.
struct GatewayDialog {
    signals: mpsc::Sender<Signal>,
    leaving: mpsc::Sender<Leaving>,
    stream_sid: String,
}

impl GatewayDialog {
    fn close(&self, reason: &str) {
        let _ = self.leaving.try_send(Leaving::Text(message::hangup(&self.stream_sid, reason)));
        let _ = self.leaving.try_send(Leaving::Close(Close::Normal));
    }
}

impl Dialog for GatewayDialog {
    /// The gateway has answered the telephone before it came here.
    fn ring(&self) {}

    fn accept(&self, _: &Accepted) {
        let _ = self.signals.try_send(Signal::Acknowledged(Vec::new()));
    }

    fn reject(&self, _: u16) {
        let _ = self.leaving.try_send(Leaving::Close(Close::Broken));
    }

    fn hang_up(&self, q850: u8) -> Later<'_, ()> {
        self.close(if q850 == 16 { "completed" } else { "failed" });
        Box::pin(std::future::ready(()))
    }

    /// No call is placed through a gateway.
    fn cancel(&self) -> Later<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Nobody tells what becomes of it; the gateway stops the stream when somebody else has the call.
    fn refer(&self, number: String) -> Later<'_, Option<u16>> {
        let sent = self.leaving.try_send(Leaving::Text(message::transfer(&self.stream_sid, &number)));
        Box::pin(std::future::ready(Some(if sent.is_ok() { 202 } else { 503 })))
    }

    fn refresh(&self, _: String) -> Later<'_, bool> {
        Box::pin(std::future::ready(true))
    }
}

/// Answers a request for a stream, and serves it in a task of its own.
pub fn upgrade(shared: &Arc<Shared>, mut request: Request<Body>) -> Response<Full<Bytes>> {
    let Some(accept) = accept_key(&request) else {
        return answer(StatusCode::UPGRADE_REQUIRED, "only WebSocket, version 13\n");
    };
    // Who shows a wrong secret is turned away at the door; who shows none may have a token for one call.
    let shown = request.headers().get(AUTHORIZATION);
    let trunk = shown.and_then(|shown| trunk_of(shared, shown.to_str().ok()));
    if shown.is_some() && trunk.is_none() {
        shared.metrics.refused(Refusal::Unauthenticated);
        let fields = json!({ "reason": Refusal::Unauthenticated.as_str() });
        shared.desk.log.event("GATEWAY_REFUSED", Level::Warn, "no trunk has the secret that was shown", fields);
        return answer(StatusCode::UNAUTHORIZED, "no trunk has this secret\n");
    }
    let Ok(seat) = shared.gateways_waiting.clone().try_acquire_owned() else {
        shared.metrics.refused(Refusal::RelayFull);
        return answer(StatusCode::SERVICE_UNAVAILABLE, "too many streams that name no call\n");
    };
    let speaks_ours = has(request.headers(), SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
    let wanted = request.uri().path().trim_start_matches(PATH).trim_start_matches('/').to_owned();
    let shared = shared.clone();
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else { return };
        let limits = Limits::default().max_payload_len(Some(MOST_BYTES));
        let mut socket = ServerBuilder::new().limits(limits).serve(TokioIo::new(upgraded));
        let mut stream = Stream::new(shared.clock.now());
        let named = tokio::time::timeout(START_WITHIN, named(&shared, &mut socket, &mut stream)).await;
        drop(seat);
        let close = match named {
            Err(_) => Close::NoStart,
            Ok(Err(close)) => close,
            Ok(Ok(named)) if !wanted.is_empty() && wanted != named.call_sid => Close::Violation,
            Ok(Ok(named)) => match begin(&shared, trunk, named) {
                Ok(call) => carry(&shared, &mut socket, &mut stream, call).await,
                Err(close) => close,
            },
        };
        let said = socket.send(Message::close(CloseCode::try_from(close as u16).ok(), ""));
        let _ = tokio::time::timeout(CLOSE_WITHIN, said).await;
    });
    let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(UPGRADE, hyper::header::HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if speaks_ours {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, hyper::header::HeaderValue::from_static(PROTOCOL));
    }
    response
}

fn answer(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

/// Whether a header that is a list has this word.
fn has(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// What the client's key is answered with; nothing if it asks for no WebSocket (RFC 6455 §4.2.1).
fn accept_key(request: &Request<Body>) -> Option<hyper::header::HeaderValue> {
    let headers: &HeaderMap = request.headers();
    let asks = request.method() == Method::GET
        && has(headers, UPGRADE, "websocket")
        && has(headers, CONNECTION, "upgrade")
        && has(headers, SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| asks)?;
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(KEY_ENDS_WITH).finalize();
    Base64::encode_string(&digest).parse().ok()
}

/// The trunk whose secret was shown. All are looked at, so that time tells nothing.
fn trunk_of(shared: &Shared, header: Option<&str>) -> Option<String> {
    let token = signature::bearer_token(header)?;
    let found = shared.gateway_secrets.iter().filter(|(_, secret)| signature::equal(token, secret));
    found.map(|(trunk, _)| trunk.clone()).last()
}

/// Waits for the call's name.
async fn named(
    shared: &Shared,
    socket: &mut WebSocketStream<TokioIo<Upgraded>>,
    stream: &mut Stream,
) -> Result<Named, Close> {
    loop {
        match heard(shared, socket.next().await, stream)? {
            Some(Action::Start(named)) => return Ok(*named),
            Some(Action::Pong) => {
                socket.send(Message::text(message::pong())).await.map_err(|_| Close::Normal)?;
            }
            _ => {}
        }
    }
}

/// A frame of the socket. A gateway that is gone needs no closing frame: whatever is returned is said to nobody.
fn heard(
    shared: &Shared,
    frame: Option<Result<Message, tokio_websockets::Error>>,
    stream: &mut Stream,
) -> Result<Option<Action>, Close> {
    match frame {
        Some(Ok(message)) if message.is_text() => stream.message(shared.clock.now(), message.as_payload()),
        Some(Ok(message)) if message.is_binary() => stream.binary(),
        Some(Ok(message)) if !message.is_close() => Ok(None),
        Some(Err(tokio_websockets::Error::PayloadTooLong { .. })) => Err(Close::Violation),
        Some(Ok(_) | Err(_)) | None => Err(Close::Normal),
    }
}

/// A call that was let in, as its socket sees it.
struct Carried {
    arrived: mpsc::Sender<Arrived>,
    signals: mpsc::Sender<Signal>,
    /// Ends when the call is over and all of it has left.
    leaving: mpsc::Receiver<Leaving>,
}

/// Lets the call in, or not: by the same rules as every other.
fn begin(shared: &Arc<Shared>, trunk: Option<String>, named: Named) -> Result<Carried, Close> {
    let refused = |refusal: Refusal, why: String| {
        shared.metrics.refused(refusal);
        let fields = json!({ "reason": refusal.as_str(), "called": named.to, "call_sid": named.call_sid });
        shared.desk.log.event("CALL_REFUSED", Level::Warn, &why, fields);
        match refusal {
            Refusal::Unauthenticated => Close::Unauthorized,
            Refusal::UnknownNumber => Close::UnknownNumber,
            Refusal::Merged => Close::Duplicate,
            Refusal::NoCommonCodec => Close::UnsupportedFormat,
            _ => Close::Full,
        }
    };
    let trunk = match trunk {
        Some(trunk) => trunk,
        None => signed(shared, &named).map_err(|why| refused(Refusal::Unauthenticated, why))?,
    };
    let config = &shared.config;
    let trunk = config.trunks.iter().find(|known| known.name == trunk).ok_or(Close::Unauthorized)?;
    // Whether or not the call is let in: the trunk is there.
    shared.trunks.heard(shared.clock.now(), &trunk.name);
    let law = named.law.ok_or(Close::UnsupportedFormat)?;
    let codec = trunk.codecs.iter().find(|codec| codec.law() == law).copied();
    let Some(codec) = codec else {
        return Err(refused(Refusal::NoCommonCodec, "the trunk may not use this codec".into()));
    };
    let caller = E164::parse_msisdn(&named.from).ok();
    // Each stream has its own branch, so that the same call twice is a copy that came by two ways.
    let branch = format!("{:08x}{:08x}", dice(), dice());
    let asked = Asked {
        scheme: "tel",
        called: &named.to,
        caller: caller.clone(),
        identity: [PATH, &named.call_sid, ""],
        branch: &branch,
        ..Asked::default()
    };
    let Some(place) = shared.place_of_stream(&named.call_sid) else {
        return Err(refused(Refusal::Merged, "a call of this name is running".into()));
    };
    let admitted = shared.let_in(trunk, &asked).map_err(|refusal| refused(refusal, "a call was not let in".into()))?;
    let did = admitted.did.clone();
    let (signals, incoming) = mpsc::channel(16);
    let (arrived, arriving) = mpsc::channel(MOST_ARRIVED);
    let (leaving, left) = mpsc::channel(MOST_LEAVING);
    let stream_sid = named.stream_sid;
    let dialog = GatewayDialog { signals: signals.clone(), leaving: leaving.clone(), stream_sid: stream_sid.clone() };
    let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let start = Start {
        incoming: Incoming { dialog: Arc::new(dialog), signals: incoming },
        call_sid: named.call_sid,
        origin: Origin::MtnMedia,
        trunk: trunk.clone(),
        locale: named.locale.unwrap_or(did.locale.0),
        did,
        caller,
        pair: None,
        line: Some(Line { arrived: arriving, leaving, stream_sid, played: Played::default() }),
        local: Local::new(nowhere, 0),
        description: String::new(),
        agreed: Some(agreed(codec)),
        interval: None,
        placed: None,
    };
    shared.began(&start.trunk.name, &start.did.number.0);
    shared.trunks.called(shared.clock.now(), &start.trunk.name);
    let shared = shared.clone();
    tokio::spawn(async move {
        call::run(shared, start).await;
        drop(place);
    });
    Ok(Carried { arrived, signals, leaving: left })
}

fn signed(shared: &Shared, named: &Named) -> Result<String, String> {
    let Some(token) = &named.token else { return Err("neither a secret nor a token was shown".into()) };
    let now_s = shared.clock.unix_ms(shared.clock.now()) / 1000;
    let secret_of = |trunk: &str| shared.gateway_secrets.get(trunk).map(String::as_str);
    let mut tokens = shared.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let taken = tokens.take(now_s, token, &named.call_sid, secret_of);
    taken.map(str::to_owned).map_err(|rejected: Rejected| rejected.to_string())
}

/// The media of a stream, as a description would have agreed on it. Nothing is ever sent to that address.
fn agreed(codec: Codec) -> Agreed {
    Agreed {
        codec,
        payload_type: codec.law().payload_type(),
        telephone_event: None,
        remote: call::GATEWAY,
        remote_control: call::GATEWAY,
        on_hold: false,
        direction: Direction::SendRecv,
        ptime_ms: 20,
    }
}

/// Carries messages both ways until the call is over or the gateway gone.
async fn carry(
    shared: &Shared,
    socket: &mut WebSocketStream<TokioIo<Upgraded>>,
    stream: &mut Stream,
    mut call: Carried,
) -> Close {
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        tokio::select! {
            leaving = call.leaving.recv() => match leaving {
                Some(Leaving::Text(text)) => {
                    if socket.send(Message::text(text)).await.is_err() {
                        let _ = call.signals.try_send(Signal::Lost);
                        return Close::Normal;
                    }
                }
                Some(Leaving::Close(close)) => return close,
                None => return Close::Normal,
            },
            frame = socket.next() => match heard(shared, frame, stream) {
                Ok(Some(Action::Packet(packet))) => drop(call.arrived.try_send(Arrived::Packet(packet))),
                // Keys and marks are few, and are waited for.
                Ok(Some(Action::Digit(digit))) => drop(call.arrived.send(Arrived::Digit(digit)).await),
                Ok(Some(Action::Mark(name))) => drop(call.arrived.send(Arrived::Mark(name)).await),
                Ok(Some(Action::Pong)) => drop(socket.send(Message::text(message::pong())).await),
                Ok(Some(Action::Stop)) => {
                    let _ = call.signals.send(Signal::HungUp).await;
                    return Close::Normal;
                }
                Ok(Some(Action::Start(_)) | None) => {}
                // Without a `stop` nobody has hung up: the gateway is gone, or is not to be believed.
                Err(close) => {
                    let _ = call.signals.send(Signal::Lost).await;
                    return close;
                }
            },
            _ = ping.tick() => drop(socket.send(Message::ping("")).await),
        }
    }
}
