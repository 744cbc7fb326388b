//! The least that any program in the middle costs: packets in at one port and out at another, one task a leg. The relay is
//! measured against it.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use tokio::net::UdpSocket;

use crate::peers;

/// Reads the ports of the two ends of each stream, tells its own two, and forwards until its input ends.
pub fn run() -> Result<()> {
    // On one core the scheduler for one costs the same, as far as it could be measured.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_io().build()?;
    let mut wanted = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        wanted.push(peers::pair(&line)?);
    }
    runtime.block_on(async {
        let mut told = String::new();
        for (near, far) in wanted {
            let near_leg = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
            let far_leg = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
            told.push_str(&format!("{} {}\n", near_leg.local_addr()?.port(), far_leg.local_addr()?.port()));
            tokio::spawn(leg(near_leg.clone(), far_leg.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, far))));
            tokio::spawn(leg(far_leg, near_leg, SocketAddr::from((Ipv4Addr::LOCALHOST, near))));
        }
        std::io::stdout().write_all(told.as_bytes())?;
        std::io::stdout().flush()?;
        // Until whoever started it ends it.
        std::future::pending().await
    })
}

async fn leg(from: Arc<UdpSocket>, by: Arc<UdpSocket>, to: SocketAddr) {
    let mut packet = [0; 2048];
    while let Ok((length, _)) = from.recv_from(&mut packet).await {
        let _ = by.send_to(packet.get(..length).unwrap_or_default(), to).await;
    }
}
