//! What world to build.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::postgres::Data;

/// Which form of the service key the functions get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceKey {
    /// `sb_secret_…`
    Opaque,
    /// A JWT, which PostgREST itself understands too.
    #[default]
    Legacy,
}

/// Somebody whom we speak to, simulated unless the real one is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    Mtn,
    WhatsApp,
    OpenAi,
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
    /// Providers of which the real one is used: their settings must come from `.dev.vars` or `vars`.
    pub real: Vec<Provider>,
    /// Off: no functions, only what is around them.
    pub functions: bool,
    /// Whether there is a relay to be called; it needs the functions, and its binary to be built.
    pub relay: bool,
    pub withhold_queues: Vec<String>,
    /// Limits of the edge's counters by name (`SENDER_LIMIT`), over those of `wrangler.toml`; none: nobody counts.
    pub edge_limits: BTreeMap<String, Option<u32>>,
    /// Name of a part (`postgres`, `gateway`, `mtn`, `whatsapp`, `openai`, `relay` (SIP), or a function) -> port; the rest are free ones.
    pub ports: BTreeMap<String, u16>,
    /// Added to every call through the gateway.
    pub gateway_latency: Duration,
    /// Added to every call of a provider.
    pub provider_latency: Duration,
    /// Fires the minute's cron trigger this often; none: only [`World::cron`] does.
    pub cron_every: Option<Duration>,
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
            real: Vec::new(),
            functions: true,
            relay: false,
            withhold_queues: Vec::new(),
            edge_limits: BTreeMap::new(),
            ports: BTreeMap::new(),
            gateway_latency: Duration::ZERO,
            provider_latency: Duration::ZERO,
            cron_every: None,
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

    pub(super) fn port(&self, part: &str) -> u16 {
        self.ports.get(part).copied().unwrap_or(0)
    }

    /// Tells the listener when `work` begins and ends.
    pub(super) async fn report<T>(
        &self,
        part: &'static str,
        work: impl Future<Output = Result<(T, String)>>,
    ) -> Result<T> {
        let since = Instant::now();
        let tell = |done, detail: String| {
            if let Some(listener) = &self.progress {
                listener(Progress { part, done, elapsed: since.elapsed(), detail });
            }
        };
        tell(false, String::new());
        let (result, detail) = work.await?;
        tell(true, detail);
        Ok(result)
    }
}
