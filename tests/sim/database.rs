//! The local project's database: a server, the bootstrap that stands for what Supabase brings, and our migrations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::agents;
use crate::error::{Context, Result, Trouble};
use crate::migrate;
use crate::postgres::{Binaries, Data, SUPERUSER, Server, ServerAddress, TEMPLATE};
use crate::runtime;

/// Name of the database where only one world uses the server.
const KEPT: &str = "ihuza";

/// A migrated database, and the server it is in.
pub struct Database {
    /// Shared by all fresh worlds of the process.
    server: Arc<Server>,
    name: String,
    /// What the migrations did, for the operator's eyes.
    pub report: String,
}

impl Database {
    /// `root` is the repository. Fresh databases of one process share a server; its port is then only obeyed by the first.
    pub async fn start(root: &Path, data: &Data, port: u16, logs: &Path) -> Result<Self> {
        match data {
            Data::Fresh => Self::fresh(root, port).await,
            Data::Keep(dir) => Self::kept(root, dir, port, logs).await,
        }
    }

    pub fn url(&self, user: &str) -> String {
        self.server.address().url(user, &self.name)
    }

    pub fn superuser_url(&self) -> String {
        self.url(SUPERUSER)
    }

    async fn fresh(root: &Path, port: u16) -> Result<Self> {
        let server = shared_server(root, port).await?;
        let name = format!("world_{}", uuid::Uuid::new_v4().simple());
        server.address().create_database(&name, TEMPLATE).await?;
        let report = "a fresh copy of the migrated database".to_owned();
        Ok(Self { server, name, report })
    }

    async fn kept(root: &Path, dir: &Path, port: u16, logs: &Path) -> Result<Self> {
        let binaries = Binaries::find(root)?;
        let dir = binaries.reachable(dir)?;
        if !dir.join("PG_VERSION").is_file() {
            binaries.initdb(&dir)?;
        }
        let server = binaries.start(&dir, port, &logs.join("postgres.log")).await?;
        let address = server.address();
        let is_new = !address.has_database(KEPT).await?;
        if is_new {
            address.create_database(KEPT, "template0").await?;
        }
        let sources = Sources::of(root);
        let report = sources.apply(&address, KEPT, is_new).await?;
        if !report.changed.is_empty() {
            return Err(Trouble::new(format!(
                "migrations were edited after this database had them ({}): remove {} to begin anew",
                report.changed.join(", "),
                dir.display()
            )));
        }
        Ok(Self { server: Arc::new(server), name: KEPT.to_owned(), report: report.to_string() })
    }
}

/// The SQL that makes a database ours.
#[derive(Clone, Debug)]
struct Sources {
    bootstrap: PathBuf,
    migrations: PathBuf,
    agents: PathBuf,
}

impl Sources {
    fn of(root: &Path) -> Self {
        Self {
            bootstrap: root.join("tests/sql/bootstrap.sql"),
            migrations: root.join("migrations"),
            agents: root.join("agents"),
        }
    }

    async fn apply(&self, address: &ServerAddress, database: &str, bootstrap: bool) -> Result<migrate::Report> {
        let mut client = address.connect(database).await?;
        if bootstrap {
            migrate::run_file(&mut client, &self.bootstrap).await?;
        }
        let report = migrate::apply(&mut client, &migrate::read(&self.migrations)?, false).await?;
        agents::load(&mut client, &agents::read(&self.agents)?, false).await?;
        Ok(report)
    }

    async fn prepare(&self, address: &ServerAddress) -> Result<()> {
        address.create_database(TEMPLATE, "template0").await?;
        self.apply(address, TEMPLATE, true).await?;
        Ok(())
    }

    fn ingredients(&self) -> Result<Vec<u8>> {
        let mut all = std::fs::read(&self.bootstrap).context(format!("cannot read {}", self.bootstrap.display()))?;
        for migration in migrate::read(&self.migrations)? {
            all.extend_from_slice(migration.version.as_bytes());
            all.extend_from_slice(migration.name.as_bytes());
            all.extend_from_slice(migration.sql.as_bytes());
        }
        for agent in agents::read(&self.agents)? {
            all.extend_from_slice(agent.row.to_string().as_bytes());
        }
        Ok(all)
    }
}

/// One server for every fresh world that lives at the same time in this process.
async fn shared_server(root: &Path, port: u16) -> Result<Arc<Server>> {
    static SHARED: Mutex<std::sync::Weak<Server>> = Mutex::const_new(std::sync::Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return Ok(server);
    }
    let root = root.to_path_buf();
    let server = runtime::on(async move {
        let binaries = Binaries::find(&root)?;
        let sources = Sources::of(&root);
        let ingredients = sources.ingredients()?;
        let prepare = |address: ServerAddress| {
            let sources = sources.clone();
            async move { sources.prepare(&address).await }
        };
        binaries.start_fresh(&ingredients, port, prepare).await
    })
    .await?;
    let server = Arc::new(server);
    *shared = Arc::downgrade(&server);
    Ok(server)
}
