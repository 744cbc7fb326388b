//! The whole local world: database, PostgREST and gateway, the three providers, and the functions, wired together.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::control::Control;
use crate::database::Database;
use crate::edge::{Edge, EdgeConfig, LogLine, client};
use crate::error::{Context, Result, Trouble};
use crate::gateway::Gateway;
use crate::http::Server;
use crate::keys::{ProjectKeys, secret};
use crate::mtn::{self, Mtn};
use crate::openai::OpenAi;
use crate::postgres::Data;
use crate::postgrest::{self, Postgrest};
use crate::whatsapp::{self, WhatsApp};

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

/// Of the ready file; a change that readers must know of raises it.
const READY_FILE_VERSION: u32 = 1;

/// Of the report.
const REPORT_VERSION: u32 = 1;

/// The tables whose rows the report holds.
const REPORTED: [&str; 9] = [
    "voice_calls",
    "call_summaries",
    "call_notifications",
    "omnichannel_sessions",
    "conversation_messages",
    "message_delivery_log",
    "message_delivery_attempts",
    "message_status_events",
    "alerts",
];

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
    pub withhold_queues: Vec<String>,
    /// Name of a part (`postgres`, `gateway`, `mtn`, `whatsapp`, `openai`, or a function) -> port; the rest are free ones.
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
            withhold_queues: Vec::new(),
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

    fn port(&self, part: &str) -> u16 {
        self.ports.get(part).copied().unwrap_or(0)
    }

    async fn report<T>(&self, part: &'static str, work: impl Future<Output = Result<(T, String)>>) -> Result<T> {
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
    // In the order in which they end.
    clock: Option<JoinHandle<()>>,
    edge: Option<Edge>,
    postgrest: Postgrest,
    gateway: Gateway,
    mtn: Mtn,
    whatsapp: WhatsApp,
    openai: OpenAi,
    database: Database,
    keys: ProjectKeys,
    secrets: BTreeMap<String, String>,
    pub(crate) http: reqwest::Client,
    /// Goes last: everything above writes into it.
    logs: Logs,
}

/// The function that sweeps up what was left behind, and its cron trigger.
const SWEEPER: &str = "delivery-retry";
const MINUTE: &str = "* * * * *";

impl World {
    pub async fn start(config: WorldConfig) -> Result<Self> {
        let logs = Logs::open(config.logs.as_deref())?;
        let keys = ProjectKeys::generate();
        let gateway = Gateway::start(config.port("gateway"), keys.clone(), config.gateway_latency).await?;
        let accounts = Accounts::generate();
        let latency = config.provider_latency;
        let (mtn, whatsapp, openai) = tokio::try_join!(
            Mtn::start(config.port("mtn"), accounts.mtn.clone(), latency),
            WhatsApp::start(config.port("whatsapp"), accounts.whatsapp.clone(), latency),
            OpenAi::start(config.port("openai"), accounts.openai.clone(), latency),
        )?;
        let urls = Urls {
            gateway: gateway.url(),
            mtn: mtn.url(),
            whatsapp: whatsapp.url(),
            openai: openai.base_url(),
        };
        let secrets = secrets(&config, &keys, &accounts, urls);
        let data = async {
            let database = config
                .report("database", async {
                    let database =
                        Database::start(&config.root, &config.data, config.port("postgres"), &logs.dir).await?;
                    let report = database.report.clone();
                    Ok((database, report))
                })
                .await?;
            let postgrest = config
                .report("postgrest", async {
                    let binary = postgrest::find(&config.root)?;
                    let url = database.url("authenticator");
                    let server =
                        Postgrest::start(&binary, &url, &keys.jwt_secret, &logs.dir.join("postgrest.log")).await?;
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
        if let Some(edge) = &edge {
            mtn.set_webhooks(
                edge.url("sms-inbound-webhook")?.to_owned(),
                edge.url("delivery-status-webhook")?.to_owned(),
            );
            whatsapp.set_webhook(edge.url("whatsapp-webhook")?.to_owned());
        }
        Ok(Self {
            http: client()?,
            clock: edge
                .as_ref()
                .zip(config.cron_every)
                .map(|(edge, every)| edge.clock(SWEEPER, MINUTE, every)),
            edge,
            postgrest,
            gateway,
            mtn,
            whatsapp,
            openai,
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

    /// The gateway's server: it can go away and come back.
    pub fn gateway_server(&self) -> &Server {
        self.gateway.server()
    }

    pub fn mtn(&self) -> &Mtn {
        &self.mtn
    }

    pub fn whatsapp(&self) -> &WhatsApp {
        &self.whatsapp
    }

    pub fn openai(&self) -> &OpenAi {
        &self.openai
    }

    pub fn keys(&self) -> &ProjectKeys {
        &self.keys
    }

    pub fn edge(&self) -> Result<&Edge> {
        let edge = self.edge.as_ref();
        edge.ok_or_else(|| Trouble::new("this world was started without functions: set WorldConfig::functions"))
    }

    /// Folder of everybody's logs.
    pub fn log_folder(&self) -> &Path {
        &self.logs.dir
    }

    /// Where everything is and what opens it, as `docs/local-world.schema.json` describes it.
    pub fn ready_file(&self) -> Value {
        let functions = self.edge.as_ref().map(Edge::functions).cloned().unwrap_or_default();
        let simulator = |url: String| json!({"control_url": format!("{url}/control"), "url": url});
        json!({
            "version": READY_FILE_VERSION,
            "functions": functions,
            "postgrest_url": self.postgrest.url(),
            "gateway": simulator(self.gateway.url()),
            "database_url": self.database_url(),
            "simulators": {
                "mtn": simulator(self.mtn.url()),
                "whatsapp": simulator(self.whatsapp.url()),
                "openai": simulator(self.openai.url()),
            },
            "secrets": self.secrets,
        })
    }

    /// Everything that happened so far, as `docs/local-world.schema.json` describes it: rows of our tables, column names
    /// as keys, oldest first, and what the providers were really given.
    pub async fn report(&self) -> Result<Value> {
        let mut report = serde_json::Map::new();
        report.insert("version".to_owned(), json!(REPORT_VERSION));
        report.insert(
            "at".to_owned(),
            json!(Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)),
        );
        for table in REPORTED {
            let rows = self
                .rows(&format!("select * from public.{table} order by created_at, id"))
                .await?;
            report.insert(table.to_owned(), json!(rows));
        }
        let sms: Vec<Value> = self
            .mtn
            .messages()
            .iter()
            .map(|sms| {
                json!({"at": sms.at, "provider": "mtn", "channel": "sms", "recipient": sms.recipient, "sender": sms.sender,
                       "content": sms.text, "delivery_ref": sms.client_correlator_id})
            })
            .collect();
        let whatsapp: Vec<Value> = self
            .whatsapp
            .messages()
            .iter()
            .map(|sent| {
                json!({"at": sent.at, "provider": "whatsapp", "channel": "whatsapp", "recipient": sent.recipient,
                       "content": sent.shown, "template": sent.template, "language": sent.language,
                       "provider_message_id": sent.wamid, "delivery_ref": sent.biz_opaque_callback_data})
            })
            .collect();
        let mut outbox = [sms, whatsapp].concat();
        let at = |entry: &Value| entry.get("at").map(Value::to_string);
        outbox.sort_by_key(at);
        report.insert("outbox".to_owned(), Value::Array(outbox));
        Ok(Value::Object(report))
    }

    /// Writes [`World::ready_file`], readable by its owner only: it holds keys. A reader never finds half of it.
    pub fn write_ready_file(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.ready_file()).context("cannot write the ready file as JSON")?;
        let draft = path.with_extension("draft");
        let write = || -> std::io::Result<()> {
            let _ = std::fs::remove_file(&draft);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(text.as_bytes())?;
            std::fs::rename(&draft, path)
        };
        write().context(format!("cannot write {}", path.display()))
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
        self.edge()?.scheduled(SWEEPER, MINUTE).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(clock) = &self.clock {
            clock.abort();
        }
        if let Some(edge) = &mut self.edge {
            edge.begin_stop();
        }
        self.postgrest.begin_stop();
    }
}

struct Accounts {
    mtn: mtn::Account,
    whatsapp: whatsapp::Account,
    openai: String,
}

impl Accounts {
    fn generate() -> Self {
        Self {
            mtn: mtn::Account::generate(),
            whatsapp: whatsapp::Account::generate(),
            openai: format!("sk-local-{}", secret()),
        }
    }
}

struct Urls {
    gateway: String,
    mtn: String,
    whatsapp: String,
    openai: String,
}

/// The variables of every function: addresses of the world's parts, and secrets that exist only here.
fn secrets(config: &WorldConfig, keys: &ProjectKeys, accounts: &Accounts, urls: Urls) -> BTreeMap<String, String> {
    let service_key = match config.service_key {
        ServiceKey::Opaque => &keys.secret,
        ServiceKey::Legacy => &keys.service_role,
    };
    let mut all = vec![
        ("SUPABASE_URL", urls.gateway),
        ("SUPABASE_SERVICE_ROLE_KEY", service_key.clone()),
        ("SUPABASE_ANON_KEY", keys.anon.clone()),
        ("INTERNAL_API_KEY", secret()),
    ];
    let real = |provider| config.real.contains(&provider);
    if !real(Provider::Mtn) {
        let account = &accounts.mtn;
        all.extend([
            ("MTN_BASE_URL", urls.mtn),
            ("MTN_SMS_API_KEY", account.api_key.clone()),
            ("MTN_SMS_API_SECRET", account.api_secret.clone()),
            ("MTN_SMS_SENDER_ID", "EasyMO".to_owned()),
            ("MTN_SMS_SERVICE_CODE", mtn::SERVICE_CODE.to_owned()),
            ("MTN_WEBHOOK_SECRET", account.webhook_secret.clone()),
        ]);
    }
    if !real(Provider::WhatsApp) {
        let account = &accounts.whatsapp;
        all.extend([
            ("WHATSAPP_BASE_URL", urls.whatsapp),
            ("WHATSAPP_ACCESS_TOKEN", account.access_token.clone()),
            ("WHATSAPP_PHONE_NUMBER_ID", account.phone_number_id.clone()),
            ("WHATSAPP_APP_SECRET", account.app_secret.clone()),
            ("WHATSAPP_VERIFY_TOKEN", account.verify_token.clone()),
            ("WHATSAPP_TEMPLATE_LANGUAGES", "en,fr,rw_RW,sw".to_owned()),
        ]);
    }
    if !real(Provider::OpenAi) {
        all.extend([
            ("OPENAI_BASE_URL", urls.openai),
            ("OPENAI_API_KEY", accounts.openai.clone()),
        ]);
    }
    let all = all.into_iter().map(|(name, value)| (name.to_owned(), value));
    all.chain(config.vars.clone()).collect()
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
        std::fs::create_dir_all(&dir).context(format!("cannot make the folder {}", dir.display()))?;
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
