//! Ports that nobody else has: neither another test of this process, nor one of a process that runs beside it.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;

/// Below the range that the kernel gives out by itself, and below what the local world of the end-to-end tests takes.
const FIRST: u16 = 10_000;
/// A process takes a block and keeps it until it ends; those of one block are given out in turn.
const BLOCKS: u16 = 50;
const BLOCK: u16 = 200;

/// Ports of this process.
struct Block {
    first: u16,
    given_out: u16,
    /// Locked as long as this process lives.
    _lock: File,
}

static OURS: Mutex<Option<Block>> = Mutex::new(None);

/// An address that is free for UDP and TCP alike.
pub fn free_address() -> SocketAddr {
    let mut ours = OURS.lock().unwrap();
    let block = ours.get_or_insert_with(Block::take);
    for _ in 0..BLOCK {
        let port = block.first + block.given_out % BLOCK;
        block.given_out = (block.given_out + 1) % BLOCK;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("all ports from {} to {} are in use", block.first, block.first + BLOCK - 1);
}

impl Block {
    fn take() -> Block {
        for n in 0..BLOCKS {
            let name = std::env::temp_dir().join(format!("ihuza-relay-ports-{n}"));
            // Another user's file may not be opened, and the block is taken then.
            let Ok(lock) = File::options().create(true).append(true).open(name) else { continue };
            if lock.try_lock().is_ok() {
                return Block { first: FIRST + n * BLOCK, given_out: 0, _lock: lock };
            }
        }
        panic!("{BLOCKS} processes test the relay at the same time, or their locks are not ours to open");
    }
}
