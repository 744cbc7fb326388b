//! What a trunk may do with a call, and what the network does to it: each over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::sync::Arc;
use std::time::Duration;

use ihuza_relay::config::Tls;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use world::{Caller, SOON, World, base64, until};

const SDP: &str = "Content-Type: application/sdp\r\n";

async fn ready(world: &World) {
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
}

async fn end(world: &World) -> Value {
    until("the end is told", || world.told.to("/end").pop()).await
}

/// How many frames of that byte the model has heard.
fn heard(world: &World, byte: u8) -> usize {
    let frame = base64(&[byte; 160]);
    world.model.heard.lock().unwrap().iter().filter(|audio| **audio == frame).count()
}

async fn hears(world: &World, byte: u8) {
    until("the model hears the caller", || (heard(world, byte) >= 10).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_comes_twice_is_one_call() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    for _ in 0..3 {
        caller.invite("", &caller.description("")).await;
    }
    let answer = caller.expect("200").await;
    caller.take(&answer);
    caller.send("ACK", 1, "", "").await;
    caller.hang_up().await;
    end(&world).await;
    assert_eq!((world.told.to("/openai-realtime").len(), world.told.to("/end").len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_info_requests_are_understood() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    for (kind, body) in [("dtmf-relay", "Signal=5\r\nDuration=160\r\n"), ("dtmf", "7")] {
        let cseq = caller.next_cseq();
        caller.send("INFO", cseq, &format!("Content-Type: application/{kind}\r\n"), body).await;
        caller.expect("200").await;
    }
    until("the keys are told", || {
        let messages = world.model.messages.lock().unwrap();
        messages.iter().any(|message| message.to_string().contains("pressed 5 7 on the keypad")).then_some(())
    })
    .await;
    caller.hang_up().await;
    end(&world).await;
    assert_eq!(world.told.kinds().iter().filter(|kind| *kind == "digit").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_hold_the_model_hears_nothing_and_afterwards_it_hears_again() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    caller.speak(0x52, 20).await;
    hears(&world, 0x52).await;
    for (direction, answered) in [("sendonly", "recvonly"), ("inactive", "inactive")] {
        let cseq = caller.next_cseq();
        caller.send("INVITE", cseq, SDP, &caller.description(&format!("a={direction}\r\n"))).await;
        let held = caller.expect("200").await;
        assert!(held.text.contains(&format!("a={answered}")), "{}", held.text);
        caller.send("ACK", cseq, "", "").await;
    }
    caller.speak(0x53, 20).await;
    let cseq = caller.next_cseq();
    caller.send("INVITE", cseq, SDP, &caller.description("a=sendrecv\r\n")).await;
    let resumed = caller.expect("200").await;
    assert!(resumed.text.contains("a=sendrecv"), "{}", resumed.text);
    caller.send("ACK", cseq, "", "").await;
    caller.speak(0x54, 30).await;
    hears(&world, 0x54).await;
    assert_eq!(heard(&world, 0x53), 0, "music on hold is not for the model");
    caller.hang_up().await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn media_moves_to_the_address_of_a_new_offer() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    caller.speak(0x52, 20).await;
    hears(&world, 0x52).await;
    caller.rtp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let cseq = caller.next_cseq();
    caller.send("INVITE", cseq, SDP, &caller.description("")).await;
    let answer = caller.expect("200").await;
    caller.send("ACK", cseq, "", "").await;
    let port = caller.media.unwrap().port();
    assert!(answer.text.contains(&format!("m=audio {port} ")), "our own address stays: {}", answer.text);
    caller.speak(0x55, 30).await;
    hears(&world, 0x55).await;
    world.model.speak("r1", "here", 200);
    let listened = async { while caller.listen(1).await != [0x31] {} };
    tokio::time::timeout(SOON, listened).await.expect("the agent is heard at the new address");
    caller.hang_up().await;
    end(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_re_invite_without_an_offer_gets_ours_and_its_answer_counts() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    let first = caller.connect().await;
    ready(&world).await;
    caller.rtp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let cseq = caller.next_cseq();
    caller.send("INVITE", cseq, "", "").await;
    let offer = caller.expect("200").await;
    let session =
        |text: &str| text.lines().find(|line| line.starts_with("o=")).unwrap().split(' ').nth(1).unwrap().to_owned();
    assert_eq!(session(&offer.text), session(&first.text));
    assert!(offer.text.contains("RTP/AVP 8 101"), "{}", offer.text);
    caller.send("ACK", cseq, SDP, &caller.description("").replace("0 8 101", "8 101")).await;
    let listened = async {
        let mut heard = vec![0; 2048];
        caller.rtp.recv_from(&mut heard).await.unwrap();
    };
    tokio::time::timeout(SOON, listened).await.expect("media comes to the address in the ACK");
    caller.hang_up().await;
    end(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_cannot_be_used_leaves_the_call_as_it_was() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    let cseq = caller.next_cseq();
    caller.send("INVITE", cseq, SDP, &caller.description("").replace("0 8 101", "18")).await;
    caller.expect("488").await;
    caller.send("ACK", cseq, "", "").await;
    let cseq = caller.next_cseq();
    caller.send("UPDATE", cseq, SDP, &caller.description("").replace("0 8 101", "18")).await;
    caller.expect("488").await;
    caller.speak(0x52, 20).await;
    hears(&world, 0x52).await;
    caller.hang_up().await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_of_the_session_is_answered_with_the_timer() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    let cseq = caller.next_cseq();
    caller.send("UPDATE", cseq, "Supported: timer\r\nSession-Expires: 600;refresher=uac\r\n", "").await;
    let refreshed = caller.expect("200").await;
    assert_eq!(
        (refreshed.header("Session-Expires"), refreshed.header("Require"), refreshed.header("Content-Length")),
        (Some("600;refresher=uac"), Some("timer"), Some("0"))
    );
    let cseq = caller.next_cseq();
    caller.send("UPDATE", cseq, "Supported: timer\r\nSession-Expires: 60\r\n", "").await;
    assert_eq!(caller.expect("422").await.header("Min-SE"), Some("90"));
    let cseq = caller.next_cseq();
    caller.send("OPTIONS", cseq, "", "").await;
    caller.expect("200").await;
    caller.hang_up().await;
    end(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_the_trunk_refuses_leaves_the_call_to_the_agent() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    let call = json!({ "type": "function_call", "call_id": "t1", "name": "transfer_to_human", "arguments": "{}" });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(json!({ "type": "response.output_item.done", "item": call }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } }));
    let refer = caller.expect("REFER").await;
    caller.reply(&refer, "603 Decline").await;
    until("the model is told", || {
        let messages = world.model.messages.lock().unwrap();
        messages.iter().any(|message| message["item"]["output"] == "{\"status\":\"failed\"}").then_some(())
    })
    .await;
    caller.hang_up().await;
    end(&world).await;
    let told = world.told.events().into_iter().find(|event| event["type"] == "transferred").unwrap();
    assert_eq!((&told["outcome"], &told["status"]), (&json!("failed"), &json!(603)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_is_sent_again_until_it_is_acknowledged() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.invite("", &caller.description("")).await;
    for _ in 0..3 {
        let answer = caller.expect("200").await;
        caller.take(&answer);
    }
    caller.send("ACK", 1, "", "").await;
    ready(&world).await;
    world.model.speak("r1", "hello", 200);
    let listened = async { while caller.listen(1).await != [0x31] {} };
    tokio::time::timeout(SOON, listened).await.expect("the call goes on");
    caller.hang_up().await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_crosses_the_answer_cancels_nothing() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.invite("", &caller.description("")).await;
    let answer = caller.expect("200").await;
    // Sent before the answer was seen: without its tag.
    caller.send("CANCEL", 1, "", "").await;
    caller.take(&answer);
    caller.send("ACK", 1, "", "").await;
    ready(&world).await;
    caller.speak(0x52, 20).await;
    hears(&world, 0x52).await;
    caller.hang_up().await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], world.told.to("/end").len()), (&json!("caller_hangup"), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_whose_answer_was_lost_is_answered_again_and_ends_the_call_once() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    let cseq = caller.next_cseq();
    caller.send("BYE", cseq, "", "").await;
    caller.expect("200").await;
    // Sent again as a telephone does that heard nothing: after half a second, then after twice that (RFC 3261 §17.1.2.2).
    let mut answered = false;
    for wait_ms in [500, 1000, 2000, 4000, 4000] {
        let wait = Duration::from_millis(wait_ms);
        tokio::time::sleep(wait).await;
        caller.send("BYE", cseq, "", "").await;
        answered = tokio::time::timeout(wait, caller.expect("200")).await.is_ok();
        if answered {
            break;
        }
    }
    assert!(answered, "nobody says that the call is over");
    assert_eq!(end(&world).await["cause"], "caller_hangup");
    assert_eq!(world.told.kinds().iter().filter(|kind| *kind == "ended").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_of_ours_that_was_lost_is_sent_again_and_the_record_does_not_wait() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    caller.connect().await;
    ready(&world).await;
    world.model.say(json!({ "type": "response.output_item.done", "item": { "type": "function_call", "call_id": "t1", "name": "end_call", "arguments": "{}" } }));
    world.model.speak("r1", "goodbye", 100);
    caller.expect("BYE").await;
    assert_eq!(end(&world).await["cause"], "agent_hangup");
    let again = caller.expect("BYE").await;
    caller.reply(&again, "200 OK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_is_gone_without_a_word_is_noticed_by_the_silence() {
    let mut world = World::without_relay().await;
    world.begin(|config| config.media.silence_limit_s = 2).await;
    let mut caller = world.caller().await;
    caller.connect().await;
    caller.speak(0x52, 5).await;
    let bye = caller.expect("BYE").await;
    assert_eq!(bye.header("Reason"), Some("Q.850;cause=27"));
    assert_eq!(end(&world).await["cause"], "media_lost");
}

/// A telephone on a stream: sound still goes by UDP.
struct Line<S> {
    stream: S,
    transport: &'static str,
    read: Vec<u8>,
    to_tag: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    async fn send(&mut self, method: &str, cseq: u32, headers: &str, body: &str) {
        let text = format!(
            "{method} sip:+250788000100@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/{transport} 127.0.0.1:5999;branch=z9hG4bK{transport}{method}{cseq}\r\n\
             From: <sip:+250788123456@mtn>;tag=caller\r\nTo: <sip:+250788000100@relay>{tag}\r\nCall-ID: over-{transport}\r\n\
             CSeq: {cseq} {method}\r\nContact: <sip:t@127.0.0.1:5999;transport={lower}>\r\nMax-Forwards: 70\r\n{headers}Content-Length: {length}\r\n\r\n{body}",
            transport = self.transport,
            lower = self.transport.to_lowercase(),
            tag = self.to_tag,
            length = body.len(),
        );
        // In two pieces: a stream knows no messages.
        let (first, rest) = text.split_at(text.len() / 2);
        for piece in [first, rest] {
            self.stream.write_all(piece.as_bytes()).await.unwrap();
            self.stream.flush().await.unwrap();
        }
    }

    async fn expect(&mut self, first: &str) -> String {
        let found = async {
            loop {
                let message = self.message().await;
                if message.starts_with(first) {
                    return message;
                }
            }
        };
        tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("{first} never comes"))
    }

    async fn message(&mut self) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.read).into_owned();
            if let Some((head, rest)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
                let length: usize = length.trim().parse().unwrap();
                if rest.len() >= length {
                    self.read.drain(..head.len() + 4 + length);
                    return format!("{head}\r\n\r\n{}", &rest[..length]);
                }
            }
            assert!(self.stream.read_buf(&mut self.read).await.unwrap() > 0, "the line is cut");
        }
    }
}

/// A whole call with a key and a hold over a stream.
async fn talks(world: &World, transport: &'static str, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut line = Line { stream, transport, read: Vec::new(), to_tag: String::new() };
    let mut sound: Caller = world.caller().await;
    line.send("OPTIONS", 1, "", "").await;
    line.expect("SIP/2.0 200").await;
    line.send("INVITE", 2, SDP, &sound.description("")).await;
    line.expect("SIP/2.0 180").await;
    let answer = line.expect("SIP/2.0 200").await;
    let contact = answer.lines().find(|line| line.starts_with("Contact:")).unwrap();
    assert!(contact.to_lowercase().contains(&format!("transport={}", transport.to_lowercase())), "{answer}");
    let to = answer.lines().find(|line| line.starts_with("To:")).unwrap();
    line.to_tag = format!(";tag={}", to.split_once("tag=").unwrap().1);
    sound.take(&world::Reply { status: 200, text: format!("To: x;tag=x\n{answer}") });
    line.send("ACK", 2, "", "").await;
    ready(world).await;
    sound.speak(0x52, 20).await;
    hears(world, 0x52).await;
    line.send("INFO", 3, "Content-Type: application/dtmf-relay\r\n", "Signal=9\r\n").await;
    line.expect("SIP/2.0 200").await;
    line.send("INVITE", 4, SDP, &sound.description("a=sendonly\r\n")).await;
    assert!(line.expect("SIP/2.0 200").await.contains("a=recvonly"));
    line.send("ACK", 4, "", "").await;
    line.send("BYE", 5, "", "").await;
    line.expect("SIP/2.0 200").await;
    let end = end(world).await;
    assert_eq!((&end["cause"], &end["call_sid"]), (&json!("caller_hangup"), &json!(format!("over-{transport}"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_may_use_tcp() {
    let world = World::start().await;
    let stream = TcpStream::connect(world.sip).await.unwrap();
    talks(&world, "TCP", stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_may_use_tls() {
    let mut world = World::without_relay().await;
    let listen = world::free_address();
    let file = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/world").join(name);
    let tls = Tls { listen, certificate: file("tls.crt"), key: file("tls.key") };
    world.begin(|config| config.sip.tls = Some(tls)).await;
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    let certificate = std::fs::read(file("tls.crt")).unwrap();
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    roots.add(tokio_rustls::rustls::pki_types::CertificateDer::from_pem_slice(&certificate).unwrap()).unwrap();
    let config = tokio_rustls::rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(listen).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    talks(&world, "TLS", stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_port_is_taken_does_not_start() {
    let world = World::without_relay().await;
    let _taken = std::net::TcpListener::bind(world.sip).unwrap();
    let refused = ihuza_relay::shell::relay::Relay::start(world.config.clone(), world::secret).await.err().unwrap();
    assert!(refused.to_string().contains(&format!("cannot listen for SIP on {}", world.sip)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_on_a_stream_is_not_served() {
    let world = World::start().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(world.sip).await.unwrap();
    let _ = stream.write_all(b"OPTIONS sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.9;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n").await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty(), "{read:?}: {}", String::from_utf8_lossy(&answer));
}
