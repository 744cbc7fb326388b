//! The whole local world: database, PostgREST and gateway, the providers, the functions, and, if wanted, the relay,
//! wired together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::control::Control;
use crate::database::Database;
use crate::edge::{Edge, EdgeConfig, LogLine, client};
use crate::error::{Context, Result, Trouble};
use crate::gateway::Gateway;
use crate::http::Server;
use crate::keys::ProjectKeys;
use crate::mtn::Mtn;
use crate::openai::OpenAi;
use crate::phone::{self, PhoneCall};
use crate::postgres::Data;
use crate::postgrest::{self, Postgrest};
use crate::relay::{Relay, RelayConfig};
use crate::runtime;
use crate::twilio::Twilio;
use crate::whatsapp::WhatsApp;

mod config;
mod files;
mod vars;

pub use config::{Progress, Provider, ServiceKey, WorldConfig};

use vars::{Accounts, Urls, secrets};

/// The running world. Dropping it stops every part of it.
pub struct World {
    // In the order in which they end.
    clock: Option<JoinHandle<()>>,
    relay: Option<Relay>,
    edge: Option<Edge>,
    postgrest: Postgrest,
    gateway: Gateway,
    mtn: Mtn,
    whatsapp: WhatsApp,
    openai: OpenAi,
    twilio: Twilio,
    database: Database,
    keys: ProjectKeys,
    secrets: BTreeMap<String, String>,
    /// Providers that are not simulated.
    real: Vec<Provider>,
    pub(crate) http: reqwest::Client,
    /// Goes last: everything above writes into it.
    logs: Logs,
}

/// The function that sweeps up what was left behind, and its cron trigger.
const SWEEPER: &str = "delivery-retry";
const MINUTE: &str = "* * * * *";

/// The number that the relay answers.
pub const VOICE_NUMBER: &str = "+250788000000";

impl World {
    /// Starts everything, as much as possible at once. When this returns, every part answers.
    pub async fn start(config: WorldConfig) -> Result<Self> {
        // On the heap: the futures of all parts together are too deep for a caller's own future.
        let building: Pin<Box<dyn Future<Output = Result<Self>> + Send>> = Box::pin(Self::build(config));
        runtime::on(building).await
    }

    async fn build(config: WorldConfig) -> Result<Self> {
        let logs = Logs::open(config.logs.as_deref())?;
        let keys = ProjectKeys::generate();
        let gateway = Gateway::start(config.port("gateway"), keys.clone(), config.gateway_latency).await?;
        let accounts = Accounts::generate();
        let latency = config.provider_latency;
        let (mtn, whatsapp, openai, twilio) = tokio::try_join!(
            Mtn::start(config.port("mtn"), accounts.mtn.clone(), latency),
            WhatsApp::start(config.port("whatsapp"), accounts.whatsapp.clone(), latency),
            OpenAi::start(config.port("openai"), accounts.openai.clone(), latency),
            Twilio::start(config.port("twilio"), accounts.twilio.clone(), latency),
        )?;
        let urls = Urls {
            gateway: gateway.url(),
            mtn: mtn.url(),
            whatsapp: whatsapp.url(),
            openai: openai.base_url(),
            twilio: twilio.url(),
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
                limits: config.edge_limits.clone(),
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
            let sip = edge.url("openai-sip-webhook")?.to_owned();
            openai.calls().set_webhook(sip, accounts.openai_webhook.clone());
        }
        let relay = match edge.as_ref().filter(|_| config.relay) {
            Some(edge) => {
                let journal = journal(&config.data, &logs.dir)?;
                let start = Relay::start(RelayConfig {
                    root: &config.root,
                    function: edge.url("openai-realtime-sip")?,
                    key: secrets.get("INTERNAL_API_KEY").map_or("", String::as_str),
                    number: VOICE_NUMBER,
                    folder: &logs.dir,
                    journal: &journal,
                    port: config.port("relay"),
                });
                let start = async {
                    let relay = start.await?;
                    let address = format!("sip:{}@{}", relay.number, relay.sip);
                    Ok((relay, address))
                };
                Some(config.report("relay", start).await?)
            }
            None => None,
        };
        Ok(Self {
            http: client()?,
            relay,
            clock: edge.as_ref().zip(config.cron_every).map(|(edge, every)| edge.clock(SWEEPER, MINUTE, every)),
            edge,
            postgrest,
            gateway,
            mtn,
            whatsapp,
            openai,
            twilio,
            database,
            keys,
            secrets,
            real: config.real,
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

    pub fn twilio(&self) -> &Twilio {
        &self.twilio
    }

    pub fn keys(&self) -> &ProjectKeys {
        &self.keys
    }

    pub fn edge(&self) -> Result<&Edge> {
        let edge = self.edge.as_ref();
        edge.ok_or_else(|| Trouble::new("this world was started without functions: set WorldConfig::functions"))
    }

    pub fn relay(&self) -> Result<&Relay> {
        let relay = self.relay.as_ref();
        relay.ok_or_else(|| Trouble::new("this world was started without a relay: set WorldConfig::relay"))
    }

    /// Calls our number from `phone`, and waits until somebody answers.
    pub async fn call_from(&self, phone: &str) -> Result<PhoneCall> {
        let relay = self.relay()?;
        phone::call(relay.sip, phone, &relay.number).await
    }

    /// Folder of everybody's logs.
    pub fn log_folder(&self) -> &Path {
        &self.logs.dir
    }

    /// Every line that the functions logged so far.
    pub fn logs(&self) -> Result<Vec<LogLine>> {
        self.edge()?.logs()
    }

    /// A variable that the functions were given.
    pub fn secret(&self, name: &str) -> Result<&str> {
        let value = self.secrets.get(name);
        value.map(String::as_str).ok_or_else(|| Trouble::new(format!("this world has no variable {name}")))
    }

    /// Fires the minute's cron trigger and waits for its end.
    pub async fn cron(&self) -> Result<()> {
        self.edge()?.scheduled(SWEEPER, MINUTE).await
    }
}

/// The relay's journal lives as long as the database does: a fresh one must not hear of an earlier one's calls.
fn journal(data: &Data, logs: &Path) -> Result<PathBuf> {
    if let Data::Keep(folder) = data {
        return Ok(folder.with_file_name("relay-journal"));
    }
    let journal = logs.join("relay-journal");
    match std::fs::remove_dir_all(&journal) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(format!("cannot remove {}", journal.display()))
        }
        _ => Ok(journal),
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(clock) = &self.clock {
            clock.abort();
        }
        // First, while there is somebody whom it can tell of its calls.
        drop(self.relay.take());
        if let Some(edge) = &mut self.edge {
            edge.begin_stop();
        }
        self.postgrest.begin_stop();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_database_does_not_hear_of_the_calls_of_another() {
        let logs = std::env::temp_dir().join(format!("ihuza-journal-{}", Uuid::new_v4().simple()));
        let left = logs.join("relay-journal").join("one.journal");
        std::fs::create_dir_all(left.parent().unwrap()).unwrap();
        std::fs::write(&left, "a call").unwrap();
        let kept = journal(&Data::Keep(logs.join("postgres")), Path::new("elsewhere")).unwrap();
        assert!(kept == logs.join("relay-journal") && left.exists(), "{}", kept.display());
        let fresh = journal(&Data::Fresh, &logs).unwrap();
        assert!(fresh == logs.join("relay-journal") && !left.exists());
        assert_eq!(journal(&Data::Fresh, &logs).unwrap(), fresh, "also where there was none");
        std::fs::remove_dir_all(logs).unwrap();
    }
}
