//! A server for one size of agent_sms: its data are below `target/` and gone afterwards, or kept where one says; it can be
//! stopped, forgotten by the machine's memory and started again.

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

/// The folder of the cluster; it goes with this, unless it is kept.
struct Home {
    data: PathBuf,
    log: PathBuf,
    kept: bool,
}

impl Home {
    /// Is there when the rows of an earlier run are.
    fn mark(&self) -> PathBuf {
        self.data.join("loaded-by-the-benchmark")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.data);
        }
    }
}

impl SmsServer {
    /// A migrated database: either ready to be loaded, or with what an earlier run kept in `keep`.
    pub async fn start(keep: Option<&Path>) -> Result<Self> {
        let root = places::project();
        let binaries = Binaries::find(&root)?;
        let folder = keep.map_or_else(|| places::native_target().join("bench-sql"), Path::to_path_buf);
        let logs = places::logs();
        std::fs::create_dir_all(&logs).with_context(|| format!("could not make {}", logs.display()))?;
        let log = logs.join("bench-sql.log");
        let data = binaries.reachable(&folder)?;
        let home = Home { data, log, kept: keep.is_some() };
        if home.data.exists() && !home.mark().exists() {
            // Nothing is removed that we did not make: a cluster that an earlier run could not fill, or an empty folder.
            let ours = keep.is_none()
                || home.data.join("PG_VERSION").exists()
                || std::fs::read_dir(&home.data)?.next().is_none();
            anyhow::ensure!(ours, "{} is there and is no cluster of this benchmark", home.data.display());
            std::fs::remove_dir_all(&home.data)
                .with_context(|| format!("could not remove {} of an earlier run", home.data.display()))?;
        }
        drop(Database::start(&root, &Data::Keep(home.data.clone()), 0, &logs).await?);
        let server = binaries.start_as_installed(&home.data, &home.log, &LOADING).await?;
        Ok(Self { binaries, server: Some(server), home })
    }

    /// Whether an earlier run left its rows here.
    pub fn is_loaded(&self) -> bool {
        self.home.mark().exists()
    }

    /// Says to later runs that all rows are here.
    pub fn set_loaded(&self) -> Result<()> {
        let mark = self.home.mark();
        std::fs::write(&mark, "").with_context(|| format!("could not write {}", mark.display()))
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
