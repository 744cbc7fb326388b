//! The session function, at the wire.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ihuza_core::realtime;
use serde_json::Value;
use tokio::net::TcpListener;

/// What the session function was told.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<(String, Value)>>>);

impl Told {
    /// Bodies that were posted to paths with this end, in order.
    pub fn to(&self, end: &str) -> Vec<Value> {
        self.0.lock().unwrap().iter().filter(|(path, _)| path.ends_with(end)).map(|(_, body)| body.clone()).collect()
    }

    /// All events, in order.
    pub fn events(&self) -> Vec<Value> {
        self.to("/events").iter().flat_map(|body| body["events"].as_array().unwrap().clone()).collect()
    }

    /// Kinds of all events.
    pub fn kinds(&self) -> Vec<String> {
        self.events().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    }
}

/// At paths with this end, the next answer has this status, or is this late.
pub(super) struct Fault {
    pub end: String,
    pub status: Option<u16>,
    pub delay: Duration,
}

pub(super) type Faults = Arc<Mutex<VecDeque<Fault>>>;

/// The function's own reader takes the request.
fn reads(path: &str, body: &Value) {
    let refused = match path.rsplit('/').next() {
        Some("events") => realtime::events_fields(body).err(),
        Some("tools") => realtime::tool_run(body).err(),
        Some("trunks") => {
            for trunk in body["trunks"].as_array().unwrap() {
                // What the table of reports takes, and nothing besides.
                assert!(["active", "down"].contains(&trunk["status"].as_str().unwrap()), "{body}");
            }
            realtime::trunk_fields(body).err()
        }
        Some("end") => {
            assert!(realtime::CAUSES.contains(&body["cause"].as_str().unwrap()), "{body}");
            realtime::end_fields(body).err()
        }
        _ => realtime::call_fields(body).err(),
    };
    assert!(refused.is_none(), "{path}: {refused:?}");
}

/// Takes what the relay tells, as strictly as the function does, and answers.
pub(super) async fn function(told: Told, faults: Faults) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (told, faults) = (told.clone(), faults.clone());
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (told, faults) = (told.clone(), faults.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    assert_eq!(request.headers()["authorization"], "Bearer function-key");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    reads(&path, &serde_json::from_slice(&body).unwrap());
                    let fault = {
                        let mut faults = faults.lock().unwrap();
                        let at = faults.iter().position(|fault| path.ends_with(&fault.end));
                        at.and_then(|at| faults.remove(at))
                    };
                    let mut response = Response::new(Full::new(Bytes::from_static(if path.ends_with("/tools") {
                        &br#"{"ok":true,"result":{"found":3}}"#[..]
                    } else {
                        br#"{"callId":"1","resumed":false,"locale":null,"greeting":"greet","session":{"instructions":"be brief","tools":[]}}"#
                                .as_slice()
                    })));
                    if body.windows(17).any(|text| text == b"transfer_to_human") {
                        *response.body_mut() =
                            Full::new(Bytes::from_static(br#"{"ok":true,"result":{"transfer_to":"+250788123000"}}"#));
                    }
                    // An agent whose model is opened with a key of the call's own.
                    if path.ends_with("/openai-realtime") && body.windows(7).any(|text| text == b"\"keyed\"") {
                        *response.body_mut() = Full::new(Bytes::from_static(
                            br#"{"ephemeralKey":"model-key","greeting":"greet","session":{"instructions":"be brief","tools":[]}}"#,
                        ));
                    }
                    if let Some(fault) = &fault {
                        tokio::time::sleep(fault.delay).await;
                    }
                    match fault.and_then(|fault| fault.status) {
                        Some(status) => *response.status_mut() = StatusCode::from_u16(status).unwrap(),
                        None => told.0.lock().unwrap().push((path, serde_json::from_slice(&body).unwrap())),
                    }
                    Ok::<_, hyper::Error>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}
