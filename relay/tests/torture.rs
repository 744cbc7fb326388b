//! Every message of RFC 4475 over real sockets to a running relay, and what becomes of each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use world::{SOON, World};

/// What a sender sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A final answer.
    Answered(u16),
    /// Nothing.
    Silence,
    /// The end of its connection.
    Closed,
}
use Outcome::{Answered, Closed, Silence};

/// Name, section of the RFC, outcome over UDP, outcome over TCP, and, where the RFC wishes for something else, why.
type Row = (&'static str, &'static str, Outcome, Outcome, &'static str);

/// A broken message over TCP costs its sender the connection where the stack cannot cut or read it: whatever follows could
/// be read wrongly.
const STREAM: &str = "over TCP the connection is closed, not answered: the stack reads streams itself";
const NO_REGISTRAR: &str = "the relay is no registrar, so the fault is not looked for";

#[rustfmt::skip]
const TABLE: [Row; 49] = [
    // Valid messages. The called numbers are not ours, so a call that is read whole is answered by 404.
    ("wsinv", "3.1.1.1", Answered(481), Silence, "its To has a tag, and there is no such dialog; over TCP its Via is not read"),
    ("intmeth", "3.1.1.2", Answered(501), Closed, STREAM),
    ("esc01", "3.1.1.3", Answered(404), Answered(404), ""),
    ("escnull", "3.1.1.4", Answered(405), Answered(405), ""),
    ("esc02", "3.1.1.5", Answered(501), Closed, STREAM),
    ("lwsdisp", "3.1.1.6", Answered(200), Answered(200), ""),
    ("longreq", "3.1.1.7", Answered(404), Answered(404), ""),
    ("dblreq", "3.1.1.8", Answered(405), Closed, "over TCP the octets behind it are a broken message of their own"),
    ("semiuri", "3.1.1.9", Answered(200), Answered(200), ""),
    ("transports", "3.1.1.10", Answered(200), Answered(200), ""),
    ("mpart01", "3.1.1.11", Answered(405), Answered(405), "MESSAGE is not served"),
    ("unreason", "3.1.1.12", Silence, Silence, ""),
    ("noreason", "3.1.1.13", Silence, Silence, ""),
    // Invalid messages.
    ("badinv01", "3.1.2.1", Answered(400), Answered(400), ""),
    ("clerr", "3.1.2.2", Answered(400), Silence, "over TCP the rest of the body is still awaited"),
    ("ncl", "3.1.2.3", Answered(400), Closed, STREAM),
    ("scalar02", "3.1.2.4", Answered(400), Silence, "over TCP the stack drops what it cannot count"),
    ("scalarlg", "3.1.2.5", Silence, Silence, ""),
    ("quotbal", "3.1.2.6", Answered(400), Answered(400), ""),
    ("ltgtruri", "3.1.2.7", Answered(400), Answered(404), "over TCP the stack takes the brackets off; no number of ours is in them"),
    ("lwsruri", "3.1.2.8", Answered(400), Closed, STREAM),
    ("lwsstart", "3.1.2.9", Answered(400), Closed, STREAM),
    ("trws", "3.1.2.10", Answered(200), Answered(200), "blanks at the end of the line are borne, as the RFC allows"),
    ("escruri", "3.1.2.11", Answered(400), Answered(400), ""),
    ("baddate", "3.1.2.12", Answered(404), Answered(404), "Date is not looked at, as the RFC allows"),
    ("regbadct", "3.1.2.13", Answered(405), Answered(405), NO_REGISTRAR),
    ("badaspec", "3.1.2.14", Answered(400), Answered(400), ""),
    ("baddn", "3.1.2.15", Answered(400), Silence, "over TCP the blank line is still awaited"),
    ("badvers", "3.1.2.16", Answered(505), Answered(505), ""),
    ("mismatch01", "3.1.2.17", Answered(400), Answered(400), ""),
    ("mismatch02", "3.1.2.18", Answered(400), Closed, STREAM),
    ("bigcode", "3.1.2.19", Silence, Closed, ""),
    // The transaction layer.
    ("badbranch", "3.2.1", Answered(200), Answered(200), "told apart by Call-ID, CSeq and tag, as in RFC 2543"),
    // The application layer.
    ("insuf", "3.3.1", Answered(400), Silence, "over TCP the stack drops what belongs to no transaction"),
    ("unkscm", "3.3.2", Answered(416), Answered(416), ""),
    ("novelsc", "3.3.3", Answered(416), Answered(416), ""),
    ("unksm2", "3.3.4", Answered(405), Answered(405), NO_REGISTRAR),
    ("bext01", "3.3.5", Answered(420), Answered(420), ""),
    ("invut", "3.3.6", Answered(415), Answered(415), ""),
    ("regaut01", "3.3.7", Answered(405), Answered(405), NO_REGISTRAR),
    ("multi01", "3.3.8", Answered(400), Answered(400), ""),
    ("mcl01", "3.3.9", Answered(400), Closed, STREAM),
    ("bcast", "3.3.10", Silence, Silence, ""),
    ("zeromf", "3.3.11", Answered(200), Answered(200), "for us, and not on its way to somebody else"),
    ("cparam01", "3.3.12", Answered(405), Answered(405), NO_REGISTRAR),
    ("cparam02", "3.3.13", Answered(405), Answered(405), NO_REGISTRAR),
    ("regescrt", "3.3.14", Answered(405), Answered(405), NO_REGISTRAR),
    ("sdp01", "3.3.15", Answered(406), Answered(406), ""),
    // Backward compatibility.
    ("inv2543", "3.4.1", Answered(400), Silence, "callers without a From tag are older than any trunk; the stack needs one"),
];

/// Nothing within this time is silence.
const QUIET: Duration = Duration::from_millis(300);

fn message(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/rfc4475/{name}.dat", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Status of the first final answer in a text, which must belong to the message.
fn status(name: &str, answer: &str) -> Option<u16> {
    let code: u16 = answer.strip_prefix("SIP/2.0 ")?[..3].parse().unwrap();
    let call_id = answer.lines().find_map(|line| line.strip_prefix("Call-ID: "));
    let sent = String::from_utf8_lossy(&message(name)).into_owned();
    assert!(call_id.is_none_or(|id| sent.contains(id)), "{name} is answered by somebody else's {answer}");
    (code >= 200).then_some(code)
}

async fn over_udp(world: &World, name: &str, expected: Outcome) -> Outcome {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message(name), world.sip).await.unwrap();
    let patience = if expected == Silence { QUIET } else { SOON };
    let mut buffer = [0; 16_384];
    let answered = tokio::time::timeout(patience, async {
        loop {
            let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(status) = status(name, &String::from_utf8_lossy(&buffer[..length])) {
                return Answered(status);
            }
        }
    });
    answered.await.unwrap_or(Silence)
}

async fn over_tcp(world: &World, name: &str, expected: Outcome) -> Outcome {
    // The stack listens for streams a moment after it has started.
    let connected = tokio::time::timeout(SOON, async {
        loop {
            match TcpStream::connect(world.sip).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    let mut stream = connected.await.expect("the relay listens for streams");
    stream.write_all(&message(name)).await.unwrap();
    let patience = if expected == Silence { QUIET } else { SOON };
    let mut read = Vec::new();
    let answered = tokio::time::timeout(patience, async {
        let mut buffer = [0; 16_384];
        loop {
            let length = stream.read(&mut buffer).await.unwrap_or(0);
            if length == 0 {
                return Closed;
            }
            read.extend_from_slice(&buffer[..length]);
            let text = String::from_utf8_lossy(&read).into_owned();
            // 100 may come before; what matters is the first answer that is final.
            let answers =
                text.match_indices("SIP/2.0 ").filter(|(at, _)| *at == 0 || text[..*at].ends_with("\r\n\r\n"));
            if let Some(status) = answers.map(|(at, _)| status(name, &text[at..])).find_map(|status| status) {
                return Answered(status);
            }
        }
    });
    answered.await.unwrap_or(Silence)
}

async fn still_answers(world: &World, after: &str) {
    let mut caller = world.caller().await;
    caller.send("OPTIONS", 1, "", "").await;
    assert_eq!(caller.expect("200").await.status, 200, "after {after}");
}

/// Nothing was opened, and nothing is left.
async fn is_idle(world: &World) {
    assert!(world.told.to("/openai-realtime").is_empty(), "none of them is a call");
    assert!(world.get("/metrics").await.1.contains("ihuza_relay_calls_running 0"));
}

#[test]
fn every_message_has_a_file_and_a_row() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rfc4475");
    let mut files: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|file| Some(file.unwrap().file_name().to_str()?.strip_suffix(".dat")?.to_owned()))
        .collect();
    files.sort();
    let mut rows: Vec<&str> = TABLE.iter().map(|row| row.0).collect();
    rows.sort_unstable();
    assert_eq!(files, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_has_its_outcome_over_udp() {
    let (world, mut others) = (World::start().await, Vec::new());
    for (name, section, expected, ..) in TABLE {
        let found = over_udp(&world, name, expected).await;
        if found != expected {
            others.push(format!("{name} (RFC 4475 §{section}): {found:?}, not {expected:?}"));
        }
        still_answers(&world, name).await;
    }
    assert!(others.is_empty(), "{others:#?}");
    is_idle(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_has_its_outcome_over_tcp() {
    let (world, mut others) = (World::start().await, Vec::new());
    for (name, section, _, expected, _) in TABLE {
        let found = over_tcp(&world, name, expected).await;
        if found != expected {
            others.push(format!("{name} (RFC 4475 §{section}): {found:?}, not {expected:?}"));
        }
        still_answers(&world, name).await;
    }
    assert!(others.is_empty(), "{others:#?}");
    is_idle(&world).await;
}
