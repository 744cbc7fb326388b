//! The whole local world: database, PostgREST and gateway, the three providers, and the functions, wired together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::control::Control;
use crate::database::Database;
use crate::edge::{Edge, EdgeConfig, LogLine, client};
use crate::error::{Context, Result, Trouble};
use crate::gateway::Gateway;
use crate::keys::{ProjectKeys, secret};
use crate::postgres::Data;
use crate::postgrest::{self, Postgrest};

/// Which form of the service key the functions get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceKey {
    /// `sb_secret_…`
    #[default]
    Opaque,
    /// A JWT.
    Legacy,
}

/// Something was begun or is done.
#[derive(Clone, Debug)]
pub struct Progress {
    pub part: &'static str,
    pub done: bool,
    pub elapsed: Duration,
    pub detail: String,
}

type Listener = Arc<dyn Fn(Progress) + Send + Sync>;

/// What world to build. `WorldConfig::default()` is a fresh one for a test.
#[derive(Clone)]
pub struct WorldConfig {
    /// The repository.
    pub root: PathBuf,
    pub data: Data,
    pub service_key: ServiceKey,
    /// Variables of the functions (policy values such as LEASE_SECONDS), over everything the world sets itself.
    pub vars: BTreeMap<String, String>,
    /// Whether the developer's `.dev.vars` counts.
    pub dev_vars: bool,
    /// Off: no functions, only what is around them.
    pub functions: bool,
    pub withhold_queues: Vec<String>,
    /// Name of a part (`postgres`, `gateway`, `mtn`, `whatsapp`, `openai`, or a function) -> port; the rest are free ones.
    pub ports: BTreeMap<String, u16>,
    /// Added to every call through the gateway.
    pub gateway_latency: Duration,
    /// Added to every call of a provider.
    pub provider_latency: Duration,
    /// Folder for logs; without one, a temporary folder that goes with the world.
    pub logs: Option<PathBuf>,
    pub progress: Option<Listener>,
}

impl Default for WorldConfig {
    fn default() -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            root: tests.parent().unwrap_or(tests).to_path_buf(),
            data: Data::Fresh,
            service_key: ServiceKey::default(),
            vars: BTreeMap::new(),
            dev_vars: false,
            functions: true,
            withhold_queues: Vec::new(),
            ports: BTreeMap::new(),
            gateway_latency: Duration::ZERO,
            provider_latency: Duration::ZERO,
            logs: None,
            progress: None,
        }
    }
}

impl WorldConfig {
    /// Sets a variable of the functions.
    pub fn var(mut self, name: &str, value: impl ToString) -> Self {
        self.vars.insert(name.to_owned(), value.to_string());
        self
    }

    /// Calls `listener` when a part is begun and when it is ready.
    pub fn on_progress(mut self, listener: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(listener));
        self
    }

    fn port(&self, part: &str) -> u16 {
        self.ports.get(part).copied().unwrap_or(0)
    }

    async fn report<T>(
        &self,
        part: &'static str,
        work: impl Future<Output = Result<(T, String)>>,
    ) -> Result<T> {
        let since = Instant::now();
        let tell = |done, detail: String| {
            if let Some(listener) = &self.progress {
                listener(Progress {
                    part,
                    done,
                    elapsed: since.elapsed(),
                    detail,
                });
            }
        };
        tell(false, String::new());
        let (result, detail) = work.await?;
        tell(true, detail);
        Ok(result)
    }
}

/// The running world. Dropping it stops every part of it.
pub struct World {
    config: WorldConfig,
    // In the order in which they end.
    edge: Option<Edge>,
    postgrest: Postgrest,
    gateway: Gateway,
    database: Database,
    keys: ProjectKeys,
    secrets: BTreeMap<String, String>,
    http: reqwest::Client,
    logs: Logs,
}

impl World {
    pub async fn start(config: WorldConfig) -> Result<Self> {
        let logs = Logs::open(config.logs.as_deref())?;
        let keys = ProjectKeys::generate();
        let gateway =
            Gateway::start(config.port("gateway"), keys.clone(), config.gateway_latency).await?;
        let secrets = secrets(&config, &keys, &gateway);
        let data = async {
            let database = config
                .report("database", async {
                    let database = Database::start(
                        &config.root,
                        &config.data,
                        config.port("postgres"),
                        &logs.dir,
                    )
                    .await?;
                    let report = database.report.clone();
                    Ok((database, report))
                })
                .await?;
            let postgrest = config
                .report("postgrest", async {
                    let binary = postgrest::find(&config.root)?;
                    let url = database.url("authenticator");
                    let server = Postgrest::start(
                        &binary,
                        &url,
                        &keys.jwt_secret,
                        &logs.dir.join("postgrest.log"),
                    )
                    .await?;
                    let url = server.url();
                    Ok((server, url))
                })
                .await?;
            gateway.forward_to(postgrest.url());
            Ok((database, postgrest))
        };
        let functions = async {
            if !config.functions {
                return Ok(None);
            }
            let edge = EdgeConfig {
                root: config.root.clone(),
                wrangler: None,
                vars: secrets.clone(),
                dev_vars: config.dev_vars,
                withhold: config.withhold_queues.clone(),
                ports: config.ports.clone(),
                logs: logs.dir.clone(),
            };
            let start = async {
                let edge = Edge::start(edge).await?;
                let names: Vec<&str> = edge.functions().keys().map(String::as_str).collect();
                let names = names.join(", ");
                Ok((edge, names))
            };
            config.report("functions", start).await.map(Some)
        };
        let (data, edge) = tokio::join!(data, functions);
        let (database, postgrest) = data?;
        let edge = edge?;
        Ok(Self {
            http: client()?,
            config,
            edge,
            postgrest,
            gateway,
            database,
            keys,
            secrets,
            logs,
        })
    }

    /// A new connection to the world's database, as its owner.
    pub async fn db(&self) -> Result<tokio_postgres::Client> {
        crate::postgres::connect(&self.database.superuser_url()).await
    }

    pub fn database_url(&self) -> String {
        self.database.superuser_url()
    }

    /// Faults and record of the gateway in front of PostgREST.
    pub fn gateway(&self) -> &Control {
        self.gateway.control()
    }

    pub fn keys(&self) -> &ProjectKeys {
        &self.keys
    }

    pub fn edge(&self) -> Result<&Edge> {
        let edge = self.edge.as_ref();
        edge.ok_or_else(|| {
            Trouble::new("this world was started without functions: set WorldConfig::functions")
        })
    }

    /// Every line that the functions logged so far.
    pub fn logs(&self) -> Result<Vec<LogLine>> {
        self.edge()?.logs()
    }

    /// A variable that the functions were given.
    pub fn secret(&self, name: &str) -> Result<&str> {
        let value = self.secrets.get(name);
        value
            .map(String::as_str)
            .ok_or_else(|| Trouble::new(format!("this world has no variable {name}")))
    }

    /// Fires the minute's cron trigger and waits for its end.
    pub async fn cron(&self) -> Result<()> {
        self.edge()?.scheduled("delivery-retry", "* * * * *").await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(edge) = &mut self.edge {
            edge.begin_stop();
        }
        self.postgrest.begin_stop();
    }
}

/// The variables of every function: addresses of the world's parts, and secrets that exist only here.
fn secrets(
    config: &WorldConfig,
    keys: &ProjectKeys,
    gateway: &Gateway,
) -> BTreeMap<String, String> {
    let service_key = match config.service_key {
        ServiceKey::Opaque => &keys.secret,
        ServiceKey::Legacy => &keys.service_role,
    };
    let mut all: BTreeMap<String, String> = [
        ("SUPABASE_URL", gateway.url()),
        ("SUPABASE_SERVICE_ROLE_KEY", service_key.clone()),
        ("SUPABASE_ANON_KEY", keys.anon.clone()),
        ("INTERNAL_API_KEY", secret()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    all.extend(config.vars.clone());
    all
}

/// Where the parts log to.
struct Logs {
    dir: PathBuf,
    temporary: bool,
}

impl Logs {
    fn open(wanted: Option<&Path>) -> Result<Self> {
        let temporary = wanted.is_none();
        let dir = match wanted {
            Some(dir) => dir.to_path_buf(),
            None => std::env::temp_dir().join(format!("ihuza-world-{}", Uuid::new_v4().simple())),
        };
        std::fs::create_dir_all(&dir)
            .context(format!("cannot make the folder {}", dir.display()))?;
        Ok(Self { dir, temporary })
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if !self.temporary {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the logs of this world are in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
