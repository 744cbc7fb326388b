//! A client that costs next to nothing: one connection kept alive, requests made beforehand, answers read whole.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest silence before a measurement is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// A request as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    pub fn new(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: bench/1\r\naccept: */*\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if method != "GET" {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        Self(text.into_bytes())
    }

    /// The same request with another byte at the end of its body.
    pub fn with_last_byte(mut self, byte: u8) -> Self {
        if let Some(last) = self.0.last_mut() {
            *last = byte;
        }
        self
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).context("could not connect to the runtime")?;
        stream.set_nodelay(true).context("could not set up the connection")?;
        stream.set_read_timeout(Some(PATIENCE)).context("could not set up the connection")?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    pub fn send(&mut self, request: &Request) -> Result<Answer> {
        self.stream.write_all(&request.0).context("could not send a request")?;
        self.buffer.clear();
        let mut piece = [0; 4096];
        loop {
            let read = self.stream.read(&mut piece).context("the runtime did not answer")?;
            if read == 0 {
                bail!("the runtime closed the connection: {}", String::from_utf8_lossy(&self.buffer));
            }
            self.buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
            if let Some(answer) = whole(&self.buffer)? {
                return Ok(answer);
            }
            if self.buffer.len() > ANSWER_LIMIT_BYTES {
                bail!("the runtime's answer has no end");
            }
        }
    }
}

/// The answer, once all of it is there. Only bodies of announced length: the runtime announces that of every text.
fn whole(bytes: &[u8]) -> Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).to_ascii_lowercase();
    let mut lines = head.split("\r\n");
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("an answer without status")?;
    let length: usize = lines
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .with_context(|| format!("an answer of status {status} without content-length"))?;
    let body = bytes.get(end + 4..end + 4 + length);
    Ok(body.map(|body| Answer { status, body: body.to_vec() }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_all_of_it_is_there() {
        let bytes = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Type: x\r\n\r\n{}";
        for end in 0..bytes.len() {
            assert_eq!(whole(bytes.get(..end).unwrap()).unwrap(), None);
        }
        assert_eq!(whole(bytes).unwrap(), Some(Answer { status: 202, body: b"{}".to_vec() }));
        assert!(whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
