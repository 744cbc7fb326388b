//! More than the relay bears: new calls are sent away politely, strangers without a word, and calls that run notice neither.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ihuza_relay::shell::clock::Clock;
use serde_json::{Value, json};
use world::{Caller, World, until};

/// What a caller saw of its call, and what its record says: packets sent and received.
struct Sound {
    spoken: u64,
    heard: u64,
    record: Value,
}

/// Speaks and listens for so many frames, hangs up, and waits for the record.
async fn talk(world: &World, mut caller: Caller, frames: usize) -> Sound {
    let rtp = Arc::new(std::mem::replace(&mut caller.rtp, tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap()));
    let (media, listening) = (caller.media.unwrap(), rtp.clone());
    let listener = tokio::spawn(async move {
        let (mut buffer, mut heard) = ([0; 2048], 0_u64);
        while let Ok(Ok((_, from))) =
            tokio::time::timeout(Duration::from_secs(1), listening.recv_from(&mut buffer)).await
        {
            heard += u64::from(from == media);
        }
        heard
    });
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    for n in 0..frames as u16 {
        tick.tick().await;
        let packet = ihuza_relay::media::rtp::Packet {
            marker: false,
            payload_type: 8,
            sequence_number: n,
            timestamp: u32::from(n) * 160,
            ssrc: 79,
            payload: &[0x52; 160],
        };
        rtp.send_to(&packet.to_bytes(), media).await.unwrap();
    }
    // What is on its way arrives.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let id = caller.call_id.clone();
    caller.hang_up().await;
    let record = until("the end is told", || world.told.to("/end").into_iter().find(|end| end["call_sid"] == id)).await;
    Sound { spoken: frames as u64, heard: listener.await.unwrap(), record: record["media"].clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_limit_the_relay_sends_new_calls_away_and_the_others_go_on() {
    let world = World::start().await;
    let mut running = Vec::new();
    for _ in 0..4 {
        let mut caller = world.caller().await;
        caller.connect().await;
        running.push(caller);
    }
    let refused = async {
        for _ in 0..20 {
            let mut late = world.caller().await;
            late.invite("", &late.description("")).await;
            let reply = late.expect("503").await;
            assert_eq!(reply.header("Retry-After"), Some("5"));
            late.send("ACK", 1, "", "").await;
            // Whoever asks first is told the same.
            let mut asking = world.caller().await;
            asking.send("OPTIONS", 1, "", "").await;
            assert_eq!(asking.expect("503").await.header("Retry-After"), Some("5"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // Long enough for all of them to be refused, also where other things are going on.
    let talking = futures_util::future::join_all(running.into_iter().map(|caller| talk(&world, caller, 250)));
    let health = async {
        let (status, body) = world.get("/healthz").await;
        assert!(status == 503 && body.contains("relay_full"), "{body}");
    };
    let (sounds, ..) = tokio::join!(talking, refused, health);
    for Sound { spoken, record, .. } in sounds {
        assert_eq!(record["packets_received"], spoken, "{record}");
    }
    assert_eq!(world.told.to("/openai-realtime").len(), 4, "for the others nothing was opened");
    let metrics = world.get("/metrics").await.1;
    assert!(metrics.contains(r#"calls_refused_total{reason="relay_full"} 20"#), "{metrics}");
    // There is room again.
    let mut next = world.caller().await;
    next.connect().await;
    next.hang_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_new_calls_a_second_than_agreed_are_put_off() {
    let mut world = World::without_relay().await;
    world.begin(|config| config.limits.calls_per_second = 1).await;
    let mut first = world.caller().await;
    first.connect().await;
    let mut second = world.caller().await;
    second.invite("", &second.description("")).await;
    let reply = second.expect("503").await;
    assert_eq!(reply.header("Retry-After"), Some("5"));
    assert!(world.get("/metrics").await.1.contains(r#"calls_refused_total{reason="trunk_rate"} 1"#));
    first.hang_up().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
}

/// Calls beside which strangers send what they like.
const GOOD_CALLS: usize = 20;

/// Sends what a stranger may, twenty thousand packets a second, until it is told to stop; how many it sent.
fn flood(to: std::net::SocketAddr, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<(u64, Duration)> {
    std::thread::spawn(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.9:0").unwrap();
        let local = socket.local_addr().unwrap();
        let clock = Clock::start();
        let (begun, mut sent) = (clock.now(), 0_u64);
        while !stop.load(Ordering::Relaxed) {
            let due = clock.now().since(begun).as_micros() as u64 / 50;
            while sent < due {
                // Noise, and what looks like a call.
                if sent % 2 == 0 {
                    let _ = socket.send_to(&[0x66; 400], to);
                } else {
                    let text = format!(
                        "INVITE sip:+250788000100@{to} SIP/2.0\r\nVia: SIP/2.0/UDP {local};branch=z9hG4bK{sent}\r\nFrom: <sip:x@y>;tag=1\r\n\
                         To: <sip:+250788000100@{to}>\r\nCall-ID: flood-{sent}\r\nCSeq: 1 INVITE\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
                    );
                    let _ = socket.send_to(text.as_bytes(), to);
                }
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        (sent, clock.now().since(begun))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_packets_a_second_of_a_stranger_are_not_noticed_by_calls() {
    let world = World::start_with(|config, _| config.limits.calls = GOOD_CALLS).await;
    let mut callers = Vec::new();
    for _ in 0..GOOD_CALLS {
        let mut caller = world.caller().await;
        caller.connect().await;
        callers.push(caller);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = flood(world.sip, stop.clone());
    // The flood ends before the goodbyes: a telephone would repeat one that was lost, these do not.
    let quiet = async {
        tokio::time::sleep(Duration::from_millis(2900)).await;
        stop.store(true, Ordering::Relaxed);
    };
    let talking = futures_util::future::join_all(callers.into_iter().map(|caller| talk(&world, caller, 150)));
    let (sounds, ()) = tokio::join!(talking, quiet);
    let (sent, lasted) = flooding.join().unwrap();
    println!("{sent} packets in {lasted:?}");
    for Sound { spoken, heard, record } in sounds {
        let received = record["packets_received"].as_u64().unwrap();
        // One in fifty for a machine that has other things to do.
        assert!(received * 50 >= spoken * 49, "{received} of {spoken}: {record}");
        let left = record["packets_sent"].as_u64().unwrap();
        assert!(
            left * 10 >= spoken * 9 && heard * 50 >= left * 49,
            "{heard} of {left} heard while {spoken} were spoken: {record}"
        );
    }
    assert_eq!(world.told.to("/openai-realtime").len(), GOOD_CALLS, "no stranger is a caller");
    let metrics = world.get("/metrics").await.1;
    let line = metrics.lines().find(|line| line.contains(r#"reason="unknown_source""#)).unwrap();
    let dropped: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(dropped > 1000, "of {sent}: {line}");
    let mut next = world.caller().await;
    next.connect().await;
    next.hang_up().await;
    assert_eq!(
        json!(until("its end is told", || world.told.to("/end").get(3).cloned()).await["cause"]),
        "caller_hangup"
    );
}
