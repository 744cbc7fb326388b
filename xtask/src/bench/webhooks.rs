//! How long a carrier waits for its webhook to be accepted: signature checked, read, put onto the queue, answered.
//!
//! On the bare runtime, as the accept paths in `accept.rs`; beside it the least that a Worker can do. One request after the
//! other, and many at a time; and the largest batch that Meta sends.

use std::time::Instant;

use anyhow::{Result, bail};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::Figure;
use super::http::{Connection, Request};
use super::stats::percentile;
use super::traffic::{WEBHOOK_SECRET, signed};
use super::workerd::{Side, Stage, Worker, Workerd};
use crate::progress::Step;

/// Within this the 99th of a hundred is answered.
const AIM_MS: f64 = 20.0;
const CONCURRENCY: usize = 16;
const WARM_UP: usize = 600;
/// Of the largest batches so many are measured.
const BATCHES: usize = 60;
/// Updates that Meta may put into one webhook.
const MOST_UPDATES: usize = 1_000;
const FLOOR: &str = "a Worker that only reads, sends and answers";
const PHONE_NUMBER_ID: &str = "118204633907751";

pub const FUNCTIONS: [&str; 2] = ["whatsapp-webhook", "delivery-status-webhook"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    WhatsappMessage,
    WhatsappStatus,
    WhatsappBatch,
    MtnReport,
}

impl Hook {
    const ALL: [Hook; 4] = [Hook::WhatsappMessage, Hook::WhatsappStatus, Hook::WhatsappBatch, Hook::MtnReport];

    fn function(self) -> &'static str {
        match self {
            Hook::WhatsappMessage | Hook::WhatsappStatus | Hook::WhatsappBatch => "whatsapp-webhook",
            Hook::MtnReport => "delivery-status-webhook",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Hook::WhatsappMessage => "message",
            Hook::WhatsappStatus => "status",
            Hook::WhatsappBatch => "batch_of_1000",
            Hook::MtnReport => "report",
        }
    }

    fn request(self, number: usize) -> Request {
        match self {
            Hook::WhatsappMessage => of_meta(&value(
                "messages",
                &[
                    json!({"from": "250788123456", "id": format!("wamid.in{number}"), "timestamp": "1795234800", "type": "text",
                         "text": {"body": "Hello, is the house in Kimironko still available? My budget is 250k."}}),
                ],
            )),
            Hook::WhatsappStatus => of_meta(&value("statuses", &[status(number)])),
            Hook::WhatsappBatch => {
                let many: Vec<Value> = (0..MOST_UPDATES).map(|at| status(number * MOST_UPDATES + at)).collect();
                of_meta(&value("statuses", &many))
            }
            Hook::MtnReport => signed(
                "/delivery-status-webhook",
                &json!({"requestId": "1", "clientCorrelatorId": format!("{number:08x}-5f1a-4c0e-9b3d-42867d1a5c0e"),
                        "deliveryStatus": "DELIVRD", "doneDate": "2026-11-21 06:05:00"})
                .to_string(),
            ),
        }
    }
}

fn status(number: usize) -> Value {
    json!({"id": format!("wamid.HBgMMjUwNzg4MTIzNDU2FQIAERgS{number:016x}"), "status": "delivered", "timestamp": "1795234800",
           "recipient_id": "250788123456", "biz_opaque_callback_data": format!("{:08x}-5f1a-4c0e-9b3d-42867d1a5c0e", number % 0xffff_ffff),
           "conversation": {"id": "c0ffee", "origin": {"type": "utility"}},
           "pricing": {"billable": true, "pricing_model": "PMP", "type": "regular", "category": "utility"}})
}

fn value(kind: &str, items: &[Value]) -> Value {
    json!({"messaging_product": "whatsapp", "metadata": {"display_phone_number": "250788000000", "phone_number_id": PHONE_NUMBER_ID},
           "contacts": [{"profile": {"name": "Aline"}, "wa_id": "250788123456"}], kind: items})
}

/// Signed as Meta does: HMAC-SHA256 of the raw body with the app secret.
fn of_meta(value: &Value) -> Request {
    let body = json!({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]})
        .to_string();
    let digest = Hmac::<Sha256>::new_from_slice(WEBHOOK_SECRET.as_bytes())
        .map(|mac| mac.chain_update(&body).finalize().into_bytes())
        .unwrap_or_default();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let signature = format!("sha256={digest}");
    let headers = [("x-hub-signature-256", signature.as_str()), ("content-type", "application/json")];
    Request::new("POST", "/whatsapp-webhook", &headers, &body)
}

pub fn measure(stage: &Stage, requests: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for hook in Hook::ALL {
        let step = Step::start(&format!("{}: accepting a {}", hook.function(), hook.name()), None);
        let workers = [Side::Ours, Side::Floor].map(|side| Worker::of(side, hook.function()));
        let runtime = stage.start(&workers, false)?;
        let [ours, floor] = &workers;
        refuses_a_forgery(&runtime, ours, hook)?;
        let lanes: &[usize] = if hook == Hook::WhatsappBatch { &[1] } else { &[1, CONCURRENCY] };
        for concurrency in lanes {
            let many = if hook == Hook::WhatsappBatch { BATCHES } else { requests };
            let ours = waits(&runtime, ours, hook, *concurrency, many)?;
            let floor = waits(&runtime, floor, hook, *concurrency, many)?;
            let name = |what: &str| match concurrency {
                1 => format!("edge.{}.webhook_{}.{what}", hook.function(), hook.name()),
                _ => format!("edge.{}.webhook_{}_c{concurrency}.{what}", hook.function(), hook.name()),
            };
            let count = ours.ms.len() as u64;
            let note = "signature checked, read, one queue send; from the request's first byte to the whole answer";
            for (what, percent) in [("p50_ms", 50.0), ("p99_ms", 99.0)] {
                let figure = Figure::new(name(what), percentile(&ours.ms, percent), "ms", count, note)
                    .beside(FLOOR, percentile(&floor.ms, percent));
                let is_aim = percent > 90.0 && hook != Hook::WhatsappBatch;
                figures.push(if is_aim { figure.at_most(None, Some(AIM_MS)) } else { figure });
            }
            if ours.cpu_us > 0.0 {
                let note =
                    "processor time of the whole runtime a request: says more than times where others are at work";
                figures.push(Figure::new(name("cpu_us"), ours.cpu_us, "us", count, note).beside(FLOOR, floor.cpu_us));
            }
        }
        step.finish();
    }
    Ok(figures)
}

/// What is measured is the checking too: one changed byte is turned away.
fn refuses_a_forgery(runtime: &Workerd, worker: &Worker, hook: Hook) -> Result<()> {
    let mut connection = Connection::open(runtime.port(&worker.name)?)?;
    let answer = connection.send(&hook.request(0).with_last_byte(b' '))?;
    if answer.status != 401 && answer.status != 403 {
        bail!("a forged {} was answered {}", hook.name(), answer.status);
    }
    Ok(())
}

/// What so many requests took.
struct Waits {
    ms: Vec<f64>,
    /// A request; zero where the system does not tell.
    cpu_us: f64,
}

fn waits(runtime: &Workerd, worker: &Worker, hook: Hook, concurrency: usize, count: usize) -> Result<Waits> {
    let port = runtime.port(&worker.name)?;
    let warm_up = if hook == Hook::WhatsappBatch { 5 } else { WARM_UP };
    let lane = |lane: usize, count: usize| -> Result<Vec<f64>> {
        let mut connection = Connection::open(port)?;
        let mut waits = Vec::with_capacity(count);
        for number in 0..count {
            let request = hook.request(lane * count + number);
            let sent = Instant::now();
            let answer = connection.send(&request)?;
            waits.push(sent.elapsed().as_secs_f64() * 1e3);
            if answer.status >= 300 {
                bail!("a proper {} was answered {}", hook.name(), answer.status);
            }
        }
        Ok(waits)
    };
    lane(0, warm_up)?;
    let share = count.div_ceil(concurrency);
    let before = runtime.cpu_ns();
    let ms: Vec<f64> = std::thread::scope(|scope| {
        let lane = &lane;
        let lanes: Vec<_> = (0..concurrency).map(|at| scope.spawn(move || lane(at + 1, share))).collect();
        let ended = lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| bail!("a lane ended abnormally")));
        ended.collect::<Result<Vec<_>>>()
    })?
    .concat();
    let cpu_ns = before.zip(runtime.cpu_ns()).map_or(0, |(before, after)| after.saturating_sub(before));
    let cpu_us = cpu_ns as f64 / 1e3 / ms.len().max(1) as f64;
    Ok(Waits { ms, cpu_us })
}
