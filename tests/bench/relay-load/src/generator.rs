//! One thread that is all telephones, the model and the session function: it waits for sockets and for the next thing
//! that is due, and measures.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use serde_json::Value;

use crate::clock::{self, MS, Nanos, SECOND};
use crate::model::{self, Step};
use crate::observed::Observed;
use crate::sip::{self, Dialog, Message};
use crate::stamped::{self, Receiver};
use crate::tag::{self, FRAME};
use crate::tls::Wire;
use crate::websocket::{self, Received};

const FRAME_EVERY: Nanos = 20 * MS;
/// How long the session function thinks.
const FUNCTION_THINKS: Nanos = 50 * MS;
/// SIP's T1: so long an answer is waited for at first (RFC 3261 §17.1.1.2).
const SIP_AGAIN: Nanos = 500 * MS;
const SIP_ATTEMPTS: u32 = 7;
/// After an interruption it is listened for so long whether the agent goes on speaking.
const LISTEN: Nanos = 1000 * MS;
/// Of an interruption the relay's echo guard holds so many frames.
const GUARD_FRAMES: u32 = 3;
/// Times of packets that are not heard by the model yet, by their last bits.
const REMEMBERED: usize = 256;

/// Everything that a socket can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Sip,
    FunctionDoor,
    ModelDoor,
    /// The caller's port of a call, or the near port of a stream.
    Near,
    /// The far port of a stream through a forwarder.
    Far,
    Connection,
}

const ROLES: [Role; 6] = [Role::Sip, Role::FunctionDoor, Role::ModelDoor, Role::Near, Role::Far, Role::Connection];

fn token(role: Role, at: usize) -> u64 {
    let role = ROLES.iter().position(|known| *known == role).unwrap_or_default();
    (role as u64) << 32 | at as u64
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Invite(usize),
    HangUp(usize),
    /// A request of that call was not answered; the number of the attempt.
    Again(usize, u32),
    Frame(usize),
    Turn(usize, Step),
    /// It is known by now how long the agent went on speaking.
    Silent(usize),
    Answer(usize),
    Flush(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    Inviting,
    Up,
    HangingUp,
    Over,
}

struct Call {
    stage: Stage,
    dialog: Dialog,
    near: Option<UdpSocket>,
    far: Option<UdpSocket>,
    /// Where the near port sends to, and where the far one does.
    to: Option<SocketAddr>,
    far_to: Option<SocketAddr>,
    invited: Nanos,
    number: u32,
    sent: Vec<Nanos>,
    /// The model's connection.
    link: Option<usize>,
    speaks: bool,
    turn: u16,
    turn_began: Nanos,
    /// The first frame of an interruption.
    interrupts_from: Option<u32>,
    /// The last own delay of the caller's voice in this turn.
    heard_after: Option<Nanos>,
    delta_at: Option<Nanos>,
    cut: Option<(u16, Nanos)>,
    spoke_until: Nanos,
    last: Option<(u16, Nanos)>,
    /// Calls of a rate test end by themselves after so long.
    lasts: Option<Nanos>,
}

enum Kind {
    Function,
    /// Before and after the opening request; which call.
    Model {
        wire: Wire,
        open: bool,
        call: usize,
    },
}

struct Connection {
    socket: TcpStream,
    kind: Kind,
    buffer: Vec<u8>,
    /// Answers of the function, not due yet.
    answers: std::collections::VecDeque<String>,
}

pub struct Generator {
    epoll: Epoll,
    receiver: Receiver,
    tls: Option<Arc<ServerConfig>>,
    sip: UdpSocket,
    relay: SocketAddr,
    function: TcpListener,
    model: TcpListener,
    calls: Vec<Call>,
    connections: Vec<Option<Connection>>,
    due: BinaryHeap<Reverse<(Nanos, Due)>>,
    pub observed: Observed,
    /// The forwarders are told where to send, not called.
    streams_only: bool,
    /// One more with every `clear`: messages for calls of before are not taken for present ones.
    epoch: u32,
}

impl Generator {
    pub fn new(relay: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Result<Generator> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sip = UdpSocket::bind(local)?;
        sip.set_nonblocking(true)?;
        stamped::enable(&sip)?;
        // Two hundred calls a second answer in bursts.
        setsockopt(&sip, sockopt::RcvBuf, &(4 << 20))?;
        let (function, model) = (TcpListener::bind(local)?, TcpListener::bind(local)?);
        function.set_nonblocking(true)?;
        model.set_nonblocking(true)?;
        epoll.add(&sip, EpollEvent::new(EpollFlags::EPOLLIN, token(Role::Sip, 0)))?;
        epoll.add(&function, EpollEvent::new(EpollFlags::EPOLLIN, token(Role::FunctionDoor, 0)))?;
        epoll.add(&model, EpollEvent::new(EpollFlags::EPOLLIN, token(Role::ModelDoor, 0)))?;
        Ok(Generator {
            epoll,
            receiver: Receiver::default(),
            tls,
            sip,
            relay,
            function,
            model,
            calls: Vec::new(),
            connections: Vec::new(),
            due: BinaryHeap::new(),
            observed: Observed::default(),
            streams_only: false,
            epoch: 0,
        })
    }

    pub fn function_url(&self) -> Result<String> {
        Ok(format!("http://{}/openai-realtime", self.function.local_addr()?))
    }

    pub fn model_url(&self) -> Result<String> {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        Ok(format!("{scheme}://{}/v1/realtime", self.model.local_addr()?))
    }

    /// Calls that begin one after another, `a_second` of them; each ends after `lasts`, or when it is told to.
    pub fn begin(&mut self, count: usize, a_second: f64, lasts: Option<Nanos>) -> Result<()> {
        self.streams_only = false;
        let began = clock::now();
        for at in 0..count {
            let call = self.add_call(lasts)?;
            self.due.push(Reverse((began + (at as f64 / a_second * SECOND as f64) as Nanos, Due::Invite(call))));
        }
        Ok(())
    }

    /// Streams of RTP in both directions for something that forwards; the near and the far port of each.
    pub fn streams(&mut self, count: usize) -> Result<Vec<(u16, u16)>> {
        self.streams_only = true;
        let mut ports = Vec::new();
        for _ in 0..count {
            let at = self.add_call(None)?;
            self.open_near(at)?;
            let far = self.port(Role::Far, at)?;
            let call = self.calls.get_mut(at).context("no such call")?;
            let near = call.near.as_ref().context("no near port")?;
            ports.push((near.local_addr()?.port(), far.local_addr()?.port()));
            call.far = Some(far);
        }
        Ok(ports)
    }

    /// Where the streams are to be sent: the near one's peer and the far one's.
    pub fn start_streams(&mut self, to: &[(u16, u16)]) {
        let now = clock::now();
        for (at, (near, far)) in to.iter().enumerate() {
            let Some(call) = self.calls.get_mut(at) else { continue };
            call.to = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, *near)));
            call.far_to = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, *far)));
            call.speaks = true;
            call.stage = Stage::Up;
            self.due.push(Reverse((now + FRAME_EVERY * at as u64 / to.len().max(1) as u64, Due::Frame(at))));
        }
    }

    fn add_call(&mut self, lasts: Option<Nanos>) -> Result<usize> {
        let at = self.calls.len();
        self.calls.push(Call {
            stage: Stage::Idle,
            dialog: Dialog {
                call_id: format!("load-{}-{at}", self.epoch),
                number: format!("+25078{:07}", at % 10_000_000),
                local: self.sip.local_addr()?,
                relay: self.relay,
                to_tag: String::new(),
            },
            near: None,
            far: None,
            to: None,
            far_to: None,
            invited: 0,
            number: 0,
            sent: Vec::new(),
            link: None,
            speaks: false,
            turn: 0,
            turn_began: 0,
            interrupts_from: None,
            heard_after: None,
            delta_at: None,
            cut: None,
            spoke_until: 0,
            last: None,
            lasts,
        });
        Ok(at)
    }

    fn open_near(&mut self, at: usize) -> Result<u16> {
        let near = self.port(Role::Near, at)?;
        let port = near.local_addr()?.port();
        let call = self.calls.get_mut(at).context("no such call")?;
        call.near = Some(near);
        Ok(port)
    }

    fn port(&self, role: Role, at: usize) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for RTP; is `ulimit -n` too small?")?;
        socket.set_nonblocking(true)?;
        stamped::enable(&socket)?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token(role, at)))?;
        Ok(socket)
    }

    /// Ends all calls that are up.
    pub fn hang_up(&mut self, a_second: f64) {
        let began = clock::now();
        let up: Vec<usize> = (0..self.calls.len()).filter(|at| self.stage(*at) == Stage::Up).collect();
        for (n, at) in up.into_iter().enumerate() {
            self.due.push(Reverse((began + (n as f64 / a_second * SECOND as f64) as Nanos, Due::HangUp(at))));
        }
    }

    /// Forgets all calls and streams; of what comes late for them nothing is heard.
    pub fn clear(&mut self) {
        self.due.clear();
        self.calls.clear();
        self.epoch += 1;
        for connection in &mut self.connections {
            if connection.as_ref().is_some_and(|open| matches!(open.kind, Kind::Model { .. })) {
                *connection = None;
            }
        }
    }

    pub fn up(&self) -> usize {
        self.calls.iter().filter(|call| call.stage == Stage::Up).count()
    }

    /// Calls that are neither up nor over yet.
    pub fn unsettled(&self) -> usize {
        self.calls.iter().filter(|call| !matches!(call.stage, Stage::Up | Stage::Over)).count()
    }

    pub fn over(&self) -> bool {
        self.calls.iter().all(|call| call.stage == Stage::Over)
    }

    fn stage(&self, call: usize) -> Stage {
        self.calls.get(call).map_or(Stage::Over, |call| call.stage)
    }

    /// Runs until then, or until it is enough.
    pub fn run(&mut self, until: Nanos, enough: impl Fn(&Generator) -> bool) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let mut now = clock::now();
            while let Some(Reverse((at, _))) = self.due.peek().filter(|Reverse((at, _))| *at <= now).copied() {
                if let Some(Reverse((_, due))) = self.due.pop() {
                    self.carry_out(now, at, due);
                }
                now = clock::now();
            }
            if now >= until || enough(self) {
                return Ok(());
            }
            let next = self.due.peek().map_or(until, |Reverse((at, _))| (*at).min(until));
            let wait = next.saturating_sub(now).div_ceil(MS).min(100) as u16;
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait for sockets"),
            };
            for event in events.iter().take(count) {
                self.ready(event.data());
            }
        }
    }

    fn later(&mut self, at: Nanos, due: Due) {
        self.due.push(Reverse((at, due)));
    }

    fn carry_out(&mut self, now: Nanos, at: Nanos, due: Due) {
        match due {
            Due::Invite(call) => self.invite(now, call),
            Due::HangUp(call) => self.bye(now, call),
            Due::Again(call, attempt) => self.again(now, call, attempt),
            Due::Frame(call) => self.frame(now, at, call),
            Due::Turn(call, step) => self.step(now, at, call, step),
            Due::Silent(call) => {
                let Some(known) = self.calls.get_mut(call) else { return };
                if let Some((_, cut_at)) = known.cut.take() {
                    self.observed.interruption.push(known.spoke_until.saturating_sub(cut_at));
                }
            }
            Due::Answer(connection) => self.answer(connection),
            Due::Flush(connection) => self.flush(connection),
        }
    }

    fn invite(&mut self, now: Nanos, at: usize) {
        let port = self.open_near(at);
        let Some(call) = self.calls.get_mut(at) else { return };
        self.observed.calls_begun += 1;
        let Ok(port) = port else {
            call.stage = Stage::Over;
            return self.observed.failed("the generator has no port for it".to_owned());
        };
        call.stage = Stage::Inviting;
        call.invited = now;
        let _ = self.sip.send_to(call.dialog.invite(port).as_bytes(), self.relay);
        self.later(now + SIP_AGAIN, Due::Again(at, 1));
    }

    fn bye(&mut self, now: Nanos, at: usize) {
        let Some(call) = self.calls.get_mut(at).filter(|call| call.stage == Stage::Up) else { return };
        call.stage = Stage::HangingUp;
        let _ = self.sip.send_to(call.dialog.bye().as_bytes(), self.relay);
        self.later(now + SIP_AGAIN, Due::Again(at, 1));
    }

    fn again(&mut self, now: Nanos, at: usize, attempt: u32) {
        let Some(call) = self.calls.get_mut(at) else { return };
        let port = call.near.as_ref().and_then(|near| near.local_addr().ok()).map_or(0, |near| near.port());
        let text = match call.stage {
            Stage::Inviting => call.dialog.invite(port),
            Stage::HangingUp => call.dialog.bye(),
            _ => return,
        };
        if attempt == SIP_ATTEMPTS {
            call.stage = Stage::Over;
            return self.observed.failed(format!("no answer to {}", text.split(' ').next().unwrap_or_default()));
        }
        self.observed.sip_again += 1;
        let _ = self.sip.send_to(text.as_bytes(), self.relay);
        self.later(now + (SIP_AGAIN << attempt), Due::Again(at, attempt + 1));
    }

    fn frame(&mut self, now: Nanos, due: Nanos, at: usize) {
        let Some(call) = self.calls.get_mut(at).filter(|call| call.stage == Stage::Up) else { return };
        self.observed.late(now - due);
        call.number = call.number.wrapping_add(1);
        let payload = if call.speaks { tag::caller(call.number) } else { tag::silence() };
        let mut packet = [0; 12 + FRAME];
        let header = rtp_header(call.number, at as u32);
        for (to, from) in packet.iter_mut().zip(header.iter().chain(&payload)) {
            *to = *from;
        }
        for (socket, to) in [(call.near.as_ref(), call.to), (call.far.as_ref(), call.far_to)] {
            if let (Some(socket), Some(to)) = (socket, to) {
                let sent = clock::now();
                let _ = socket.send_to(&packet, to);
                self.observed.rtp_sent += 1;
                if call.sent.is_empty() {
                    call.sent = vec![0; REMEMBERED];
                }
                if let Some(slot) = call.sent.get_mut(call.number as usize % REMEMBERED) {
                    *slot = sent;
                }
                self.observed.marked_sent += u64::from(call.speaks);
            }
        }
        // An absolute schedule; after a long stall nothing is made up for.
        let next = if now > due + 10 * FRAME_EVERY { now + FRAME_EVERY } else { due + FRAME_EVERY };
        self.later(next, Due::Frame(at));
    }

    fn step(&mut self, now: Nanos, due: Nanos, at: usize, step: Step) {
        let Some(call) = self.calls.get_mut(at).filter(|call| call.stage == Stage::Up) else { return };
        let Some(link) = call.link else { return };
        match step {
            Step::CallerBegins => {
                call.interrupts_from = None;
                if call.turn > 0 && model::is_interrupted(call.turn - 1) {
                    call.interrupts_from = Some(call.number.wrapping_add(1));
                    call.cut = Some((call.turn - 1, now));
                    call.spoke_until = now;
                    self.due.push(Reverse((now + LISTEN, Due::Silent(at))));
                }
                call.turn_began = due;
                call.speaks = true;
                call.heard_after = None;
            }
            Step::CallerEnds => call.speaks = false,
            Step::Delta(0) => call.delta_at = Some(now),
            Step::Delta(_) | Step::AgentEnds => {}
        }
        let (turn, began) = (call.turn, call.turn_began);
        let messages = model::messages(step, turn);
        match model::next(step, turn) {
            Some((next, after)) => self.later(due + after, Due::Turn(at, next)),
            None => {
                if let Some(call) = self.calls.get_mut(at) {
                    call.turn += 1;
                }
                self.later(began + model::TURN, Due::Turn(at, Step::CallerBegins));
            }
        }
        for message in messages {
            self.say(link, &message);
        }
    }

    fn say(&mut self, link: usize, message: &str) {
        self.send(link, &websocket::text(message));
    }

    fn send(&mut self, at: usize, bytes: &[u8]) {
        let Some(Some(connection)) = self.connections.get_mut(at) else { return };
        if let Kind::Model { wire, .. } = &mut connection.kind {
            let _ = wire.write(bytes);
        }
        self.flush(at);
    }

    fn flush(&mut self, at: usize) {
        let Some(Some(connection)) = self.connections.get_mut(at) else { return };
        let Kind::Model { wire, .. } = &mut connection.kind else { return };
        match wire.flush(&connection.socket) {
            Ok(true) => {}
            Ok(false) => self.later(clock::now() + MS, Due::Flush(at)),
            Err(_) => self.close(at),
        }
    }

    fn ready(&mut self, token: u64) {
        let at = (token & 0xffff_ffff) as usize;
        match ROLES.get((token >> 32) as usize) {
            Some(Role::Sip) => self.signals(),
            Some(Role::FunctionDoor) => {
                while let Ok((socket, _)) = self.function.accept() {
                    self.connect(socket, Kind::Function);
                }
            }
            Some(Role::ModelDoor) => {
                while let Ok((socket, _)) = self.model.accept() {
                    if let Ok(wire) = Wire::new(self.tls.as_ref()) {
                        self.connect(socket, Kind::Model { wire, open: false, call: 0 });
                    }
                }
            }
            Some(Role::Near) => self.packet(at, false),
            Some(Role::Far) => self.packet(at, true),
            Some(Role::Connection) => self.connection(at),
            None => {}
        }
    }

    fn connect(&mut self, socket: TcpStream, kind: Kind) {
        let free = self.connections.iter().position(Option::is_none);
        let at = free.unwrap_or(self.connections.len());
        let prepared = socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true));
        let added = self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token(Role::Connection, at)));
        if prepared.is_err() || added.is_err() || stamped::enable(&socket).is_err() {
            return;
        }
        let connection = Connection { socket, kind, buffer: Vec::new(), answers: Default::default() };
        match self.connections.get_mut(at) {
            Some(slot) => *slot = Some(connection),
            None => self.connections.push(Some(connection)),
        }
    }

    fn close(&mut self, at: usize) {
        if let Some(slot) = self.connections.get_mut(at) {
            *slot = None;
        }
        if let Some(call) = self.calls.iter_mut().find(|call| call.link == Some(at)) {
            call.link = None;
        }
    }

    fn signals(&mut self) {
        let mut buffer = [0; 8192];
        while let Ok((length, arrived)) = self.receiver.receive(&self.sip, &mut buffer) {
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            match sip::read(&text, self.epoch) {
                Some(Message::Answer { call, status, method, to_tag, media }) => {
                    self.answered(arrived, call, status, method, to_tag, media);
                }
                Some(Message::Request { call, method: "BYE" }) => {
                    let _ = self.sip.send_to(sip::ok(&text).as_bytes(), self.relay);
                    if let Some(known) = self.calls.get_mut(call).filter(|call| call.stage != Stage::Over) {
                        known.stage = Stage::Over;
                        let reason = text.lines().find(|line| line.starts_with("Reason")).unwrap_or_default();
                        self.observed.failed(format!("the relay hung up: {reason}"));
                    }
                }
                Some(Message::Request { .. }) | None => {}
            }
        }
    }

    fn answered(&mut self, arrived: Nanos, at: usize, status: u16, method: &str, to_tag: &str, media: Option<u16>) {
        let Some(call) = self.calls.get_mut(at) else { return };
        match (method, status, call.stage) {
            (_, ..200, _) => {}
            ("INVITE", 200..300, Stage::Inviting) => {
                call.dialog.to_tag = to_tag.to_owned();
                call.to = media.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
                call.stage = Stage::Up;
                self.observed.answer.push(arrived.saturating_sub(call.invited));
                self.observed.calls_answered += 1;
                let (lasts, ack) = (call.lasts, call.dialog.ack());
                let _ = self.sip.send_to(ack.as_bytes(), self.relay);
                let now = clock::now();
                // Spread over the frame and over the turn, however fast the calls came.
                let spread = at as u64 * 7919;
                self.later(now + spread * MS / 10 % FRAME_EVERY, Due::Frame(at));
                match lasts {
                    Some(lasts) => self.later(now + lasts, Due::HangUp(at)),
                    None => {
                        self.later(now + 1500 * MS + spread * MS % model::TURN, Due::Turn(at, Step::CallerBegins));
                    }
                }
            }
            // Sent again: the ACK was lost.
            ("INVITE", 200..300, _) => {
                let _ = self.sip.send_to(call.dialog.ack().as_bytes(), self.relay);
            }
            ("INVITE", _, Stage::Inviting) => {
                call.dialog.to_tag = to_tag.to_owned();
                let _ = self.sip.send_to(call.dialog.ack().as_bytes(), self.relay);
                call.stage = Stage::Over;
                self.observed.failed(format!("INVITE was answered {status}"));
            }
            ("BYE", _, Stage::HangingUp) => {
                call.stage = Stage::Over;
                self.observed.calls_ended += 1;
                if !(200..300).contains(&status) {
                    self.observed.failed(format!("BYE was answered {status}"));
                }
                call.near = None;
            }
            _ => {}
        }
    }

    fn packet(&mut self, at: usize, far: bool) {
        let Some(call) = self.calls.get_mut(at) else { return };
        let Some(socket) = (if far { call.far.as_ref() } else { call.near.as_ref() }) else { return };
        let mut buffer = [0; 512];
        let Ok((length, arrived)) = self.receiver.receive(socket, &mut buffer) else { return };
        let Some((header, payload)) = buffer.get(..length).and_then(<[u8]>::split_first_chunk::<12>) else { return };
        let [_, kind, high, low, ..] = *header;
        self.observed.rtp_received += 1;
        if self.streams_only {
            return;
        }
        let number = u16::from_be_bytes([high, low]);
        if let Some((before, before_at)) = call.last.replace((number, arrived))
            && number == before.wrapping_add(1)
        {
            let off = arrived.saturating_sub(before_at).abs_diff(FRAME_EVERY);
            self.observed.jitter_with_starts.push(off);
            if kind & 0x80 == 0 {
                self.observed.jitter.push(off);
            }
        }
        let Some((turn, place)) = tag::read_agent(payload) else { return };
        if call.cut.is_some_and(|(cut, _)| cut == turn) {
            call.spoke_until = arrived;
        }
        if place == 0
            && turn == call.turn
            && let Some(sent) = call.delta_at.take()
        {
            let after = arrived.saturating_sub(sent);
            self.observed.delta_to_rtp.push(after);
            if let Some(heard_after) = call.heard_after {
                self.observed.media_path.push(after + heard_after);
            }
        }
    }

    fn connection(&mut self, at: usize) {
        let Some(Some(connection)) = self.connections.get_mut(at) else { return };
        match &mut connection.kind {
            Kind::Function => {
                let mut chunk = [0; 16 * 1024];
                match connection.socket.read(&mut chunk) {
                    Ok(length @ 1..) => connection.buffer.extend_from_slice(chunk.get(..length).unwrap_or_default()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    _ => return self.close(at),
                }
                self.requests(at);
            }
            Kind::Model { wire, .. } => {
                let read = wire.read(&connection.socket, &mut self.receiver, &mut connection.buffer);
                match read {
                    Ok((open, arrived)) => {
                        self.messages(at, arrived);
                        self.flush(at);
                        if !open {
                            self.close(at);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => self.close(at),
                }
            }
        }
    }

    /// The session function: every request is answered alike, after a while.
    fn requests(&mut self, at: usize) {
        let Ok(model_url) = self.model_url() else { return };
        loop {
            let Some(Some(connection)) = self.connections.get_mut(at) else { return };
            let Some((path, body, end)) = request(&connection.buffer) else { return };
            let answer = match path.rsplit('/').next() {
                Some("events" | "end" | "tools") => "{}".to_owned(),
                _ => {
                    let body: Value = serde_json::from_slice(body).unwrap_or_default();
                    let call = body.get("call_sid").and_then(Value::as_str).unwrap_or_default();
                    let call = call.rsplit('-').next().unwrap_or_default();
                    format!(
                        r#"{{"callId":"1","resumed":false,"locale":null,"url":"{model_url}?call={call}&model=measured","session":{{"instructions":"Be brief.","tools":[]}}}}"#
                    )
                }
            };
            connection.buffer.drain(..end);
            connection.answers.push_back(answer);
            self.later(clock::now() + FUNCTION_THINKS, Due::Answer(at));
        }
    }

    fn answer(&mut self, at: usize) {
        let Some(Some(connection)) = self.connections.get_mut(at) else { return };
        let Some(body) = connection.answers.pop_front() else { return };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = connection.socket.write_all(head.as_bytes());
    }

    fn messages(&mut self, at: usize, arrived: Nanos) {
        let mut buffer = match self.connections.get_mut(at) {
            Some(Some(connection)) => std::mem::take(&mut connection.buffer),
            _ => return,
        };
        let mut used = 0;
        loop {
            let Some(Some(connection)) = self.connections.get_mut(at) else { return };
            let Kind::Model { open, call, .. } = &mut connection.kind else { return };
            let rest = buffer.get(used..).unwrap_or_default();
            if !*open {
                let Some((key, which, end)) = opening(rest) else { break };
                (*open, *call) = (true, which);
                used += end;
                if let Some(call) = self.calls.get_mut(which) {
                    call.link = Some(at);
                }
                self.send(at, websocket::accept(&key).as_bytes());
                self.say(at, r#"{"type":"session.created","event_id":"event_0","session":{"type":"realtime"}}"#);
                continue;
            }
            let call = *call;
            let Some((received, end)) = websocket::take(rest) else { break };
            used += end;
            match received {
                Received::Text(text) => self.heard(at, call, arrived, &text),
                Received::Ping(payload) => self.send(at, &websocket::pong(&payload)),
                Received::Close => self.send(at, &websocket::close()),
                Received::Other => {}
            }
        }
        buffer.drain(..used);
        if let Some(Some(connection)) = self.connections.get_mut(at) {
            connection.buffer = buffer;
        }
    }

    /// A message to the model.
    fn heard(&mut self, at: usize, call: usize, arrived: Nanos, text: &[u8]) {
        const APPEND: &[u8] = br#"{"type":"input_audio_buffer.append","audio":""#;
        if let Some(rest) = text.strip_prefix(APPEND) {
            let sound = rest.strip_suffix(br#""}"#).unwrap_or_default();
            return self.sound(call, arrived, sound);
        }
        let message: Value = serde_json::from_slice(text).unwrap_or_default();
        match message.get("type").and_then(Value::as_str) {
            Some("session.update") => {
                let session = message.get("session").cloned().unwrap_or_default();
                let answer =
                    serde_json::json!({ "type": "session.updated", "event_id": "event_1", "session": session });
                self.say(at, &answer.to_string());
            }
            Some("response.create") => {
                for message in model::greeting() {
                    self.say(at, &message);
                }
            }
            _ => {}
        }
    }

    fn sound(&mut self, call: usize, arrived: Nanos, base64: &[u8]) {
        use base64::Engine;
        let Ok(sound) = base64::engine::general_purpose::STANDARD.decode(base64) else { return };
        let Some(call) = self.calls.get_mut(call) else { return };
        for frame in sound.chunks(FRAME) {
            let Some(number) = tag::read_caller(frame) else { continue };
            let Some(sent) = call.sent.get(number as usize % REMEMBERED) else { continue };
            if call.number.wrapping_sub(number) < REMEMBERED as u32 {
                let after = arrived.saturating_sub(*sent);
                match call.interrupts_from {
                    Some(from) if number.wrapping_sub(from) < GUARD_FRAMES => {
                        self.observed.rtp_to_websocket_interrupting.push(after);
                    }
                    _ => self.observed.rtp_to_websocket.push(after),
                }
                self.observed.marked_heard += 1;
                call.heard_after = Some(after);
            }
        }
    }
}

fn rtp_header(number: u32, ssrc: u32) -> [u8; 12] {
    let [high, low] = (number as u16).to_be_bytes();
    let [t0, t1, t2, t3] = number.wrapping_mul(FRAME as u32).to_be_bytes();
    let [s0, s1, s2, s3] = (ssrc ^ 0x5a5a_0000).to_be_bytes();
    [0x80, 8, high, low, t0, t1, t2, t3, s0, s1, s2, s3]
}

/// A request that is whole: its path, its body, and where it ends.
fn request(buffer: &[u8]) -> Option<(&str, &[u8], usize)> {
    let head_end = buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(buffer.get(..head_end)?).ok()?;
    let path = head.split(' ').nth(1)?;
    let length = field(head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let end = head_end + length;
    Some((path, buffer.get(head_end..end)?, end))
}

/// A WebSocket's opening request: its key, which call it is for, and where it ends.
fn opening(buffer: &[u8]) -> Option<(String, usize, usize)> {
    let (path, _, end) = request(buffer)?;
    let head = std::str::from_utf8(buffer.get(..end)?).ok()?;
    let call =
        path.split_once("call=").and_then(|(_, rest)| rest.split('&').next()?.parse().ok()).unwrap_or(usize::MAX);
    Some((field(head, "sec-websocket-key")?.to_owned(), call, end))
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Whether the kernel has stamps for what arrives; without them the delays would include the generator's own.
pub fn check() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    stamped::enable(&socket)
}
