//! Thousands of broken INVITEs over real UDP: nothing panics, nothing is left behind, and a good call goes on as before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::time::Duration;

use ihuza_relay::shell::call::dice;
use tokio::net::UdpSocket;
use world::{World, until};

const SAMPLE: u32 = 2_000;
const IN_FULL: u32 = 30_000;

/// More under `cargo xtask soak`.
fn count() -> u32 {
    if std::env::var_os("IHUZA_SOAK_MINUTES").is_some() { IN_FULL } else { SAMPLE }
}

fn seed() -> u64 {
    std::env::var("IHUZA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(4475)
}

/// SplitMix64: the same numbers from the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % limit.max(1)
    }
}

/// A sound INVITE of its own dialog.
fn invite(run: u32, n: u32, local: std::net::SocketAddr) -> Vec<u8> {
    let description = "v=0\r\no=t 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 8 101\r\n\
                       a=rtpmap:101 telephone-event/8000\r\na=sendrecv\r\n";
    format!(
        "INVITE sip:+250788000100@relay SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bK{run:x}m{n}\r\n\
         From: \"Keza\" <sip:+250788123456@mtn>;tag=t{n}\r\nTo: <sip:+250788000100@relay>\r\nCall-ID: {run:x}-m{n}\r\n\
         CSeq: 1 INVITE\r\nContact: <sip:t@{local}>\r\nMax-Forwards: 70\r\nSupported: timer\r\nSession-Expires: 1800\r\n\
         Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{description}",
        description.len()
    )
    .into_bytes()
}

/// One to four bytes or pieces are changed, doubled or lost.
fn mutate(dice: &mut Dice, message: &mut Vec<u8>) {
    for _ in 0..=dice.below(4) {
        if message.is_empty() {
            return;
        }
        let at = dice.below(message.len());
        let end = (at + dice.below(12)).min(message.len());
        match dice.below(12) {
            0..=2 => message[at] = dice.below(256) as u8,
            3..=5 => message[at] ^= 1 << dice.below(8),
            6 | 7 => drop(message.drain(at..end)),
            8 | 9 => {
                let piece = message[at..end].to_vec();
                let to = dice.below(message.len());
                message.splice(to..to, piece);
            }
            10 => message.truncate(at.max(1)),
            _ => {
                let words: [&[u8]; 8] = [b"\r\n", b"\r\n\r\n", b";", b"\"", b"<", b"99999999999", b"\0", b"%"];
                message.splice(at..at, words[dice.below(words.len())].iter().copied());
            }
        }
    }
}

/// Acknowledges and ends what was answered by 200, as a telephone would that changed its mind.
async fn hang_up(socket: &UdpSocket, relay: std::net::SocketAddr, answer: &str) {
    if !answer.starts_with("SIP/2.0 200") {
        return;
    }
    let header = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (Some(from), Some(to), Some(id), Some(cseq)) =
        (header("From:"), header("To:"), header("Call-ID:"), header("CSeq:"))
    else {
        return;
    };
    let Some(number) = cseq.strip_suffix(" INVITE").and_then(|number| number.parse::<u32>().ok()) else { return };
    let local = socket.local_addr().unwrap();
    for (method, number) in [("ACK", number), ("BYE", number + 1)] {
        let text = format!(
            "{method} sip:+250788000100@relay SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bK{:x}\r\nFrom: {from}\r\n\
             To: {to}\r\nCall-ID: {id}\r\nCSeq: {number} {method}\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
            dice()
        );
        socket.send_to(text.as_bytes(), relay).await.unwrap();
    }
}

/// A call that is answered; refused ones are tried again.
async fn connected(world: &World) -> world::Caller {
    let tried = tokio::time::timeout(Duration::from_secs(90), async {
        loop {
            let mut caller = world.caller().await;
            caller.invite("", &caller.description("")).await;
            let reply = loop {
                let reply = caller.expect("").await;
                if reply.status >= 200 {
                    break reply;
                }
            };
            if reply.status == 200 {
                caller.take(&reply);
                caller.send("ACK", 1, "", "").await;
                return caller;
            }
            caller.send("ACK", 1, "", "").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    tried.await.expect("the relay takes calls again")
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_calls_leave_nothing_behind_and_a_good_one_goes_on() {
    let world = World::start().await;
    let mut good = world.caller().await;
    good.connect().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut numbers, run) = (Dice(seed()), dice());
    println!("seed {}", seed());
    let mut answered = 0_u32;
    let mut buffer = [0; 16_384];
    for n in 0..count() {
        let mut message = invite(run, n, socket.local_addr().unwrap());
        mutate(&mut numbers, &mut message);
        socket.send_to(&message, world.sip).await.unwrap();
        let quiet = if n % 20 == 19 { Duration::from_millis(20) } else { Duration::ZERO };
        if n % 20 == 19 {
            good.speak(0x52, 1).await;
        }
        while let Ok(Ok((length, _))) = tokio::time::timeout(quiet, socket.recv_from(&mut buffer)).await {
            answered += 1;
            hang_up(&socket, world.sip, &String::from_utf8_lossy(&buffer[..length])).await;
        }
    }
    // Calls whose 200 came late, or whose headers were too broken for a BYE, end by themselves.
    let wait = tokio::time::timeout(Duration::from_secs(90), async {
        loop {
            while let Ok(Ok((length, _))) =
                tokio::time::timeout(Duration::from_millis(100), socket.recv_from(&mut buffer)).await
            {
                hang_up(&socket, world.sip, &String::from_utf8_lossy(&buffer[..length])).await;
            }
            good.speak(0x52, 1).await;
            if world.get("/metrics").await.1.contains("ihuza_relay_calls_running 1\n") {
                return;
            }
        }
    });
    assert!(wait.await.is_ok(), "only the good call is left: {}", world.get("/metrics").await.1);
    println!("counted {} mutated INVITEs", count());
    assert!(answered > count() / 20, "most are sound enough for an answer: {answered}");
    good.speak(0x52, 5).await;
    good.hang_up().await;
    until("the good call has ended as it should", || {
        world.told.to("/end").into_iter().find(|end| end["call_sid"] == good.call_id.as_str())
    })
    .await;
    // Ports rest before they are used again: after very many calls the next one may have to wait.
    let mut next = connected(&world).await;
    next.hang_up().await;
    until("nothing is owed", || (world.journals() == 0).then_some(())).await;
}
