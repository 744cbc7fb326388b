//! SIPp, a caller that is not ours, against the relay as a process of its own: the scenarios of `tests/sipp`.
//!
//! SIPp is the Debian package sip-tester; `cargo xtask setup` installs it, and `SIPP_BIN` names another one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use world::{Process, World, base64, until};

/// What the caller says, 20 ms at a time.
const VOICE: u8 = 0x52;
/// No scenario takes longer, on whatever machine.
const AT_MOST: Duration = Duration::from_secs(120);

fn sipp() -> PathBuf {
    let named = std::env::var_os("SIPP_BIN").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|directory| directory.join("sipp")).find(|file| file.is_file())
    };
    let found = named.or_else(on_path).filter(|file| file.is_file());
    found.expect("no SIPp here: run `cargo xtask setup`, or install it (Debian: sip-tester), or name it by SIPP_BIN")
}

/// A relay that listens for streams and datagrams, and everything around it.
async fn ready() -> (World, Process) {
    let world = World::without_relay().await;
    let process = world.process().await;
    let address = world.sip;
    until("the relay listens for streams", || std::net::TcpStream::connect(address).ok()).await;
    (world, process)
}

struct Caller {
    child: std::process::Child,
    directory: PathBuf,
}

impl Caller {
    /// Plays a scenario once, as the called number of a trunk whose address is `from`.
    fn plays(world: &World, scenario: &str, from: &str, called: &str, more: &[&str]) -> Caller {
        let directory =
            std::env::temp_dir().join(format!("ihuza-relay-sipp-{}-{}", std::process::id(), world.sip.port()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("voice.alaw"), vec![VOICE; 8000]).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/sipp/{scenario}.xml"));
        let child = std::process::Command::new(sipp())
            .current_dir(&directory)
            .args(["-sf".as_ref(), file.as_os_str()])
            .args(["-m", "1", "-i", from, "-mi", from, "-s", called, "-nostdin"])
            .args(["-timeout", &AT_MOST.as_secs().to_string(), "-timeout_error", "-trace_err", "-error_file", "errors"])
            .args(["-trace_msg", "-message_file", "messages"])
            .args(more)
            .arg(world.sip.to_string())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Caller { child, directory }
    }

    /// The scenario went as it stands; what was sent and received.
    async fn succeeds(mut self) -> String {
        let ended = tokio::time::timeout(AT_MOST + Duration::from_secs(10), async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let status = ended.await.expect("SIPp ends by itself");
        let read = |name: &str| std::fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        let messages = read("messages");
        assert!(status.success(), "{status}\n{}\n{messages}", read("errors"));
        messages
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const OURS: &str = "+250788000100";

/// One call by a scenario, and the word under which its end is told.
async fn call(scenario: &str, more: &[&str], cause: &str) -> World {
    let (world, mut process) = ready().await;
    Caller::plays(&world, scenario, "127.0.0.1", OURS, more).succeeds().await;
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(end["cause"], cause, "{end}");
    assert_eq!(world.told.to("/end").len(), 1);
    assert!(process.terminate().await);
    world
}

fn is_heard(world: &World) {
    let frame = base64(&[VOICE; 160]);
    let heard = world.model.heard.lock().unwrap().iter().filter(|audio| **audio == frame).count();
    assert!(heard >= 25, "the model heard {heard} frames of the caller");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_udp_is_heard() {
    is_heard(&call("call", &[], "caller_hangup").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_tcp_is_heard() {
    is_heard(&call("call", &["-t", "t1"], "caller_hangup").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_the_ack_is_heard() {
    is_heard(&call("delayed_offer", &[], "caller_hangup").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_is_answered_in_its_direction() {
    call("hold", &[], "caller_hangup").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_is_never_acknowledged_ends() {
    let (world, mut process) = ready().await;
    let messages = Caller::plays(&world, "no_ack", "127.0.0.1", OURS, &[]).succeeds().await;
    // At 0, 0.5, 1.5, 3.5 s and so on; SIPp itself takes copies for one message.
    let answers = messages.matches("\nSIP/2.0 200 OK\r\nVia").count() - 1;
    assert!(answers >= 5, "the 200 came {answers} times");
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!((&end["cause"], &end["reason"]), (&json!("setup_failed"), &json!("no_ack")));
    assert!(process.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_timer_is_agreed_on_and_refreshed() {
    call("session_timer", &[], "caller_hangup").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_is_told_as_such() {
    let (world, mut process) = ready().await;
    world.function_is_slow("/openai-realtime", Duration::from_millis(900));
    Caller::plays(&world, "cancel", "127.0.0.1", OURS, &[]).succeeds().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "canceled");
    assert!(process.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_and_checked() {
    let (world, mut process) = ready().await;
    Caller::plays(&world, "digest", "127.0.0.3", "+250788000300", &[]).succeeds().await;
    until("the end is told", || world.told.to("/end").pop()).await;
    Caller::plays(&world, "digest_wrong", "127.0.0.3", "+250788000300", &[]).succeeds().await;
    assert_eq!(world.told.to("/openai-realtime").len(), 1, "a wrong password opens nothing");
    assert!(process.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_takes_over() {
    let (world, mut process) = ready().await;
    let caller = Caller::plays(&world, "refer", "127.0.0.1", OURS, &[]);
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    until("the call is answered", || world.told.kinds().contains(&"answered".into()).then_some(())).await;
    let tool = json!({ "type": "function_call", "call_id": "t1", "name": "transfer_to_human", "arguments": "{}" });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(json!({ "type": "response.output_item.done", "item": tool }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } }));
    caller.succeeds().await;
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "transferred");
    assert!(process.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_are_answered_and_strangers_are_not() {
    let (world, mut process) = ready().await;
    Caller::plays(&world, "options", "127.0.0.1", OURS, &[]).succeeds().await;
    Caller::plays(&world, "options", "127.0.0.1", OURS, &["-t", "t1"]).succeeds().await;
    Caller::plays(&world, "unknown_source", "127.0.0.9", OURS, &[]).succeeds().await;
    assert!(world.told.to("/openai-realtime").is_empty());
    assert!(process.terminate().await);
}
