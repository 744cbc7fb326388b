//! Calls over a network that misbehaves, between the caller and a real relay: what the model is given, and that the call
//! goes on. The exact replays of the same faults are `src/media/session/tests/faults.rs`; here time is real, so that only
//! what a busy machine cannot change is asserted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ihuza_relay::media::g711::Law;
use ihuza_relay::media::rtp::Packet;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use world::{Caller, World, from_base64, until};

/// Even dice (SplitMix64, public domain).
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % sides
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

/// What becomes of a packet of the caller's: copies of it, each so late; and by which of the two ports they leave.
struct Fate {
    late_ms: Vec<u64>,
    moved: bool,
}

impl Fate {
    fn of(late_ms: Vec<u64>) -> Fate {
        Fate { late_ms, moved: false }
    }
}

/// A network between a caller and the relay, with a translator of addresses in it.
struct Network {
    /// What the caller takes for the relay.
    inside: SocketAddr,
    /// What the relay takes for the caller.
    outside: SocketAddr,
    relay: Arc<Mutex<Option<SocketAddr>>>,
    /// Packets that went on to the relay.
    carried: Arc<Mutex<u64>>,
}

impl Network {
    async fn start(mut fate: impl FnMut(u64) -> Fate + Send + 'static) -> Network {
        let bind = async || Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (inside, first, second) = (bind().await, bind().await, bind().await);
        let network = Network {
            inside: inside.local_addr().unwrap(),
            outside: first.local_addr().unwrap(),
            relay: Arc::default(),
            carried: Arc::default(),
        };
        let caller: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        for outside in [first.clone(), second.clone()] {
            let (inside, caller) = (inside.clone(), caller.clone());
            tokio::spawn(async move {
                let mut buffer = [0; 2048];
                while let Ok((length, _)) = outside.recv_from(&mut buffer).await {
                    let to = *caller.lock().unwrap();
                    if let Some(to) = to {
                        let _ = inside.send_to(&buffer[..length], to).await;
                    }
                }
            });
        }
        let (relay, carried) = (network.relay.clone(), network.carried.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            let mut n = 0;
            while let Ok((length, from)) = inside.recv_from(&mut buffer).await {
                *caller.lock().unwrap() = Some(from);
                let Some(to) = *relay.lock().unwrap() else { continue };
                let Fate { late_ms, moved } = fate(n);
                n += 1;
                for late in late_ms {
                    let (datagram, carried) = (buffer[..length].to_vec(), carried.clone());
                    let socket = if moved { second.clone() } else { first.clone() };
                    let carry = async move {
                        *carried.lock().unwrap() += 1;
                        let _ = socket.send_to(&datagram, to).await;
                    };
                    // Only what is late is overtaken.
                    if late == 0 {
                        carry.await;
                        continue;
                    }
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(late)).await;
                        carry.await;
                    });
                }
            }
        });
        network
    }
}

/// Loud bytes, by which a frame is known again.
fn tags() -> Vec<u8> {
    (0..=255).filter(|byte| Law::A.decode(*byte).unsigned_abs() > 1500 && *byte != STRANGER).collect()
}

const STRANGER: u8 = 0x2a;
/// Two seconds.
const FRAMES: usize = 100;

/// A call over this network.
struct Call {
    world: World,
    caller: Caller,
    network: Network,
}

impl Call {
    async fn over(fate: impl FnMut(u64) -> Fate + Send + 'static) -> Call {
        let world = World::start().await;
        let network = Network::start(fate).await;
        let mut caller = world.caller().await;
        let own = caller.rtp.local_addr().unwrap().port().to_string();
        let description = caller.description("").replace(&own, &network.outside.port().to_string());
        caller.invite("", &description).await;
        let answer = caller.expect("200").await;
        caller.take(&answer);
        caller.send("ACK", 1, "", "").await;
        *network.relay.lock().unwrap() = caller.media.replace(network.inside);
        until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
        Call { world, caller, network }
    }

    /// Frames of voice, each with its tag.
    async fn speak(&mut self) {
        let sound: Vec<u8> = tags().into_iter().take(FRAMES).flat_map(|tag| [tag; 160]).collect();
        assert_eq!(sound.len(), FRAMES * 160, "a tag for each frame");
        self.caller.speak_all(&sound).await;
    }

    /// The sound that the model was given.
    fn heard(&self) -> Vec<u8> {
        self.world.model.heard.lock().unwrap().iter().flat_map(|audio| from_base64(audio)).collect()
    }

    /// Numbers of the frames that reached the model whole, which must be in their order.
    fn in_order(&self) -> Vec<usize> {
        let tags = tags();
        let heard = self.world.model.heard.lock().unwrap();
        let chunks = heard.iter().map(|audio| from_base64(audio)).filter(|chunk| chunk.len() == 160);
        let whole = chunks.filter(|chunk| chunk[60..].iter().all(|byte| *byte == chunk[60]));
        let mut seen: Vec<usize> = whole.filter_map(|chunk| tags.iter().position(|tag| *tag == chunk[60])).collect();
        assert!(seen.is_sorted(), "a frame came after a later one: {seen:?}");
        seen.dedup();
        seen
    }

    /// At least so many of a hundred frames reached the model.
    async fn reaches(&self, frames: usize) {
        until("the model hears the caller", || (self.in_order().len() >= frames).then_some(())).await;
        // What was lost was made up for: the timeline has its length.
        let ms = self.heard().len() / 8;
        assert!(ms >= FRAMES * 20 * 9 / 10, "{ms} ms of {}", FRAMES * 20);
        assert!(!self.heard().windows(160).any(|window| window == [STRANGER; 160]), "a stranger is heard");
    }

    /// Both sides still hear each other, and the call ends as its caller wants it to; its media's figures.
    async fn goes_on_and_ends(mut self) -> Value {
        self.world.model.speak("r1", "still here", 200);
        let waited = tokio::time::timeout(world::SOON, async { while self.caller.listen(1).await != [0x31] {} }).await;
        assert!(waited.is_ok(), "the agent is not heard");
        self.caller.hang_up().await;
        let end = until("the end is told", || self.world.told.to("/end").pop()).await;
        assert_eq!((&end["cause"], self.world.told.to("/end").len()), (&json!("caller_hangup"), 1));
        end["media"].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loss_of_up_to_thirty_percent() {
    for percent in [5, 15, 30] {
        let mut dice = Dice(percent);
        let mut call = Call::over(move |_| Fate::of(if dice.percent(percent) { vec![] } else { vec![0] })).await;
        call.speak().await;
        // A frame behind a gap is blended with what was made up for it, and counts for nothing here.
        call.reaches((100 - 3 * percent as usize) * 7 / 10).await;
        let carried = call.network.carried.clone();
        let media = call.goes_on_and_ends().await;
        // Looked at when all of them are there.
        assert!(media["packets_received"].as_u64().unwrap() <= *carried.lock().unwrap(), "{media}");
        assert!(media["packets_lost"].as_u64().unwrap() > 0 && media["concealed_ms"].as_u64().unwrap() > 0, "{media}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bursts_of_loss() {
    let mut call = Call::over(|n| Fate::of(if n % 25 < 7 && n > 7 { vec![] } else { vec![0] })).await;
    call.speak().await;
    call.reaches(40).await;
    let media = call.goes_on_and_ends().await;
    assert!(media["longest_gap"].as_u64().unwrap() >= 7, "{media}");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_and_packets_that_overtake_each_other() {
    let mut dice = Dice(11);
    let fate = move |_| {
        let late = dice.roll(30);
        Fate::of(if dice.percent(30) { vec![late, late + 5] } else { vec![late] })
    };
    let mut call = Call::over(fate).await;
    call.speak().await;
    call.reaches(60).await;
    let media = call.goes_on_and_ends().await;
    assert!(media["packets_duplicate"].as_u64().unwrap() > 5, "{media}");
    assert!(media["packets_reordered"].as_u64().unwrap() > 0, "{media}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jitter_with_spikes() {
    let mut dice = Dice(12);
    let mut call = Call::over(move |_| Fate::of(vec![dice.roll(40) + if dice.percent(3) { 120 } else { 0 }])).await;
    call.speak().await;
    call.reaches(40).await;
    let media = call.goes_on_and_ends().await;
    assert!(media["jitter_ms"].as_f64().unwrap() > 3.0, "{media}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_runs_wrong() {
    // One percent slow: a second packet late after two seconds. Real ones are a hundred times better.
    let mut call = Call::over(|n| Fate::of(vec![n / 5])).await;
    call.speak().await;
    call.reaches(70).await;
    let media = call.goes_on_and_ends().await;
    assert!(media["loss_percent"].as_f64().unwrap() < 20.0, "{media}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_source_number_in_the_middle() {
    let call = Call::over(|_| Fate::of(vec![0])).await;
    let sound: Vec<Vec<u8>> = tags().into_iter().take(FRAMES).map(|tag| vec![tag; 160]).collect();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    for (n, payload) in sound.iter().enumerate() {
        tick.tick().await;
        // A switch puts somebody else on the line: numbers and time begin anywhere.
        let (ssrc, number, time) =
            if n < 50 { (77, n as u16, n as u32 * 160) } else { (78, 40_000 + n as u16, 9 + n as u32 * 160) };
        let packet =
            Packet { marker: n == 50, payload_type: 8, sequence_number: number, timestamp: time, ssrc, payload };
        call.caller.rtp.send_to(&packet.to_bytes(), call.network.inside).await.unwrap();
    }
    call.reaches(70).await;
    call.goes_on_and_ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_translator_that_changes_the_port_in_the_middle() {
    let mut call = Call::over(|n| Fate { late_ms: vec![0], moved: n >= 30 }).await;
    call.speak().await;
    until("the caller is heard from the new port", || call.in_order().contains(&99).then_some(())).await;
    call.reaches(40).await;
    let media = call.goes_on_and_ends().await;
    assert!(media["packets_foreign"].as_u64().unwrap() > 0, "{media}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_knows_the_port_and_the_numbers() {
    let mut call = Call::over(|_| Fate::of(vec![0])).await;
    let relay = call.network.relay.lock().unwrap().unwrap();
    let stranger = tokio::spawn(async move {
        let socket = UdpSocket::bind("127.0.0.9:0").await.unwrap();
        for n in 0.. {
            let payload = [STRANGER; 160];
            let packet = Packet {
                marker: false,
                payload_type: 8,
                sequence_number: n,
                timestamp: u32::from(n) * 160,
                ssrc: 77,
                payload: &payload,
            };
            let _ = socket.send_to(&packet.to_bytes(), relay).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    call.speak().await;
    call.reaches(70).await;
    stranger.abort();
    let media = call.goes_on_and_ends().await;
    assert!(media["packets_foreign"].as_u64().unwrap() > 50, "{media}");
}
