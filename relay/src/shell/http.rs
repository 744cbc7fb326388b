//! `/healthz` and `/metrics`, and the doors to `/calls` and `/mtn-media`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::relay::Shared;
use super::{calls_api, gateway};

/// Connections at a time; a scraper needs one.
const MOST_CONNECTIONS: usize = 64;
/// A request's head is there within this time, or never.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// The wait after a connection that could not be taken.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Serves in a task of its own; the address that it listens on.
pub async fn serve(listen: SocketAddr, shared: Arc<Shared>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(seat) = room.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Without a free descriptor the next one fails as soon.
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            };
            let shared = shared.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let shared = shared.clone();
                    async move {
                        let path = request.uri().path();
                        let response = if calls_api::is_ours(path) {
                            calls_api::answer(&shared, request).await
                        } else if path.starts_with(gateway::PATH) {
                            gateway::upgrade(&shared, request)
                        } else {
                            answer(&shared, &request)
                        };
                        Ok::<_, Infallible>(response)
                    }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).keep_alive(false);
                let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                drop(seat);
            });
        }
    });
    Ok(address)
}

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => {
            let (open, health) = shared.health();
            let status = if open { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (status, "application/json", health.to_string())
        }
        (&Method::GET, "/metrics") => {
            shared.metrics.journal(shared.desk.journal.failures(), shared.desk.journal.is_failing());
            shared.metrics.untold(shared.desk.untold());
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", shared.metrics.render())
        }
        (_, "/healthz" | "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /healthz, /metrics, /calls and /mtn-media\n".into()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
    }
    response
}
