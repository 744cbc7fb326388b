//! Calls that the relay is asked to place, over real UDP: to whom, what becomes of them, and what is recorded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use std::time::Duration;

use ihuza_relay::config::Amount;
use ihuza_relay::media::g711::Law;
use ihuza_relay::moment::Moment;
use ihuza_relay::sip::digest::{Authenticator, Credentials, Verdict};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use world::callee::Callee;
use world::{Reply, World, base64, until};

const TO: &str = "+250788123456";

/// A relay that was asked for a call, whoever is called, the INVITE, and the call's id.
async fn asked(more: Value) -> (World, Callee, Reply, String) {
    let (mut world, mut callee) = World::placing().await;
    world.begin(|_| ()).await;
    let (id, invite) = ask(&world, &mut callee, "k1", more).await;
    (world, callee, invite, id)
}

async fn ask(world: &World, callee: &mut Callee, key: &str, mut wish: Value) -> (String, Reply) {
    wish["to"] = TO.into();
    let (status, call) = world.calls("POST", "", key, &wish).await;
    assert_eq!((status, &call["status"]), (202, &json!("calling")), "{call}");
    (call["id"].as_str().unwrap().to_owned(), callee.expect("INVITE").await)
}

async fn end(world: &World) -> Value {
    until("the end is told", || world.told.to("/end").pop()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_placed_answered_heard_and_recorded_like_any_other() {
    let (world, mut callee, invite, id) = asked(json!({ "reference": "order 7", "locale": "fr" })).await;
    assert!(invite.text.starts_with(&format!("INVITE sip:{TO}@127.0.0.1:")), "{}", invite.text);
    assert!(
        invite.text.contains("RTP/AVP 8 0 101") && invite.header("From").unwrap().contains("sip:+250788000100@"),
        "{}",
        invite.text
    );
    assert!(invite.header("P-Asserted-Identity").unwrap().contains("+250788000100"), "{}", invite.text);
    callee.respond(&invite, "100 Trying", "").await;
    callee.respond(&invite, "180 Ringing", "").await;
    let shown = world.placed_call(&id, "ringing").await;
    assert!(!shown.to_string().contains(TO), "the number is masked: {shown}");
    let opened = until("it is opened", || world.told.to("/openai-realtime").pop()).await;
    assert_eq!(
        [&opened["direction"], &opened["from"], &opened["to"], &opened["locale"], &opened["call_sid"]],
        [
            &json!("outbound"),
            &json!("+250788000100"),
            &json!(TO),
            &json!("fr"),
            &json!(invite.header("Call-ID").unwrap())
        ]
    );
    // The model is there before anybody answers, so that the greeting does not wait.
    until("the greeting is asked for", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    world.model.speak("r1", "Hello, this is Ihuza", 300);
    callee.pick_up(&invite).await;
    callee.listen_for(0x31).await;
    callee.listen_for(0xd5).await;
    callee.speak(0x52, 40).await;
    let frame = base64(&[0x52; 160]);
    until("the model hears", || world.model.heard.lock().unwrap().contains(&frame).then_some(())).await;
    world.placed_call(&id, "answered").await;
    callee.hang_up(&invite).await;

    let end = end(&world).await;
    assert_eq!(
        [&end["cause"], &end["direction"], &end["to"], &end["correlation_id"]],
        [&json!("caller_hangup"), &json!("outbound"), &json!(TO), &json!(id)]
    );
    assert!(end["answered_at"].is_string() && end["media"]["packets_received"].as_u64().unwrap() >= 10, "{end}");
    assert_eq!(world.told.kinds(), ["opened", "answered", "transcript", "ended"]);
    let opened = &world.told.events()[0];
    assert_eq!((&opened["reference"], &opened["direction"]), (&json!("order 7"), &json!("outbound")));
    let shown = world.placed_call(&id, "ended").await;
    assert_eq!(
        (&shown["cause"], &shown["cost"], &shown["reference"]),
        (&json!("caller_hung_up"), &json!("15"), &json!("order 7"))
    );
    let metrics = world.get("/metrics").await.1;
    assert!(metrics.contains("calls_placed_total 1") && metrics.contains("calls_running 0"), "{metrics}");
    until("nothing is left in the journal", || (world.journals() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_calls_nobody_twice() {
    let (world, mut callee, invite, id) = asked(json!({})).await;
    let (status, again) = world.calls("POST", "", "k1", &json!({ "to": TO })).await;
    assert_eq!((status, again["id"].as_str()), (200, Some(id.as_str())));
    let (status, other) = world.calls("POST", "", "k1", &json!({ "to": "+250788123457" })).await;
    assert_eq!((status, &other["type"]), (422, &json!("https://ihuza.rw/errors/idempotency-key-reused")));
    callee.respond(&invite, "486 Busy Here", "").await;
    callee.expect("ACK").await;
    assert_eq!(end(&world).await["cause"], "busy");
    let (status, again) = world.calls("POST", "", "k1", &json!({ "to": TO })).await;
    assert_eq!((status, &again["status"]), (200, &json!("ended")));
    callee.hears_nothing_of("INVITE").await;
    assert_eq!(world.told.to("/end").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_of_the_trunk_is_an_end_of_its_own_and_costs_nothing() {
    let (mut world, mut callee) = World::placing().await;
    world.begin(|_| ()).await;
    for (n, (status, cause, reason)) in [
        ("486 Busy Here", "busy", "busy"),
        ("480 Temporarily Unavailable", "no_answer", "no_answer"),
        ("603 Decline", "rejected", "rejected"),
        ("404 Not Found", "setup_failed", "unreachable"),
        ("503 Service Unavailable", "setup_failed", "unreachable"),
        // Without credentials of ours the trunk's question is its last word.
        ("407 Proxy Authentication Required", "setup_failed", "unreachable"),
    ]
    .into_iter()
    .enumerate()
    {
        let (id, invite) = ask(&world, &mut callee, &format!("k{n}"), json!({})).await;
        callee.respond(&invite, "180 Ringing", "").await;
        callee.respond(&invite, status, "").await;
        callee.expect("ACK").await;
        let shown = world.placed_call(&id, "ended").await;
        assert_eq!(
            (&shown["cost"], &shown["sip_status"]),
            (&json!("0"), &json!(status[..3].parse::<u16>().unwrap())),
            "{shown}"
        );
        let end =
            until("the end is told", || world.told.to("/end").into_iter().find(|end| end["correlation_id"] == id))
                .await;
        assert_eq!((&end["cause"], &end["reason"]), (&json!(cause), &json!(reason)), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_right_behind_the_200_has_hung_up() {
    let (mut world, mut callee) = World::placing().await;
    world.begin(|_| ()).await;
    for n in 0..10 {
        let (id, invite) = ask(&world, &mut callee, &format!("k{n}"), json!({})).await;
        callee.respond(&invite, "200 OK", &callee.description()).await;
        callee.hang_up(&invite).await;
        assert_eq!(world.placed_call(&id, "ended").await["cause"], "caller_hung_up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_telephone_that_nobody_answers_is_let_alone() {
    let (world, mut callee, invite, id) = asked(json!({ "max_ring_seconds": 5 })).await;
    callee.respond(&invite, "180 Ringing", "").await;
    let cancel = callee.expect("CANCEL").await;
    callee.respond(&cancel, "200 OK", "").await;
    callee.respond(&invite, "487 Request Terminated", "").await;
    callee.expect("ACK").await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], &end["answered_at"]), (&json!("no_answer"), &Value::Null));
    assert_eq!(world.placed_call(&id, "ended").await["cause"], "no_answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_crosses_our_cancel_is_acknowledged_and_ended() {
    let (world, mut callee, invite, id) = asked(json!({})).await;
    callee.respond(&invite, "180 Ringing", "").await;
    world.placed_call(&id, "ringing").await;
    assert_eq!(world.calls("DELETE", &format!("/{id}"), "", &Value::Null).await.0, 202);
    let cancel = callee.expect("CANCEL").await;
    callee.respond(&invite, "200 OK", &callee.description()).await;
    callee.respond(&cancel, "200 OK", "").await;
    callee.expect("ACK").await;
    let bye = callee.expect("BYE").await;
    callee.respond(&bye, "200 OK", "").await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], &end["reason"]), (&json!("canceled"), &json!("withdrawn")));
    assert_eq!(world.told.to("/end").len(), 1);
    assert_eq!(world.placed_call(&id, "ended").await["cost"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asked_for_a_call_can_end_it() {
    let (world, mut callee, invite, id) = asked(json!({})).await;
    callee.pick_up(&invite).await;
    world.placed_call(&id, "answered").await;
    assert_eq!(world.calls("DELETE", &format!("/{id}"), "", &Value::Null).await.0, 202);
    let bye = callee.expect("BYE").await;
    assert_eq!(bye.header("Reason"), Some("Q.850;cause=16"));
    callee.respond(&bye, "200 OK", "").await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], &end["reason"]), (&json!("agent_hangup"), &json!("requested")));
    assert_eq!(
        world.calls("DELETE", &format!("/{id}"), "", &Value::Null).await.1["status"],
        "ended",
        "again is no fault"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_came_with_the_ringing_is_the_answer() {
    let (world, mut callee, invite, _) = asked(json!({})).await;
    callee.take(&invite);
    callee.respond(&invite, "183 Session Progress", &callee.description()).await;
    callee.respond(&invite, "200 OK", "").await;
    callee.expect("ACK").await;
    until("the greeting is asked for", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    world.model.speak("r1", "hello", 200);
    callee.listen_for(0x31).await;
    callee.hang_up(&invite).await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_our_second_codec_is_spoken_and_heard_in_it() {
    let (world, mut callee, invite, _) = asked(json!({})).await;
    callee.respond(&invite, "180 Ringing", "").await;
    until("the greeting is asked for", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    let settings = world.model.messages.lock().unwrap()[0].clone();
    assert_eq!(settings["session"]["audio"]["output"]["format"], json!({ "type": "audio/pcma" }), "set up meanwhile");
    world.model.speak("r1", "Hello, this is Ihuza", 300);
    callee.take(&invite);
    callee.respond(&invite, "200 OK", &callee.description().replace("AVP 8", "AVP 0 8")).await;
    callee.expect("ACK").await;
    callee.listen_for(Law::Mu.encode(Law::A.decode(0x31))).await;
    callee.listen_for(Law::Mu.silence()).await;
    callee.payload_type = 0;
    callee.speak(0x12, 40).await;
    let frame = base64(&[Law::A.encode(Law::Mu.decode(0x12)); 160]);
    until("the model hears", || world.model.heard.lock().unwrap().contains(&frame).then_some(())).await;
    callee.hang_up(&invite).await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_our_codec_is_acknowledged_and_ended() {
    let (world, mut callee, invite, _) = asked(json!({})).await;
    callee.respond(&invite, "200 OK", &callee.description().replace("8 101", "18")).await;
    callee.expect("ACK").await;
    let bye = callee.expect("BYE").await;
    callee.respond(&bye, "200 OK", "").await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], &end["reason"]), (&json!("setup_failed"), &json!("media_refused")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_ended_before_the_trunk_says_a_word_is_cancelled_with_its_first() {
    let (world, mut callee, invite, id) = asked(json!({})).await;
    assert_eq!(world.calls("DELETE", &format!("/{id}"), "", &Value::Null).await.0, 202);
    assert_eq!(end(&world).await["reason"], "withdrawn");
    // A CANCEL must not overtake the INVITE (RFC 3261 §9.1).
    callee.hears_nothing_of("CANCEL").await;
    callee.respond(&invite, "180 Ringing", "").await;
    let cancel = callee.expect("CANCEL").await;
    callee.respond(&cancel, "200 OK", "").await;
    callee.respond(&invite, "487 Request Terminated", "").await;
    callee.expect("ACK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_we_called_may_hold_the_call_press_keys_and_refresh_it() {
    let (world, mut callee, invite, _) = asked(json!({})).await;
    callee.take(&invite);
    let timer = "Require: timer\r\nSession-Expires: 1800;refresher=uas\r\n";
    callee.respond_with(&invite, "200 OK", timer, &callee.description()).await;
    callee.expect("ACK").await;
    until("the greeting is asked for", || world.model.types().contains(&"response.create".into()).then_some(())).await;
    callee.send("INFO", 1, &invite, "Content-Type: application/dtmf-relay\r\n", "Signal=5\r\n").await;
    callee.expect("200").await;
    let sdp = "Content-Type: application/sdp\r\n";
    callee.send("INVITE", 2, &invite, sdp, &format!("{}a=sendonly\r\n", callee.description())).await;
    let held = callee.expect("200").await;
    assert!(held.text.contains("a=recvonly"), "{}", held.text);
    callee.send("ACK", 2, &invite, "", "").await;
    callee.send("UPDATE", 3, &invite, "Supported: timer\r\nSession-Expires: 1800;refresher=uac\r\n", "").await;
    let refreshed = callee.expect("200").await;
    assert_eq!(refreshed.header("Session-Expires"), Some("1800;refresher=uac"));
    callee.send("BYE", 4, &invite, "", "").await;
    callee.expect("200").await;
    assert_eq!(end(&world).await["cause"], "caller_hangup");
    assert!(world.told.kinds().contains(&"digit".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_session_function_nobodys_telephone_goes_on_ringing() {
    let (mut world, mut callee) = World::placing().await;
    world.function_fails("/openai-realtime", 503, 1);
    world.begin(|_| ()).await;
    let (_, invite) = ask(&world, &mut callee, "k1", json!({})).await;
    callee.respond(&invite, "180 Ringing", "").await;
    let cancel = callee.expect("CANCEL").await;
    callee.respond(&cancel, "200 OK", "").await;
    callee.respond(&invite, "487 Request Terminated", "").await;
    callee.expect("ACK").await;
    let end = end(&world).await;
    assert_eq!((&end["cause"], &end["reason"]), (&json!("setup_failed"), &json!("model_failed")));
}

/// The next message on a stream; what follows it stays in `read`.
async fn message(stream: &mut tokio::net::TcpStream, read: &mut Vec<u8>) -> String {
    loop {
        let text = String::from_utf8_lossy(read).into_owned();
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
            let length: usize = length.trim().parse().unwrap();
            if rest.len() >= length {
                read.drain(..head.len() + 4 + length);
                return format!("{head}\r\n\r\n{}", &rest[..length]);
            }
        }
        assert!(tokio::io::AsyncReadExt::read_buf(stream, read).await.unwrap() > 0, "the line is cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_is_asked_and_called_over_tcp_where_it_wants_that() {
    let (mut world, _callee) = World::placing().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut peer = world::peer(listener.local_addr().unwrap());
    peer.0.transport = ihuza_relay::config::Transport::Tcp;
    world.begin(|config| config.trunks[0].peer = Some(peer)).await;
    let trunk = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut seen) = (Vec::new(), Vec::new());
        while seen.last().is_none_or(|method| method != "ACK") {
            let request = message(&mut stream, &mut read).await;
            let method = request.split(' ').next().unwrap().to_owned();
            let status = match method.as_str() {
                "OPTIONS" => Some("200 OK"),
                "INVITE" => Some("486 Busy Here"),
                _ => None,
            };
            if let Some(status) = status {
                let kept = ["Via:", "From:", "To:", "Call-ID:", "CSeq:"];
                let mut answer = format!("SIP/2.0 {status}\r\n");
                for line in request.lines().filter(|line| kept.iter().any(|name| line.starts_with(name))) {
                    let tag = if line.starts_with("To:") { ";tag=trunk" } else { "" };
                    answer.push_str(&format!("{line}{tag}\r\n"));
                }
                answer.push_str("Content-Length: 0\r\n\r\n");
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
                assert!(
                    request.contains("Via: SIP/2.0/TCP") && request.to_lowercase().contains("transport=tcp"),
                    "{request}"
                );
            }
            seen.push(method);
        }
        seen
    });
    until("the trunk is told to be there", || world.told.to("/trunks").pop()).await;
    let (status, call) = world.calls("POST", "", "k1", &json!({ "to": TO })).await;
    assert_eq!(status, 202, "{call}");
    assert_eq!(end(&world).await["cause"], "busy");
    let seen = tokio::time::timeout(world::SOON, trunk).await.unwrap().unwrap();
    assert_eq!(seen, ["OPTIONS", "INVITE", "ACK"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_that_asks_who_we_are_is_told() {
    for (status, challenge, answer) in [
        ("407 Proxy Authentication Required", "Proxy-Authenticate", "Proxy-Authorization"),
        ("401 Unauthorized", "WWW-Authenticate", "Authorization"),
    ] {
        let (mut world, mut callee) = World::placing().await;
        world
            .begin(|config| {
                let digest = toml::from_str("username = \"ihuza\"\npassword_env = \"TRUNK_PASSWORD\"").unwrap();
                config.trunks[0].outbound.as_mut().unwrap().digest = Some(digest);
            })
            .await;
        let (_, invite) = ask(&world, &mut callee, "k1", json!({})).await;
        // The trunk checks as strictly as we do.
        let mut trunk = Authenticator::new([7; 64]);
        let credentials = Credentials { username: "ihuza", password: "secret" };
        let Verdict::Challenged(asked) = trunk.check(Moment::default(), None, "INVITE", credentials) else { panic!() };
        let asked: String = asked.iter().map(|one| format!("{challenge}: {one}\r\n")).collect();
        callee.respond_with(&invite, status, &asked, "").await;
        callee.expect("ACK").await;
        let again = callee.expect("INVITE").await;
        let given = again.header(answer).unwrap_or_else(|| panic!("no {answer}: {}", again.text));
        assert_eq!(trunk.check(Moment::default(), Some(given), "INVITE", credentials), Verdict::Accepted, "{given}");
        assert_eq!(again.header("Call-ID"), invite.header("Call-ID"));
        callee.pick_up(&again).await;
        callee.hang_up(&again).await;
        assert_eq!(end(&world).await["cause"], "caller_hangup");
        assert_eq!(world.told.to("/end").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_called_is_refused_before_anything_rings() {
    let (mut world, mut callee) = World::placing().await;
    world
        .begin(|config| {
            let rules = config.trunks[0].outbound.as_mut().unwrap();
            rules.calls = 1;
            // Two calls of thirty minutes, if one after the other costs nothing.
            rules.daily_budget = Amount(450_000_000);
        })
        .await;
    let refused = async |key: &str, body: Value| {
        let (status, problem) = world.calls("POST", "", key, &body).await;
        (status, problem["type"].as_str().unwrap_or_default().trim_start_matches("https://ihuza.rw/errors/").to_owned())
    };
    assert_eq!(refused("a", json!({ "to": "+254712345678" })).await, (403, "number-not-allowed".into()));
    assert_eq!(refused("b", json!({ "to": TO, "trunk": "guarded" })).await, (422, "no-outbound-trunk".into()));
    assert_eq!(refused("c", json!({ "to": "12" })).await, (422, "invalid-field".into()));
    assert_eq!(refused("d", json!({})).await, (422, "missing-field".into()));
    assert_eq!(refused("e", json!({ "to": TO, "locale": "xx" })).await, (422, "invalid-field".into()));
    assert_eq!(refused("f", json!({ "to": TO, "max_ring_seconds": 4 })).await, (422, "invalid-field".into()));
    assert_eq!(refused("", json!({ "to": TO })).await, (422, "missing-field".into()));
    assert_eq!(refused("g", json!({ "to": TO, "reference": "x".repeat(20_000) })).await, (413, "too-large".into()));
    assert_eq!(refused("h", json!([])).await, (400, "bad-json".into()));
    callee.hears_nothing_of("INVITE").await;
    let (id, invite) = ask(&world, &mut callee, "k1", json!({})).await;
    assert_eq!(refused("i", json!({ "to": TO })).await, (429, "trunk-full".into()));
    callee.pick_up(&invite).await;
    callee.hang_up(&invite).await;
    world.placed_call(&id, "ended").await;
    assert_eq!(refused("i", json!({ "to": TO })).await, (429, "over-budget".into()), "a minute of it is spent");
    let metrics = world.get("/metrics").await.1;
    for reason in ["prefix_not_allowed", "no_trunk", "trunk_calls_full", "over_budget"] {
        assert!(metrics.contains(&format!("calls_not_placed_total{{reason=\"{reason}\"}} 1")), "{reason}: {metrics}");
    }
    assert_eq!(world.told.to("/openai-realtime").len(), 1, "of the others nobody was told");
}

/// A request for a call of which nobody waits for the answer.
async fn ask_and_go(world: &World, key: &str) {
    let body = json!({ "to": TO }).to_string();
    let (at, length) = (world.http, body.len());
    let head = format!(
        "POST /calls HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer calls-key\r\nIdempotency-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_and_goes_away_leaves_no_call_half_placed() {
    let (mut world, mut callee) = World::placing().await;
    world.begin(|_| ()).await;
    for n in 0..20 {
        let key = format!("k{n}");
        ask_and_go(&world, &key).await;
        // The request was read or not: the same one again finds the call, or places it.
        let (status, call) = world.calls("POST", "", &key, &json!({ "to": TO })).await;
        assert!([200, 202].contains(&status), "{call}");
        let invite = callee.expect("INVITE").await;
        callee.respond(&invite, "486 Busy Here", "").await;
        callee.expect("ACK").await;
        world.placed_call(call["id"].as_str().unwrap(), "ended").await;
    }
    until("the budget and the lines are free", || (world.told.to("/end").len() == 20).then_some(())).await;
    let metrics = world.get("/metrics").await.1;
    assert!(metrics.contains("calls_placed_total 20") && metrics.contains("calls_running 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_picked_up_before_its_agent_is_known_is_told_that_it_is_recorded() {
    let (mut world, mut callee) = World::placing().await;
    let directory = world.directory.clone();
    world.function_is_slow("/openai-realtime", Duration::from_secs(2));
    world
        .begin(|config| {
            let announcements = directory.join("announcements");
            std::fs::create_dir_all(&announcements).unwrap();
            std::fs::write(announcements.join("consent.en.alaw"), [0x41; 4000]).unwrap();
            config.media.announcements = Some(announcements);
            config.recording.directory = Some(directory.join("recordings"));
            config.trunks[0].record = true;
            config.session.timeout_ms = 60_000;
            config.sip.answer_within_ms = 60_000;
        })
        .await;
    // There is no announcement in the language that was asked for: that of the number is heard.
    let (_, invite) = ask(&world, &mut callee, "k1", json!({ "locale": "fr" })).await;
    callee.pick_up(&invite).await;
    callee.listen_for(0x41).await;
    until("the consent is told", || world.told.kinds().contains(&"consent".into()).then_some(())).await;
    until("the recording has begun", || world.told.kinds().contains(&"recording".into()).then_some(())).await;
    let consent = world.told.events().into_iter().find(|event| event["type"] == "consent").unwrap();
    assert_eq!(consent["language"], "en");
    callee.hang_up(&invite).await;
    end(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_apology_for_lateness_no_model_is_called() {
    let (mut world, mut callee) = World::placing().await;
    let directory = world.directory.clone();
    world.function_is_slow("/openai-realtime", Duration::from_secs(2));
    world
        .begin(|config| {
            let announcements = directory.join("announcements");
            std::fs::create_dir_all(&announcements).unwrap();
            std::fs::write(announcements.join("apology.en.alaw"), vec![0x43; 24_000]).unwrap();
            config.media.announcements = Some(announcements);
            config.session.timeout_ms = 60_000;
            config.sip.answer_within_ms = 200;
        })
        .await;
    let (_, invite) = ask(&world, &mut callee, "k1", json!({})).await;
    callee.pick_up(&invite).await;
    callee.listen_for(0x43).await;
    callee.expect_within("BYE", Duration::from_secs(30)).await;
    assert_eq!(end(&world).await["cause"], "model_unavailable");
    until("the function answers all the same", || world.told.to("/openai-realtime").pop()).await;
    assert!(world.model.types().is_empty(), "{:?}", world.model.types());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_key_is_heard() {
    let (mut world, mut callee) = World::placing().await;
    world.begin(|_| ()).await;
    let url = format!("http://{}/calls", world.http);
    let client = reqwest::Client::new();
    for request in [
        client.post(&url),
        client.post(&url).bearer_auth("calls-kez"),
        client.post(&url).bearer_auth(""),
        client.post(&url).basic_auth("calls-key", None::<&str>),
        client.get(format!("{url}/1")),
        client.delete(format!("{url}/1")),
    ] {
        let response = request.header("Idempotency-Key", "k").json(&json!({ "to": TO })).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()["www-authenticate"].to_str().unwrap()),
            (401, "Bearer")
        );
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    callee.hears_nothing_of("INVITE").await;
    assert_eq!(world.calls("GET", "/unknown", "", &Value::Null).await.0, 404);
    let wrong = client.put(&url).bearer_auth("calls-key").send().await.unwrap();
    assert_eq!((wrong.status().as_u16(), wrong.headers()["allow"].to_str().unwrap()), (405, "POST"));
    let mut off = World::start().await;
    assert_eq!(off.calls("POST", "", "k", &json!({ "to": TO })).await.0, 401, "without settings there is no key");
    off.relay.take();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_that_is_down_is_not_called() {
    let (mut world, mut callee) = World::placing().await;
    world.begin(|_| ()).await;
    let question = callee.expect("OPTIONS").await;
    callee.respond(&question, "503 Service Unavailable", "").await;
    until("it is told", || world.told.to("/trunks").pop()).await;
    let (status, problem) = world.calls("POST", "", "k", &json!({ "to": TO })).await;
    assert_eq!((status, &problem["type"]), (503, &json!("https://ihuza.rw/errors/trunk-down")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_ends_what_it_placed_once_and_places_nothing_again() {
    let (world, mut callee) = World::placing().await;
    for (key, answered) in [("ringing", false), ("answered", true)] {
        let mut process = world.process().await;
        let (id, invite) = ask(&world, &mut callee, key, json!({})).await;
        callee.respond(&invite, "180 Ringing", "").await;
        world.placed_call(&id, "ringing").await;
        if answered {
            callee.pick_up(&invite).await;
            world.placed_call(&id, "answered").await;
            until("it is told", || world.told.kinds().contains(&"answered".into()).then_some(())).await;
        }
        process.kill();
        let mut next = world.process().await;
        let end =
            until("the end is told", || world.told.to("/end").into_iter().find(|end| end["correlation_id"] == id))
                .await;
        let cause = if answered { "relay_restarted" } else { "setup_failed" };
        assert_eq!((&end["cause"], &end["direction"], &end["to"]), (&json!(cause), &json!("outbound"), &json!(TO)));
        let (status, again) = world.calls("POST", "", key, &json!({ "to": TO })).await;
        assert_eq!(
            (status, again["id"].as_str(), &again["status"]),
            (200, Some(id.as_str()), &json!("ended")),
            "{again}"
        );
        callee.hears_nothing_of("INVITE").await;
        assert_eq!(world.told.to("/end").iter().filter(|end| end["correlation_id"] == id).count(), 1);
        next.kill();
    }
}
