//! A telephone: SIP by hand, and RTP.

use std::net::SocketAddr;
use std::time::Duration;

use ihuza_relay::media::rtp::Packet;
use tokio::net::UdpSocket;

use super::SOON;

/// A telephone.
pub struct Caller {
    sip: UdpSocket,
    pub rtp: UdpSocket,
    relay: SocketAddr,
    pub media: Option<SocketAddr>,
    to_tag: String,
    pub call_id: String,
    cseq: u32,
    sent: u16,
}

/// A message of SIP, as far as a telephone in a test needs it.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().take_while(|line| !line.is_empty()).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Caller {
    /// At this address; calls that relay.
    pub(super) async fn new(address: &str, relay: SocketAddr) -> Caller {
        Caller {
            sip: UdpSocket::bind(address).await.unwrap(),
            rtp: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            relay,
            media: None,
            to_tag: String::new(),
            call_id: format!("call-{:08x}", ihuza_relay::shell::call::dice()),
            cseq: 1,
            sent: 0,
        }
    }

    pub fn description(&self, extra: &str) -> String {
        let port = self.rtp.local_addr().unwrap().port();
        format!(
            "v=0\r\no=t 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0 8 101\r\n\
             a=rtpmap:101 telephone-event/8000\r\n{extra}"
        )
    }

    pub async fn send(&self, method: &str, cseq: u32, headers: &str, body: &str) {
        let local = self.sip.local_addr().unwrap();
        let to_tag = if self.to_tag.is_empty() { String::new() } else { format!(";tag={}", self.to_tag) };
        let branch = if method == "CANCEL" { format!("INVITE{cseq}") } else { format!("{method}{cseq}") };
        let text = format!(
            "{method} sip:+250788000100@{relay} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bK{id}{branch}\r\n\
             From: <sip:+250788123456@mtn>;tag=caller\r\nTo: <sip:+250788000100@relay>{to_tag}\r\nCall-ID: {id}\r\n\
             CSeq: {cseq} {cseq_method}\r\nContact: <sip:t@{local}>\r\nMax-Forwards: 70\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len(),
            relay = self.relay,
            id = self.call_id,
            cseq_method = method,
        );
        self.sip.send_to(text.as_bytes(), self.relay).await.unwrap();
    }

    /// Where it takes requests.
    pub fn address(&self) -> SocketAddr {
        self.sip.local_addr().unwrap()
    }

    /// The next message of that kind: a status, or a method.
    pub async fn expect(&mut self, first: &str) -> Reply {
        let mut buffer = vec![0; 8192];
        let mut seen = Vec::new();
        let waited = tokio::time::timeout(SOON, async {
            loop {
                let (length, _) = self.sip.recv_from(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let line = text.lines().next().unwrap_or_default().to_owned();
                let what = line.strip_prefix("SIP/2.0 ").unwrap_or(&line).to_owned();
                if what.starts_with(first) {
                    return text;
                }
                seen.push(line);
            }
        });
        let Ok(text) = waited.await else { panic!("waited for {first:?}, saw {seen:?}") };
        let status = text.strip_prefix("SIP/2.0 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
        Reply { status, text }
    }

    /// The next message, if it is of that kind.
    pub async fn next_of(&mut self, first: &str) -> Option<Reply> {
        let mut buffer = vec![0; 8192];
        let (length, _) = self.sip.recv_from(&mut buffer).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let status = text.strip_prefix("SIP/2.0 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
        text.starts_with(first).then_some(Reply { status, text })
    }

    /// Answers a request of the relay's.
    pub async fn reply(&self, request: &Reply, status: &str) {
        let mut text = format!("SIP/2.0 {status}\r\n");
        for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
            text.push_str(&format!("{name}: {}\r\n", request.header(name).unwrap()));
        }
        text.push_str("Content-Length: 0\r\n\r\n");
        self.sip.send_to(text.as_bytes(), self.relay).await.unwrap();
    }

    /// Tells what became of a REFER.
    pub async fn notify(&mut self, status: &str) {
        let cseq = self.next_cseq();
        let headers = "Event: refer\r\nSubscription-State: active\r\nContent-Type: message/sipfrag\r\n";
        self.send("NOTIFY", cseq, headers, &format!("SIP/2.0 {status}")).await;
        self.expect("200").await;
    }

    pub async fn nothing_comes(&self) {
        let mut buffer = [0; 2048];
        let waited = tokio::time::timeout(Duration::from_millis(300), self.sip.recv_from(&mut buffer)).await;
        assert!(waited.is_err(), "an answer where none should be");
    }

    pub async fn invite(&self, headers: &str, description: &str) {
        let headers = if description.is_empty() {
            headers.to_owned()
        } else {
            format!("{headers}Content-Type: application/sdp\r\n")
        };
        self.send("INVITE", self.cseq, &headers, description).await;
    }

    /// From INVITE to ACK.
    pub async fn connect(&mut self) -> Reply {
        self.invite("", &self.description("")).await;
        let answer = self.expect("200").await;
        self.take(&answer);
        self.send("ACK", self.cseq, "", "").await;
        answer
    }

    pub fn take(&mut self, answer: &Reply) {
        let to = answer.header("To").unwrap();
        self.to_tag = to.split_once("tag=").unwrap().1.to_owned();
        let media = answer.text.lines().find_map(|line| line.strip_prefix("m=audio ")).unwrap();
        let port = media.split(' ').next().unwrap().parse().unwrap();
        self.media = Some(SocketAddr::from(([127, 0, 0, 1], port)));
    }

    pub async fn hang_up(&mut self) {
        self.cseq += 1;
        self.send("BYE", self.cseq, "", "").await;
        self.expect("200").await;
    }

    pub fn next_cseq(&mut self) -> u32 {
        self.cseq += 1;
        self.cseq
    }

    /// Frames of voice, each filled with one byte.
    pub async fn speak(&mut self, byte: u8, frames: usize) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..frames {
            tick.tick().await;
            self.packet(8, u32::from(self.sent) * 160, &[byte; 160]).await;
        }
    }

    /// This sound, in frames of 20 ms.
    pub async fn speak_all(&mut self, sound: &[u8]) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for frame in sound.chunks(160) {
            tick.tick().await;
            self.packet(8, u32::from(self.sent) * 160, frame).await;
        }
    }

    pub async fn packet(&mut self, payload_type: u8, timestamp: u32, payload: &[u8]) {
        let packet = Packet { marker: false, payload_type, sequence_number: self.sent, timestamp, ssrc: 77, payload };
        self.rtp.send_to(&packet.to_bytes(), self.media.unwrap()).await.unwrap();
        self.sent = self.sent.wrapping_add(1);
    }

    /// Listens for that many packets; all of their sound.
    pub async fn listen_to_all(&self, packets: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut buffer = [0; 2048];
        for _ in 0..packets {
            let waited = tokio::time::timeout(SOON, self.rtp.recv_from(&mut buffer)).await;
            let (length, _) = waited.expect("a packet in time").unwrap();
            heard.extend_from_slice(Packet::parse(&buffer[..length]).unwrap().payload);
        }
        heard
    }

    /// Listens for that many packets; a byte of each.
    pub async fn listen(&self, packets: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut buffer = [0; 2048];
        while heard.len() < packets {
            let waited = tokio::time::timeout(SOON, self.rtp.recv_from(&mut buffer)).await;
            let (length, from) = waited.unwrap_or_else(|_| panic!("heard only {} packets", heard.len())).unwrap();
            assert_eq!(Some(from), self.media, "media comes from where it goes to");
            heard.push(Packet::parse(&buffer[..length]).unwrap().payload[3]);
        }
        heard
    }
}
