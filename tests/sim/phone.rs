//! A telephone: a SIP user agent over UDP, with sound over RTP both ways in A-law.
//!
//! As a real one it sends a packet every 20 ms as long as the call lasts, silence too, and keeps all that it hears.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::{Context, Result, Trouble};
use crate::runtime;
use crate::speech::Speech;

/// G.711 A-law (RFC 3551), its silence, and how much of it is one packet.
const PAYLOAD_TYPE: u8 = 8;
const SILENCE: u8 = 0xd5;
const PACKET: usize = 160;
const EVERY: Duration = Duration::from_millis(20);
/// Waits between copies of a request that nobody answers (RFC 3261, T1), and how long all of it may take.
const AGAIN: Duration = Duration::from_millis(500);
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// Ten minutes are kept of what is heard.
const MOST_HEARD: usize = 600 * 8000;

/// A call that stands.
pub struct PhoneCall {
    pub call_id: String,
    dialog: Arc<Dialog>,
    ear: Arc<Mutex<Ear>>,
    mouth: Arc<Mutex<VecDeque<u8>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the SIP half knows.
struct Dialog {
    socket: UdpSocket,
    relay: SocketAddr,
    from: String,
    to: String,
    call_id: String,
    tag: String,
    state: Mutex<DialogState>,
}

#[derive(Default)]
struct DialogState {
    to_tag: String,
    cseq: u32,
    /// Statuses that came, with the method of their request.
    answers: Vec<(u16, String)>,
    /// Their BYE, if they hung up; its `Reason`.
    ended: Option<String>,
    /// Where they wanted the call handed over to: `Refer-To`, in order.
    referred: Vec<String>,
}

/// What was heard, on the time line of the sender.
#[derive(Default)]
struct Ear {
    sound: Vec<u8>,
    packets: u32,
    first: Option<u32>,
}

/// Calls `to` by way of the relay at `relay`, as `from`, and waits until it is answered.
pub async fn call(relay: SocketAddr, from: &str, to: &str) -> Result<PhoneCall> {
    let (from, to) = (from.to_owned(), to.to_owned());
    runtime::on(async move {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let socket = bind().await.context("the telephone cannot open a socket for SIP")?;
        let media = Arc::new(bind().await.context("the telephone cannot open a socket for RTP")?);
        let call_id = format!("{}@phone", Uuid::new_v4().simple());
        let tag = Uuid::new_v4().simple().to_string();
        let dialog =
            Arc::new(Dialog { socket, relay, from, to, call_id: call_id.clone(), tag, state: Mutex::default() });
        let port = media.local_addr().context("the telephone has no port for RTP")?.port();
        let answer = dialog.invite(port).await?;
        let there = media_address(&answer).ok_or_else(|| Trouble::new("the answer names no media address"))?;
        let (ear, mouth) = (Arc::new(Mutex::new(Ear::default())), Arc::new(Mutex::new(VecDeque::new())));
        let tasks = vec![
            runtime::spawn(dialog.clone().listen()),
            runtime::spawn(send(media.clone(), there, mouth.clone())),
            runtime::spawn(receive(media, ear.clone())),
        ];
        Ok(PhoneCall { call_id, dialog, ear, mouth, tasks })
    })
    .await
}

impl PhoneCall {
    /// Says it, and returns when the last packet of it is sent.
    pub async fn speak(&self, speech: &Speech) {
        lock(&self.mouth).extend(speech.alaw);
        while !lock(&self.mouth).is_empty() {
            tokio::time::sleep(EVERY).await;
        }
    }

    /// All that was heard: A-law, eight bytes a millisecond, silence where nothing came.
    pub fn heard(&self) -> Vec<u8> {
        lock(&self.ear).sound.clone()
    }

    pub fn heard_ms(&self) -> u64 {
        lock(&self.ear).sound.len() as u64 / 8
    }

    pub fn packets(&self) -> u32 {
        lock(&self.ear).packets
    }

    /// How many milliseconds of this were heard, from its beginning and byte for byte; silence in between does not count.
    /// Nothing if it was not begun.
    pub fn heard_of(&self, speech: &Speech) -> Option<u64> {
        heard_of(&lock(&self.ear).sound, speech.alaw).map(|bytes| bytes as u64 / 8)
    }

    /// Their reason, once they hung up.
    pub fn ended(&self) -> Option<String> {
        lock(&self.dialog.state).ended.clone()
    }

    /// Where they wanted the call handed over to, by REFER: each time it was taken, and told that somebody answers there.
    pub fn referred(&self) -> Vec<String> {
        lock(&self.dialog.state).referred.clone()
    }

    /// BYE, and its answer.
    pub async fn hang_up(&self) -> Result<()> {
        self.dialog.bye().await
    }

    /// All that was heard, as a WAV file.
    pub fn save(&self, file: &Path) -> Result<()> {
        std::fs::write(file, wav(&self.heard())).context(format!("cannot write {}", file.display()))
    }
}

impl Drop for PhoneCall {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Dialog {
    fn request(&self, method: &str, cseq: u32, headers: &str, body: &str) -> Result<String> {
        let here = self.socket.local_addr().context("the telephone has no address")?;
        let to_tag = lock(&self.state).to_tag.clone();
        let to_tag = if to_tag.is_empty() { to_tag } else { format!(";tag={to_tag}") };
        let branch =
            if method == "ACK" { Uuid::new_v4().simple().to_string() } else { format!("{}{method}{cseq}", self.tag) };
        Ok(format!(
            "{method} sip:{to}@{relay} SIP/2.0\r\nVia: SIP/2.0/UDP {here};rport;branch=z9hG4bK{branch}\r\n\
             From: <sip:{from}@mtn>;tag={tag}\r\nTo: <sip:{to}@{relay}>{to_tag}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n\
             Contact: <sip:{from}@{here}>\r\nMax-Forwards: 70\r\nUser-Agent: ihuza-test-phone\r\n{headers}Content-Length: {length}\r\n\r\n{body}",
            to = self.to,
            from = self.from,
            relay = self.relay,
            tag = self.tag,
            call_id = self.call_id,
            length = body.len(),
        ))
    }

    async fn send(&self, text: &str) -> Result<()> {
        self.socket.send_to(text.as_bytes(), self.relay).await.map(drop).context("the telephone cannot send")
    }

    /// From INVITE to ACK; the answer.
    async fn invite(&self, port: u16) -> Result<String> {
        let description = format!(
            "v=0\r\no=phone 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 8 101\r\n\
             a=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=ptime:20\r\n"
        );
        lock(&self.state).cseq = 1;
        let invite = self.request("INVITE", 1, "Content-Type: application/sdp\r\n", &description)?;
        let since = Instant::now();
        let mut buffer = vec![0; 8192];
        let mut ringing = false;
        self.send(&invite).await?;
        while since.elapsed() < ANSWERED_WITHIN {
            let Ok(received) = tokio::time::timeout(AGAIN, self.socket.recv_from(&mut buffer)).await else {
                if !ringing {
                    self.send(&invite).await?;
                }
                continue;
            };
            let (length, _) = received.context("the telephone cannot receive")?;
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            match status(&text) {
                Some(100..=199) => ringing = true,
                Some(200..=299) => {
                    let tag = header(&text, "To").and_then(|to| to.split_once("tag=")).map(|(_, tag)| tag.to_owned());
                    lock(&self.state).to_tag = tag.ok_or_else(|| Trouble::new("the answer has no tag"))?;
                    self.acknowledge().await?;
                    return Ok(text);
                }
                Some(refused) => {
                    self.acknowledge().await?;
                    return Err(Trouble::new(format!("the call was refused with {refused}")));
                }
                None => {}
            }
        }
        Err(Trouble::new(format!("nobody answered the call within {ANSWERED_WITHIN:?}")))
    }

    async fn acknowledge(&self) -> Result<()> {
        let ack = self.request("ACK", 1, "", "")?;
        self.send(&ack).await
    }

    /// Whatever comes while the call stands.
    async fn listen(self: Arc<Self>) {
        let mut buffer = vec![0; 8192];
        while let Ok((length, _)) = self.socket.recv_from(&mut buffer).await {
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            let method = header(&text, "CSeq").and_then(|cseq| cseq.split(' ').next_back()).unwrap_or_default();
            match status(&text) {
                // Our ACK was lost.
                Some(200..=299) if method == "INVITE" => drop(self.acknowledge().await),
                Some(status) => lock(&self.state).answers.push((status, method.to_owned())),
                None if text.starts_with("ACK ") => {}
                // RFC 3515, section 2.4: taken, and told what became of it.
                None if text.starts_with("REFER ") => {
                    let to = header(&text, "Refer-To").unwrap_or_default().to_owned();
                    let cseq = {
                        let mut state = lock(&self.state);
                        if !state.referred.contains(&to) {
                            state.referred.push(to);
                        }
                        state.cseq += 1;
                        state.cseq
                    };
                    let _ = self.send(&answered(&text, "202 Accepted")).await;
                    let told = "Event: refer\r\nSubscription-State: terminated;reason=noresource\r\nContent-Type: message/sipfrag;version=2.0\r\n";
                    if let Ok(notify) = self.request("NOTIFY", cseq, told, "SIP/2.0 200 OK\r\n") {
                        let _ = self.send(&notify).await;
                    }
                }
                None => {
                    if text.starts_with("BYE ") {
                        let reason = header(&text, "Reason").unwrap_or_default().to_owned();
                        lock(&self.state).ended = Some(reason);
                    }
                    let _ = self.send(&answered(&text, "200 OK")).await;
                }
            }
        }
    }

    async fn bye(&self) -> Result<()> {
        let cseq = {
            let mut state = lock(&self.state);
            state.cseq += 1;
            state.cseq
        };
        let bye = self.request("BYE", cseq, "", "")?;
        let since = Instant::now();
        while since.elapsed() < ANSWERED_WITHIN {
            self.send(&bye).await?;
            let sent = Instant::now();
            while sent.elapsed() < AGAIN {
                if lock(&self.state).answers.iter().any(|(_, method)| method == "BYE") {
                    return Ok(());
                }
                tokio::time::sleep(EVERY).await;
            }
        }
        Err(Trouble::new("nobody answered the BYE"))
    }
}

/// The answer to a request within the call.
fn answered(request: &str, status: &str) -> String {
    let mut text = format!("SIP/2.0 {status}\r\n");
    for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
        for value in headers(request, name) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str("Content-Length: 0\r\n\r\n");
    text
}

fn status(text: &str) -> Option<u16> {
    text.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()
}

fn headers<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = text.lines().skip(1).take_while(|line| !line.is_empty());
    lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn header<'a>(text: &'a str, name: &'a str) -> Option<&'a str> {
    headers(text, name).next()
}

fn media_address(answer: &str) -> Option<SocketAddr> {
    let host = answer.lines().find_map(|line| line.strip_prefix("c=IN IP4 "))?.trim().parse().ok()?;
    let port = answer.lines().find_map(|line| line.strip_prefix("m=audio "))?.split(' ').next()?.parse().ok()?;
    Some(SocketAddr::new(host, port))
}

/// A packet every 20 ms: what is to be said, else silence.
async fn send(socket: Arc<UdpSocket>, there: SocketAddr, mouth: Arc<Mutex<VecDeque<u8>>>) {
    let ssrc = (Uuid::new_v4().as_u128() as u32).to_be_bytes();
    let mut ticks = tokio::time::interval(EVERY);
    for sent in 0_u32.. {
        ticks.tick().await;
        let mut packet = Vec::with_capacity(12 + PACKET);
        packet.extend([0x80, PAYLOAD_TYPE | if sent == 0 { 0x80 } else { 0 }]);
        packet.extend((sent as u16).to_be_bytes());
        packet.extend(sent.wrapping_mul(PACKET as u32).to_be_bytes());
        packet.extend(ssrc);
        {
            let mut mouth = lock(&mouth);
            let some = mouth.len().min(PACKET);
            packet.extend(mouth.drain(..some));
        }
        packet.resize(12 + PACKET, SILENCE);
        let _ = socket.send_to(&packet, there).await;
    }
}

async fn receive(socket: Arc<UdpSocket>, ear: Arc<Mutex<Ear>>) {
    let mut buffer = [0; 2048];
    while let Ok((length, _)) = socket.recv_from(&mut buffer).await {
        if let Some(packet) = buffer.get(..length) {
            lock(&ear).hear(packet);
        }
    }
}

impl Ear {
    fn hear(&mut self, packet: &[u8]) -> Option<()> {
        let (head, payload) = packet.split_at_checked(12)?;
        if head.first()? >> 6 != 2 || head.get(1)? & 0x7f != PAYLOAD_TYPE {
            return None;
        }
        let timestamp = u32::from_be_bytes(head.get(4..8)?.try_into().ok()?);
        let at = timestamp.wrapping_sub(*self.first.get_or_insert(timestamp)) as usize;
        if at + payload.len() > MOST_HEARD {
            return None;
        }
        if self.sound.len() < at + payload.len() {
            self.sound.resize(at + payload.len(), SILENCE);
        }
        self.sound.get_mut(at..at + payload.len())?.copy_from_slice(payload);
        self.packets += 1;
        Some(())
    }
}

/// How many bytes of `speech` stand in `sound`, from its beginning. Silence may have come between them, as on a machine that
/// did not keep up for a moment.
fn heard_of(sound: &[u8], speech: &[u8]) -> Option<usize> {
    // A packet is enough to know it by; behind it there may be silence already.
    const KNOWN_BY: usize = PACKET;
    // Half a second.
    const MOST_SILENCE: usize = 4000;
    let beginning = speech.get(..KNOWN_BY)?;
    let at = sound.windows(KNOWN_BY).position(|window| window == beginning)?;
    let mut heard = sound.get(at..)?.iter().peekable();
    let mut silence = 0;
    let same = speech.iter().take_while(|said| {
        while heard.peek().is_some_and(|heard| heard != said && **heard == SILENCE) && silence < MOST_SILENCE {
            silence += 1;
            heard.next();
        }
        heard.next().is_some_and(|heard| heard == *said)
    });
    Some(same.count())
}

/// A WAV file of A-law at 8 kHz (RIFF, format 6).
fn wav(sound: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(58 + sound.len());
    let size = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
    file.extend(b"RIFF");
    file.extend(size(50 + sound.len()));
    file.extend(b"WAVEfmt ");
    file.extend(size(18));
    // Format, channels, samples a second, bytes a second, bytes a sample, bits a sample, size of what follows: nothing.
    file.extend([6, 0, 1, 0]);
    file.extend(size(8000));
    file.extend(size(8000));
    file.extend([1, 0, 8, 0, 0, 0]);
    file.extend(b"fact");
    file.extend(size(4));
    file.extend(size(sound.len()));
    file.extend(b"data");
    file.extend(size(sound.len()));
    file.extend(sound);
    file
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speech::{AGENT_LOOKING, AGENT_PARKING};

    #[test]
    fn what_was_heard_of_a_recording_is_known_to_the_byte() {
        let sound =
            [&vec![SILENCE; 3000], AGENT_LOOKING.alaw, &AGENT_PARKING.alaw[..12_000], &vec![0x11; 500]].concat();
        assert_eq!(heard_of(&sound, AGENT_LOOKING.alaw), Some(AGENT_LOOKING.alaw.len()));
        assert_eq!(heard_of(&sound, AGENT_PARKING.alaw), Some(12_000));
        assert_eq!(heard_of(&sound[..9000], AGENT_PARKING.alaw), None);
        let late = [&AGENT_PARKING.alaw[..2000], &vec![SILENCE; 320], &AGENT_PARKING.alaw[2000..]].concat();
        assert_eq!(heard_of(&late, AGENT_PARKING.alaw), Some(AGENT_PARKING.alaw.len()));
        let soon = [&AGENT_PARKING.alaw[..160], &vec![SILENCE; 320], &AGENT_PARKING.alaw[160..]].concat();
        assert_eq!(heard_of(&soon, AGENT_PARKING.alaw), Some(AGENT_PARKING.alaw.len()));
        let lost = [&AGENT_PARKING.alaw[..2000], &vec![SILENCE; 320], &AGENT_PARKING.alaw[2320..]].concat();
        assert!((2000..2340).contains(&heard_of(&lost, AGENT_PARKING.alaw).unwrap()), "what is lost is not heard");
    }

    #[test]
    fn packets_are_laid_where_their_timestamps_say() {
        let mut ear = Ear::default();
        let packet = |timestamp: u32, byte: u8| {
            let mut packet = vec![0x80, 8, 0, 0];
            packet.extend(timestamp.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend([byte; 160]);
            packet
        };
        let start = u32::MAX - 100;
        for (n, byte) in [(0, 1), (3, 4), (1, 2)] {
            assert!(ear.hear(&packet(start.wrapping_add(n * 160), byte)).is_some());
        }
        assert!(ear.hear(&[0x80; 5]).is_none() && ear.hear(&packet(start.wrapping_sub(160), 9)).is_none());
        let each: Vec<u8> = ear.sound.chunks(160).map(|chunk| chunk[0]).collect();
        assert_eq!((each, ear.packets), (vec![1, 2, SILENCE, 4], 3));
    }

    #[test]
    fn a_file_says_how_long_it_is() {
        let file = wav(&[SILENCE; 80]);
        assert_eq!(file.len(), 58 + 80);
        assert_eq!(file[4..8], 130_u32.to_le_bytes());
        assert_eq!((&file[..4], &file[8..16], &file[50..54]), (&b"RIFF"[..], &b"WAVEfmt "[..], &b"data"[..]));
    }
}
