//! The accept paths beside the same work in TypeScript: time and processor time a request, crossings, start-up.
//!
//! Both sides and the least possible Worker are isolates of one process. Requests go in blocks, ours and the peer's in
//! turn, so that what disturbs the machine disturbs both; ratios are medians over neighbouring blocks.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Figure;
use super::http::{Connection, Request};
use super::stats::{median, paired_ratio, percentile, ratio_quartiles};
use super::traffic::{Accept, MEASURED};
use super::workerd::{Side, Stage, Worker, Workerd};
use crate::progress::{self, Step};

const PEER: &str = "typescript worker";
const CONCURRENCY: usize = 16;
/// Requests before anything is measured: engines compile what is hot.
const WARM_UP: usize = 600;
/// Over this many requests crossings are counted.
const COUNTED: usize = 50;
/// Crossings named in the note.
const NAMED: usize = 12;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub blocks: usize,
    pub block_requests: usize,
    pub crowded_blocks: usize,
    pub starts: usize,
}

impl Effort {
    pub const FULL: Self = Self { blocks: 24, block_requests: 250, crowded_blocks: 14, starts: 9 };
    pub const QUICK: Self = Self { blocks: 8, block_requests: 200, crowded_blocks: 6, starts: 3 };
}

pub fn measure(stage: &Stage, effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for accept in MEASURED {
        let step = Step::start(&format!("{}: the accept path beside TypeScript", accept.function()), None);
        figures.extend(requests(stage, accept, effort)?);
        figures.push(crossings(stage, accept)?);
        step.finish();
    }
    for accept in MEASURED {
        let step = Step::start(&format!("{}: {} cold starts a side", accept.function(), effort.starts), None);
        figures.extend(starts(stage, accept, effort)?);
        step.finish();
    }
    Ok(figures)
}

/// One block of requests.
#[derive(Default)]
struct Block {
    wall_us: Vec<f64>,
    /// A request; zero where the system does not tell.
    cpu_us: f64,
}

/// The blocks of one side, in order.
#[derive(Default)]
struct Blocks(Vec<Block>);

impl Blocks {
    fn cpu_us(&self) -> Vec<f64> {
        self.0.iter().map(|block| block.cpu_us).collect()
    }

    fn wall_us(&self, percent: f64) -> Vec<f64> {
        self.0.iter().map(|block| percentile(&block.wall_us, percent)).collect()
    }

    fn requests(&self) -> u64 {
        self.0.iter().map(|block| block.wall_us.len() as u64).sum()
    }
}

fn requests(stage: &Stage, accept: Accept, effort: Effort) -> Result<Vec<Figure>> {
    let sides = [Side::Ours, Side::Peer, Side::Floor];
    let workers = sides.map(|side| Worker::of(side, accept.function()));
    let runtime = stage.start(&workers, false)?;
    let [ours, peer, _] = &workers;
    let differences = differences(&runtime, accept, [ours, peer])?;
    for difference in &differences {
        progress::warn(&format!("{}: the TypeScript peer does not do the same: {difference}", accept.function()));
    }
    let sameness = match differences.len() {
        0 => String::new(),
        count => format!("; CAUTION: the peer treats {count} of the compared requests differently"),
    };
    let mut figures = Vec::new();
    for (concurrency, rounds) in [(1, effort.blocks), (CONCURRENCY, effort.crowded_blocks)] {
        let mut connections: Vec<Vec<Connection>> = Vec::new();
        for worker in &workers {
            let port = runtime.port(&worker.name)?;
            connections.push((0..concurrency).map(|_| Connection::open(port)).collect::<Result<_>>()?);
        }
        for connections in &mut connections {
            block(&runtime, connections, accept, WARM_UP)?;
        }
        let mut sides: [Blocks; 3] = Default::default();
        for round in 0..rounds {
            // Every other round the other way round, so that nobody always follows the same neighbour.
            let mut order = [0, 1, 2];
            if round % 2 == 1 {
                order.reverse();
            }
            for side in order {
                if let (Some(connections), Some(blocks)) = (connections.get_mut(side), sides.get_mut(side)) {
                    blocks.0.push(block(&runtime, connections, accept, effort.block_requests.max(concurrency))?);
                }
            }
        }
        figures.extend(compared(accept, concurrency, &sides, &sameness));
    }
    Ok(figures)
}

/// Sends `count` requests over these connections, each of which waits for its answers one by one.
fn block(runtime: &Workerd, connections: &mut [Connection], accept: Accept, count: usize) -> Result<Block> {
    let share = count.div_ceil(connections.len().max(1));
    let requests: Vec<Vec<Request>> =
        (0..connections.len()).map(|lane| (0..share).map(|at| accept.request(lane * share + at)).collect()).collect();
    let before = runtime.cpu_ns();
    let wall_us: Vec<f64> = match (connections, requests.as_slice()) {
        ([connection], [requests]) => lane(connection, requests)?,
        (connections, requests) => std::thread::scope(|scope| {
            let lanes: Vec<_> = connections
                .iter_mut()
                .zip(requests)
                .map(|(connection, requests)| scope.spawn(|| lane(connection, requests)))
                .collect();
            let ended = lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| bail!("a lane ended abnormally")));
            ended.collect::<Result<Vec<_>>>()
        })?
        .concat(),
    };
    let cpu_ns = before.zip(runtime.cpu_ns()).map(|(before, after)| after.saturating_sub(before)).unwrap_or_default();
    let cpu_us = cpu_ns as f64 / 1000.0 / wall_us.len().max(1) as f64;
    Ok(Block { wall_us, cpu_us })
}

fn lane(connection: &mut Connection, requests: &[Request]) -> Result<Vec<f64>> {
    let mut wall_us = Vec::with_capacity(requests.len());
    for request in requests {
        let sent = Instant::now();
        let answer = connection.send(request)?;
        wall_us.push(sent.elapsed().as_secs_f64() * 1e6);
        if answer.status >= 300 {
            bail!("a proper request was answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
    }
    Ok(wall_us)
}

fn compared(accept: Accept, concurrency: usize, sides: &[Blocks; 3], sameness: &str) -> Vec<Figure> {
    let [ours, peer, floor] = sides;
    let name = |what: &str| match concurrency {
        1 => format!("edge.{}.accept.{what}", accept.function()),
        _ => format!("edge.{}.accept_c{concurrency}.{what}", accept.function()),
    };
    let n = ours.requests();
    let figure = |what: &str, ours: &[f64], peers: &[f64], note: &str| {
        let (low, high) = ratio_quartiles(ours, peers);
        let note = format!("{note}; middle half of the block ratios {low:.2} to {high:.2}{sameness}");
        let figure = Figure::new(name(what), median(ours), "us", n, &note).beside(PEER, median(peers));
        match paired_ratio(ours, peers) {
            Some(ratio) => figure.with_ratio(ratio),
            None => figure,
        }
    };
    let wall = |percent| {
        let how = if concurrency == 1 { "one after the other".to_owned() } else { format!("{concurrency} at a time") };
        let floor = median(&floor.wall_us(percent));
        format!("{}; requests {how}; a Worker that only reads, sends and answers: {floor:.0} us", accept.work())
    };
    let mut figures: Vec<Figure> = [("wall_p50_us", 50.0), ("wall_p95_us", 95.0)]
        .into_iter()
        .map(|(what, percent)| figure(what, &ours.wall_us(percent), &peer.wall_us(percent), &wall(percent)))
        .collect();
    let (ours, peer, floor) = (ours.cpu_us(), peer.cpu_us(), floor.cpu_us());
    if median(&floor) > 0.0 {
        let note = format!(
            "processor time of the whole runtime a request, HTTP and the queue's stand-in included; of that the least possible \
             Worker needs {:.0} us",
            median(&floor)
        );
        figures.push(figure("cpu_us", &ours, &peer, &note));
        let above = |side: &[f64]| -> Vec<f64> { side.iter().zip(&floor).map(|(side, floor)| side - floor).collect() };
        let note = "cpu_us less that of the least possible Worker: what is the Worker's own; small differences of large \
                    numbers, so look at the spread";
        figures.push(figure("own_cpu_us", &above(&ours), &above(&peer), note));
    }
    figures
}

/// Where the two sides do not do the same with the same request; what a person needs to mend it.
fn differences(runtime: &Workerd, accept: Accept, workers: [&Worker; 2]) -> Result<Vec<String>> {
    let mut queue = Connection::open(runtime.queue_port()?)?;
    let look = Request::new("GET", "/", &[], "");
    let mut connections = Vec::new();
    for worker in workers {
        connections.push(Connection::open(runtime.port(&worker.name)?)?);
    }
    queue.send(&look)?;
    let mut differences = Vec::new();
    for (number, request) in accept.comparison().iter().chain([&accept.request(0)]).enumerate() {
        let mut seen = Vec::new();
        for connection in &mut connections {
            let answer = connection.send(request)?;
            let sent: Vec<String> =
                serde_json::from_slice(&queue.send(&look)?.body).context("the queue shows no JSON")?;
            let sent: Vec<Value> = sent.iter().map(|text| comparable(text.as_bytes())).collect();
            seen.push((answer.status, comparable(&answer.body), sent));
        }
        if let [ours, peer] = seen.as_slice()
            && ours != peer
        {
            differences.push(format!("request {number}: ours {ours:?}, the peer {peer:?}"));
        }
    }
    Ok(differences)
}

/// JSON without what differs from request to request, and without the wording of what is wrong.
fn comparable(text: &[u8]) -> Value {
    let mut value = serde_json::from_slice(text).unwrap_or(Value::Null);
    if let Some(object) = value.as_object_mut() {
        for name in
            ["correlation_id", "correlation_ids", "status_url", "first_seen_at", "enqueued_at", "detail", "hint"]
        {
            object.remove(name);
        }
        // Where no time was given it is that of the arrival, and so is an id that is derived from it.
        if let Some(body) = object.get_mut("body").and_then(Value::as_object_mut) {
            let arrival =
                body.get("received_at").and_then(Value::as_str).is_some_and(|at| !at.starts_with("2026-11-21T04:05:0"));
            if arrival {
                body.remove("received_at");
            }
        }
    }
    value
}

/// Calls between wasm and JavaScript, both ways, for one request.
fn crossings(stage: &Stage, accept: Accept) -> Result<Figure> {
    let worker = Worker::counted(accept.function());
    let runtime = stage.start(std::slice::from_ref(&worker), false)?;
    let mut connection = Connection::open(runtime.port(&worker.name)?)?;
    let mut counter = Connection::open(runtime.port(&format!("{}/Crossings", worker.name))?)?;
    let look = Request::new("GET", "/", &[], "");
    // The first request also reads the settings.
    connection.send(&accept.request(0))?;
    counter.send(&look)?;
    for number in 0..COUNTED {
        connection.send(&accept.request(number))?;
    }
    let counts: BTreeMap<String, u64> =
        serde_json::from_slice(&counter.send(&look)?.body).context("the counter of crossings shows no JSON")?;
    let a_request = |count: u64| count as f64 / COUNTED as f64;
    let into: u64 = counts.iter().filter(|(name, _)| name.starts_with("in ")).map(|(_, count)| count).sum();
    let total: u64 = counts.values().sum();
    let mut most: Vec<(&String, &u64)> = counts.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let most: Vec<String> =
        most.iter().take(NAMED).map(|(name, count)| format!("{name} {}", a_request(**count))).collect();
    let note = format!("{} of them into wasm; most often: {}", a_request(into), most.join(", "));
    let name = format!("edge.{}.accept.crossings", accept.function());
    Ok(Figure::new(name, a_request(total), "calls", COUNTED as u64, &note))
}

/// A new process a time, to its first answer to a proper request.
fn starts(stage: &Stage, accept: Accept, effort: Effort) -> Result<Vec<Figure>> {
    let sides = [Side::Ours, Side::Peer, Side::Floor];
    let mut wall_ms: [Vec<f64>; 3] = Default::default();
    let mut cpu_ms: [Vec<f64>; 3] = Default::default();
    for _ in 0..effort.starts {
        for ((side, wall_ms), cpu_ms) in sides.iter().zip(&mut wall_ms).zip(&mut cpu_ms) {
            let worker = Worker::of(*side, accept.function());
            let runtime = stage.start(std::slice::from_ref(&worker), false)?;
            let answer = Connection::open(runtime.port(&worker.name)?)?.send(&accept.request(0))?;
            wall_ms.push(runtime.begun.elapsed().as_secs_f64() * 1e3);
            cpu_ms.push(runtime.cpu_ns().unwrap_or_default() as f64 / 1e6);
            if *side == Side::Ours && answer.status != accept.accepted() {
                bail!("a proper request was answered {}", answer.status);
            }
        }
    }
    let figure = |what: &str, [ours, peer, floor]: &[Vec<f64>; 3], note: &str| {
        let note = format!("{note}; with the least possible Worker {:.1} ms", median(floor));
        let name = format!("edge.{}.start.{what}", accept.function());
        let figure = Figure::new(name, median(ours), "ms", ours.len() as u64, &note).beside(PEER, median(peer));
        match paired_ratio(ours, peer) {
            Some(ratio) => figure.with_ratio(ratio),
            None => figure,
        }
    };
    let mut figures = vec![figure(
        "wall_ms",
        &wall_ms,
        "from the runtime's own start, a new process each time, to its first accepted request",
    )];
    if median(&cpu_ms[0]) > 0.0 {
        figures.push(figure("cpu_ms", &cpu_ms, "processor time until that answer, the runtime's own start included"));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_by_nature_is_not_compared() {
        let one = br#"{"v":1,"correlation_id":"a","first_seen_at":"x","body":{"text":"t","received_at":"2026-11-22T00:00:00.000Z"}}"#;
        let other = br#"{"v":1,"correlation_id":"b","first_seen_at":"y","body":{"text":"t","received_at":"2026-11-22T00:00:00.001Z"}}"#;
        assert_eq!(comparable(one), comparable(other));
        assert_ne!(comparable(br#"{"body":{"text":"t"}}"#), comparable(br#"{"body":{"text":"u"}}"#));
    }
}
