//! Somebody whom the relay calls: the trunk and the telephone behind it, in one.

use std::net::SocketAddr;
use std::time::Duration;

use ihuza_relay::config::TrunkOutbound;
use ihuza_relay::media::rtp::Packet;
use serde_json::Value;
use tokio::net::UdpSocket;

use super::{Reply, SOON, World, peer};

/// The number of the telephone.
pub const NUMBER: &str = "+250788123456";

pub struct Callee {
    sip: UdpSocket,
    pub rtp: UdpSocket,
    relay: SocketAddr,
    /// Where the relay takes its media.
    media: Option<SocketAddr>,
    /// Of the codec that it speaks.
    pub payload_type: u8,
    sent: u16,
}

impl World {
    /// A relay, not started yet, that may place calls on its first trunk, and whoever is called there.
    pub async fn placing() -> (World, Callee) {
        let mut world = World::without_relay().await;
        let sip = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let rtp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let trunk = &mut world.config.trunks[0];
        trunk.peer = Some(peer(sip.local_addr().unwrap()));
        trunk.qualify_seconds = 3600;
        let rules: TrunkOutbound = toml::from_str(
            r#"
            caller = "+250788000100"
            prefixes = ["+250788"]
            daily_budget = "10000"
            prices = [{ prefix = "+250", per_minute = "15" }]
            "#,
        )
        .unwrap();
        trunk.outbound = Some(rules);
        world.config.outbound = Some(toml::from_str("key_env = \"CALLS_KEY\"\ncalls_per_minute = 1000").unwrap());
        let callee = Callee { sip, rtp, relay: world.sip, media: None, payload_type: 8, sent: 0 };
        (world, callee)
    }

    /// A request to `/calls`, with the key that it wants.
    pub async fn calls(&self, method: &str, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let client = reqwest::Client::new();
        let request = client
            .request(method.parse().unwrap(), format!("http://{}/calls{path}", self.http))
            .bearer_auth("calls-key")
            .header("Idempotency-Key", key)
            .json(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// A call as it is shown, once it is in that state.
    pub async fn placed_call(&self, id: &str, status: &str) -> Value {
        let seen = async {
            loop {
                let (code, call) = self.calls("GET", &format!("/{id}"), "", &Value::Null).await;
                assert_eq!(code, 200, "{call}");
                if call["status"] == status {
                    return call;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, seen).await.unwrap_or_else(|_| panic!("the call is never {status}"))
    }
}

impl Callee {
    /// The next message of that kind. Questions whether it is there are answered meanwhile.
    pub async fn expect(&mut self, first: &str) -> Reply {
        self.expect_within(first, SOON).await
    }

    pub async fn expect_within(&mut self, first: &str, within: Duration) -> Reply {
        let mut seen = Vec::new();
        let waited = tokio::time::timeout(within, async {
            loop {
                let reply = self.next().await;
                let line = reply.text.lines().next().unwrap_or_default().to_owned();
                if line.strip_prefix("SIP/2.0 ").unwrap_or(&line).starts_with(first) {
                    return reply;
                }
                if line.starts_with("OPTIONS") {
                    self.respond(&reply, "200 OK", "").await;
                }
                seen.push(line);
            }
        });
        let Ok(reply) = waited.await else { panic!("waited for {first:?}, saw {seen:?}") };
        reply
    }

    async fn next(&self) -> Reply {
        let mut buffer = vec![0; 8192];
        let (length, _) = self.sip.recv_from(&mut buffer).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let status = text.strip_prefix("SIP/2.0 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
        Reply { status, text }
    }

    /// Whether a message of that kind comes within a second.
    pub async fn hears_nothing_of(&mut self, first: &str) {
        let heard = async { while !self.next().await.text.starts_with(first) {} };
        assert!(tokio::time::timeout(Duration::from_secs(1), heard).await.is_err(), "{first} came");
    }

    /// Answers a request; with a body it is a description.
    pub async fn respond(&self, request: &Reply, status: &str, body: &str) {
        self.respond_with(request, status, "", body).await;
    }

    pub async fn respond_with(&self, request: &Reply, status: &str, headers: &str, body: &str) {
        let local = self.sip.local_addr().unwrap();
        let mut text = format!("SIP/2.0 {status}\r\n");
        for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
            let value = request.header(name).unwrap();
            let tag =
                if name == "To" && !value.contains("tag=") && !status.starts_with("100") { ";tag=callee" } else { "" };
            text.push_str(&format!("{name}: {value}{tag}\r\n"));
        }
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        text.push_str(&format!(
            "Contact: <sip:callee@{local}>\r\n{headers}{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        self.sip.send_to(text.as_bytes(), self.relay).await.unwrap();
    }

    /// Answers the telephone; the ACK is awaited.
    pub async fn pick_up(&mut self, invite: &Reply) {
        self.take(invite);
        self.respond(invite, "200 OK", &self.description()).await;
        self.expect("ACK").await;
    }

    /// Notes where the relay takes its media.
    pub fn take(&mut self, invite: &Reply) {
        let media = invite.text.lines().find_map(|line| line.strip_prefix("m=audio ")).unwrap();
        let port = media.split(' ').next().unwrap().parse().unwrap();
        self.media = Some(SocketAddr::from(([127, 0, 0, 1], port)));
    }

    pub fn description(&self) -> String {
        let port = self.rtp.local_addr().unwrap().port();
        format!(
            "v=0\r\no=t 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 8 101\r\n\
             a=rtpmap:101 telephone-event/8000\r\n"
        )
    }

    /// A request within the dialog that an INVITE of the relay's opened.
    pub async fn send(&self, method: &str, cseq: u32, invite: &Reply, headers: &str, body: &str) {
        let local = self.sip.local_addr().unwrap();
        let text = format!(
            "{method} sip:ihuza@{relay} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bKcallee{method}{cseq}\r\n\
             From: {from};tag=callee\r\nTo: {to}\r\nCall-ID: {id}\r\nCSeq: {cseq} {method}\r\nContact: <sip:callee@{local}>\r\n\
             Max-Forwards: 70\r\n{headers}Content-Length: {length}\r\n\r\n{body}",
            relay = self.relay,
            from = invite.header("To").unwrap(),
            to = invite.header("From").unwrap(),
            id = invite.header("Call-ID").unwrap(),
            length = body.len(),
        );
        self.sip.send_to(text.as_bytes(), self.relay).await.unwrap();
    }

    pub async fn hang_up(&mut self, invite: &Reply) {
        self.send("BYE", 1, invite, "", "").await;
        self.expect("200").await;
    }

    /// Frames of voice, each filled with one byte.
    pub async fn speak(&mut self, byte: u8, frames: usize) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..frames {
            tick.tick().await;
            let timestamp = u32::from(self.sent) * 160;
            let packet = Packet {
                marker: false,
                payload_type: self.payload_type,
                sequence_number: self.sent,
                timestamp,
                ssrc: 78,
                payload: &[byte; 160],
            };
            self.rtp.send_to(&packet.to_bytes(), self.media.unwrap()).await.unwrap();
            self.sent = self.sent.wrapping_add(1);
        }
    }

    /// Listens until that byte is heard.
    pub async fn listen_for(&self, byte: u8) {
        let mut buffer = [0; 2048];
        let heard = async {
            loop {
                let (length, _) = self.rtp.recv_from(&mut buffer).await.unwrap();
                if Packet::parse(&buffer[..length]).unwrap().payload[3] == byte {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, heard).await.unwrap_or_else(|_| panic!("{byte:#x} is never heard"));
    }
}
