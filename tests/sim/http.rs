//! A small HTTP/1.1 server that can also misbehave: cut a connection, hang, or stop in the middle of an answer; and hand a
//! connection over to another protocol.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Sleep};

use crate::error::{Context, Result};
use crate::runtime;

/// Meta may batch 3 MB; nobody whom we stand in for takes more.
const BODY_LIMIT: usize = 8 * 1024 * 1024;

/// A request, read to its end.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Without the question mark; empty when there is none.
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The token of `Authorization: Bearer <token>`.
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An answer as it will be written.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Answer {
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: Bytes::from(value.to_string()),
        }
    }

    pub fn text(status: u16, content_type: &str, body: &str) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), content_type.into())],
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// The bytes of a connection after a 101.
pub type Stream = TokioIo<Upgraded>;

type Talking = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What goes on over a connection after a 101.
pub struct Talk(Box<dyn FnOnce(Stream) -> Talking + Send>);

impl Talk {
    pub fn new<F: Future<Output = ()> + Send + 'static>(talk: impl FnOnce(Stream) -> F + Send + 'static) -> Self {
        Self(Box::new(move |stream| Box::pin(talk(stream))))
    }
}

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Talk")
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Reply {
    Whole(Answer),
    /// A 101, and what is then spoken.
    Upgrade(Answer, Talk),
    /// The headers promise the whole body; half of it comes, then the connection ends.
    Truncated(Answer),
    /// Nothing comes for this long, then the connection ends.
    Hang(Duration),
    /// The connection ends without a byte.
    Cut,
}

type Handling = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Handler = Arc<dyn Fn(Request) -> Handling + Send + Sync>;

/// A listening server on 127.0.0.1. Dropping it closes the port and every connection.
pub struct Server {
    port: u16,
    handler: Handler,
    task: Mutex<JoinHandle<()>>,
}

impl Server {
    /// Port 0 takes any free one.
    pub async fn start<H, F>(port: u16, handler: H) -> Result<Self>
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let (port, task) = listen(port, handler.clone()).await?;
        Ok(Self { port, handler, task: Mutex::new(task) })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Once this returns nobody can connect, and whoever was connected is cut off.
    pub async fn go_down(&self) {
        self.task().abort();
        while tokio::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, self.port)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The tasks of the connections end when they are next looked at.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Listens again, on the same port.
    pub async fn come_back(&self) -> Result<()> {
        self.go_down().await;
        let (_, task) = listen(self.port, self.handler.clone()).await?;
        *self.task() = task;
        Ok(())
    }

    fn task(&self) -> MutexGuard<'_, JoinHandle<()>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task().abort();
    }
}

async fn listen(port: u16, handler: Handler) -> Result<(u16, JoinHandle<()>)> {
    runtime::on(async move {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .context(format!("cannot listen on 127.0.0.1:{port}: is another world running?"))?;
        let address = listener.local_addr().context("cannot read the port just bound")?;
        Ok((address.port(), runtime::spawn(accept(listener, handler))))
    })
    .await
}

async fn accept(listener: TcpListener, handler: Handler) {
    // Aborting this task drops the set, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let handler = handler.clone();
        connections.spawn(async move {
            let upgraded = Handover::default();
            let service = service_fn(|request| serve(request, handler.clone(), upgraded.clone()));
            let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = serving.with_upgrades().await;
            let handover = upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some((upgrade, Talk(talk))) = handover
                && let Ok(stream) = upgrade.await
            {
                talk(TokioIo::new(stream)).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Where a request leaves what is to be spoken when the connection is no longer HTTP.
type Handover = Arc<Mutex<Option<(OnUpgrade, Talk)>>>;

async fn serve(
    mut request: hyper::Request<Incoming>,
    handler: Handler,
    upgraded: Handover,
) -> Result<hyper::Response<Outgoing>, CutHere> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(_) => {
            let refusal = Answer::text(413, "text/plain", "body too large or cut");
            return write(refusal, false);
        }
    };
    let request = Request {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    match handler(request).await {
        Reply::Whole(answer) => write(answer, false),
        Reply::Upgrade(answer, talk) => {
            *upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, talk));
            write(answer, false)
        }
        Reply::Truncated(answer) => write(answer, true),
        Reply::Hang(patience) => {
            tokio::time::sleep(patience).await;
            Err(CutHere)
        }
        Reply::Cut => Err(CutHere),
    }
}

fn write(answer: Answer, cut: bool) -> Result<hyper::Response<Outgoing>, CutHere> {
    let mut builder = hyper::Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        builder = builder.header(name, value);
    }
    let whole = answer.body.len() as u64;
    let half = answer.body.len() / 2;
    let body = if cut { answer.body.slice(..half) } else { answer.body };
    builder
        .body(Outgoing {
            data: Some(body),
            length: whole,
            cut: cut.then(|| Box::pin(tokio::time::sleep_until(Instant::now() + FLUSH))),
        })
        .map_err(|_| CutHere)
}

/// Long enough for the first half of a truncated answer to leave before the connection goes.
const FLUSH: Duration = Duration::from_millis(30);

struct Outgoing {
    data: Option<Bytes>,
    length: u64,
    cut: Option<Pin<Box<Sleep>>>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = CutHere;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutHere>>> {
        if let Some(data) = self.data.take().filter(|data| !data.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &mut self.cut {
            None => Poll::Ready(None),
            Some(flush) => {
                ready!(flush.as_mut().poll(context));
                Poll::Ready(Some(Err(CutHere)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && self.data.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

/// Tells hyper to drop the connection.
#[derive(Debug)]
struct CutHere;

impl std::fmt::Display for CutHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut, as ordered")
    }
}

impl std::error::Error for CutHere {}
