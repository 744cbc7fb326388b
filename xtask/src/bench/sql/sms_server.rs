//! A server for one size of agent_sms: its data are below `target/` and gone afterwards; it can be stopped, forgotten by the
//! machine's memory and started again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use ihuza_sim::database::Database;
use ihuza_sim::postgres::{self, Binaries, Data, SUPERUSER, Server};
use tokio_postgres::Client;

use crate::places;

/// As the local world names it where a cluster is kept.
const DATABASE: &str = "ihuza";
/// While rows come in: nothing is written twice, and indexes are sorted in memory.
const LOADING: [&str; 8] = [
    "fsync=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_wal_size=4GB",
    "shared_buffers=512MB",
    "maintenance_work_mem=1GB",
    "work_mem=256MB",
    "autovacuum=off",
];

pub struct SmsServer {
    binaries: Binaries,
    // Before `home`: the server ends before its files are removed.
    server: Option<Server>,
    home: Home,
}

/// The folder of the cluster; it goes with this.
struct Home {
    data: PathBuf,
    log: PathBuf,
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

impl SmsServer {
    /// A migrated database, ready to be loaded.
    pub async fn to_be_loaded() -> Result<Self> {
        let root = places::project();
        let binaries = Binaries::find(&root)?;
        let folder = places::native_target().join("bench-sql");
        let logs = places::logs();
        std::fs::create_dir_all(&logs).with_context(|| format!("could not make {}", logs.display()))?;
        let log = logs.join("bench-sql.log");
        let data = binaries.reachable(&folder)?;
        if data.exists() {
            std::fs::remove_dir_all(&data)
                .with_context(|| format!("could not remove {} of an earlier run", data.display()))?;
        }
        let home = Home { data, log };
        drop(Database::start(&root, &Data::Keep(home.data.clone()), 0, &logs).await?);
        let server = binaries.start_as_installed(&home.data, &home.log, &LOADING).await?;
        Ok(Self { binaries, server: Some(server), home })
    }

    /// As its superuser.
    pub async fn connect(&self) -> Result<Client> {
        let server = self.server.as_ref().context("the server of the benchmark is not up")?;
        Ok(postgres::connect(&server.address().url(SUPERUSER, DATABASE)).await?)
    }

    /// Stops the server in peace and starts it with PostgreSQL's own settings.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.server = Some(self.binaries.start_as_installed(&self.home.data, &self.home.log, &[]).await?);
        Ok(())
    }

    /// The same, with nothing of its files left in memory. What the disk or a host below this machine remembers is out of reach.
    pub async fn restart_cold(&mut self) -> Result<()> {
        self.stop().await?;
        forget(&self.home.data)?;
        self.server = Some(self.binaries.start_as_installed(&self.home.data, &self.home.log, &[]).await?);
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        // The server is given seconds to end: what takes longer is done before.
        self.connect().await?.batch_execute("checkpoint").await?;
        self.server = None;
        Ok(())
    }
}

/// Has the kernel drop the pages of these files: only clean ones go, so they are written out first.
fn forget(folder: &Path) -> Result<()> {
    let script = r#"sync -f "$0" && find "$0" -type f -size +0 -print0 | xargs -0 -P 2 -I {} dd if={} iflag=nocache count=0 status=none"#;
    let status = Command::new("sh").args(["-c", script]).arg(folder).stdin(Stdio::null()).status();
    let done = status.context("could not start sh to drop files from memory")?.success();
    anyhow::ensure!(done, "could not drop the files of {} from memory", folder.display());
    Ok(())
}
