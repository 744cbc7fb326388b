//! The server's side of WebSocket (RFC 6455), as far as one client of ours needs it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a client sent.
#[derive(Debug, PartialEq)]
pub enum Received {
    Text(Vec<u8>),
    Ping(Vec<u8>),
    Close,
    /// Nothing to answer.
    Other,
}

/// The answer to a client's opening request (§4.2.2).
pub fn accept(key: &str) -> String {
    let salted = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, salted.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(digest)
    )
}

/// Takes one whole frame off the beginning of what came; nothing if it is not whole yet (§5.2).
pub fn take(buffer: &[u8]) -> Option<(Received, usize)> {
    let [first, second] = *buffer.first_chunk::<2>()?;
    let (length, mut at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(*buffer.get(2..)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*buffer.get(2..)?.first_chunk()?), 10),
        length => (u64::from(length), 2),
    };
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        mask = *buffer.get(at..)?.first_chunk()?;
        at += 4;
    }
    let end = at.checked_add(usize::try_from(length).ok()?)?;
    let mut payload = buffer.get(at..end)?.to_vec();
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    let received = match first & 0x0f {
        TEXT => Received::Text(payload),
        PING => Received::Ping(payload),
        CLOSE => Received::Close,
        _ => Received::Other,
    };
    Some((received, end))
}

/// A frame with a text.
pub fn text(payload: &str) -> Vec<u8> {
    frame(TEXT, payload.as_bytes())
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    frame(PONG, payload)
}

/// Goodbye.
pub fn close() -> Vec<u8> {
    frame(CLOSE, &1000_u16.to_be_bytes())
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 10);
    bytes.push(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => bytes.push(length as u8),
        length @ 126..0x1_0000 => {
            bytes.push(126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_answered_as_there() {
        assert!(accept("dGhlIHNhbXBsZSBub25jZQ==").contains("Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    }

    #[test]
    fn a_masked_frame_is_read_when_it_is_whole() {
        // §5.7: "Hello", masked.
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(take(&hello), Some((Received::Text(b"Hello".to_vec()), 11)));
        assert_eq!(take(&hello[..10]), None);
        let long = text(&"x".repeat(70_000));
        assert_eq!(take(&long), Some((Received::Text(vec![b'x'; 70_000]), long.len())));
    }
}
