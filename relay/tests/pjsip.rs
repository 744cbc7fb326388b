//! PJSIP, a second telephone that is not ours, against the relay as a process of its own: UDP, TCP and TLS, with keys,
//! hold, re-INVITE, session timers and REFER. What it does is in `tests/pjsip/caller.py`.
//!
//! It is the Python package pjsua2-python; `cargo xtask setup` installs it, and `PJSIP_PYTHON` names another folder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::json;
use world::{Process, World, until};

/// A call of PJSIP under way.
struct Caller {
    child: Child,
    said: Receiver<String>,
}

/// Where the package is, if anywhere.
fn package() -> PathBuf {
    let named = std::env::var_os("PJSIP_PYTHON").map(PathBuf::from);
    let place = named.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.local/pjsip"));
    let loads =
        Command::new("python3").env("PYTHONPATH", &place).args(["-c", "import pjsua2"]).stderr(Stdio::null()).status();
    assert!(
        loads.is_ok_and(|status| status.success()),
        "no PJSIP here: run `cargo xtask setup`, or install pjsua2-python for python3 into {} (pip install --target), or \
         name its folder by PJSIP_PYTHON",
        place.display()
    );
    place
}

impl Caller {
    fn calls(address: SocketAddr, transport: &str, scenario: &str) -> Caller {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pjsip/caller.py");
        let mut child = Command::new("python3")
            .env("PYTHONPATH", package())
            .args([script, &address.to_string(), transport, scenario])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, said) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        Caller { child, said }
    }

    /// Waits for the line that begins so, and gives the rest of it.
    fn says(&self, step: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.said.recv_timeout(Duration::from_secs(60)) {
                Ok(line) => match line.strip_prefix(step) {
                    Some(rest) => return rest.trim().to_owned(),
                    None => before.push(line),
                },
                Err(_) => panic!("waited for {step:?}, heard {before:#?}"),
            }
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A relay and where it listens for that transport.
async fn ready(transport: &str) -> (World, Process, SocketAddr) {
    let mut world = World::without_relay().await;
    let address = if transport == "tls" { world.listen_for_tls() } else { world.sip };
    let process = world.process().await;
    if transport != "udp" {
        until("the relay listens for streams", || std::net::TcpStream::connect(address).ok()).await;
    }
    (world, process, address)
}

/// A whole call by one transport.
async fn talk(transport: &str) {
    let (world, mut process, address) = ready(transport).await;
    let caller = Caller::calls(address, transport, "talk");
    tokio::task::block_in_place(|| {
        caller.says("answered");
        let packets: Vec<u64> = caller.says("packets").split(' ').map(|count| count.parse().unwrap()).collect();
        assert!(packets.iter().all(|count| *count >= 20), "sent and received {packets:?}");
        for step in ["dialled", "held", "resumed", "refreshed", "ended"] {
            caller.says(step);
        }
    });
    let end = until("the end is told", || world.told.to("/end").pop()).await;
    assert_eq!(end["cause"], "caller_hangup", "{end}");
    let keys: Vec<_> = world.told.events().into_iter().filter(|event| event["type"] == "digit").collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(world.model.heard.lock().unwrap().len() > 50, "the model heard the tone");
    assert!(process.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_udp() {
    talk("udp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_tcp() {
    talk("tcp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_tls() {
    talk("tls").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_asked_for() {
    let (world, mut process, address) = ready("udp").await;
    let caller = Caller::calls(address, "udp", "refer");
    tokio::task::block_in_place(|| caller.says("answered"));
    until("the model is ready", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    let tool = json!({ "type": "function_call", "call_id": "t1", "name": "transfer_to_human", "arguments": "{}" });
    world.model.say(json!({ "type": "response.created", "response": { "id": "r1" } }));
    world.model.say(json!({ "type": "response.output_item.done", "item": tool }));
    world.model.say(json!({ "type": "response.done", "response": { "id": "r1", "status": "completed" } }));
    tokio::task::block_in_place(|| {
        assert!(caller.says("referred").contains("+250788123000@"));
        caller.says("ended");
    });
    assert_eq!(until("the end is told", || world.told.to("/end").pop()).await["cause"], "caller_hangup");
    assert!(process.terminate().await);
}
