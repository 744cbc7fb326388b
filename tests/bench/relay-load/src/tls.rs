//! A connection to the model, with TLS or without, over a socket that never blocks.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::clock::Nanos;
use crate::stamped::{Receiver, Stream};

/// A certificate for 127.0.0.1 that only its own PEM vouches for, and the server's side of it.
pub fn certificate() -> Result<(String, Arc<ServerConfig>)> {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).context("cannot make a certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok((made.cert.pem(), Arc::new(config)))
}

/// What carries the bytes.
pub enum Wire {
    Plain(Vec<u8>),
    Tls(Box<ServerConnection>),
}

impl Wire {
    pub fn new(tls: Option<&Arc<ServerConfig>>) -> Result<Wire> {
        Ok(match tls {
            None => Wire::Plain(Vec::new()),
            Some(config) => Wire::Tls(Box::new(ServerConnection::new(config.clone())?)),
        })
    }

    /// What came, and when the last of it did; `false` if the other side is gone.
    pub fn read(
        &mut self,
        socket: &TcpStream,
        receiver: &mut Receiver,
        into: &mut Vec<u8>,
    ) -> io::Result<(bool, Nanos)> {
        let mut arrived = 0;
        let mut stream = Stream { socket, receiver, arrived: &mut arrived };
        let mut chunk = [0; 16 * 1024];
        let open = match self {
            Wire::Plain(_) => {
                let length = stream.read(&mut chunk)?;
                into.extend_from_slice(chunk.get(..length).unwrap_or_default());
                length > 0
            }
            Wire::Tls(tls) => {
                let length = tls.read_tls(&mut stream)?;
                tls.process_new_packets().map_err(io::Error::other)?;
                while let Ok(length @ 1..) = tls.reader().read(&mut chunk) {
                    into.extend_from_slice(chunk.get(..length).unwrap_or_default());
                }
                length > 0
            }
        };
        Ok((open, arrived))
    }

    /// Queues bytes; `flush` sends them.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Wire::Plain(waiting) => waiting.write_all(bytes),
            Wire::Tls(tls) => tls.writer().write_all(bytes),
        }
    }

    /// Whether everything has left.
    pub fn flush(&mut self, mut socket: &TcpStream) -> io::Result<bool> {
        loop {
            let sent = match self {
                Wire::Plain(waiting) if waiting.is_empty() => return Ok(true),
                Wire::Plain(waiting) => socket.write(waiting).map(|length| drop(waiting.drain(..length))),
                Wire::Tls(tls) if !tls.wants_write() => return Ok(true),
                Wire::Tls(tls) => tls.write_tls(&mut socket).map(|_| ()),
            };
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}
