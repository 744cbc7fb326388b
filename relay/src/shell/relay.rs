//! The relay as a whole: starts its parts, lets calls in, and ends without harming those that run.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ihuza_core::phone::E164;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_websockets::Connector;

use super::announcements::Announcements;
use super::call::{self, Start, dice, policy_of, refused};
use super::clock::Clock;
use super::journal::Journal;
use super::log::{Level, Log};
use super::metrics::Metrics;
use super::ports::Ports;
use super::scribe::{self, Desk};
use super::session_function::{Function, FunctionError};
use super::signalling::{Incoming, Invite, Reception, Refused};
use super::{http, sip_stack, tls};
use crate::config::{Config, Digest, Trunk};
use crate::sip::admission::{Admission, Admitted, Refusal, Request, unsupported};
use crate::sip::description::{DescriptionError, Local, Policy};
use crate::sip::digest::{Authenticator, Credentials, Verdict};
use crate::sip::session_timer::Interval;

/// What all calls share.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// Journal, function and log.
    pub desk: Desk,
    /// Figures.
    pub metrics: Metrics,
    /// Ports for media.
    pub ports: Ports,
    /// What the relay itself says.
    pub announcements: Announcements,
    /// TLS towards the model.
    pub connector: Arc<Connector>,
    /// The key for the model where a call brings none.
    pub model_key: Arc<str>,
    /// Ends all calls.
    pub stop_calls: watch::Sender<()>,
    admission: Mutex<Admission>,
    authenticator: Mutex<Authenticator>,
    /// Passwords of trunks, by their names.
    passwords: HashMap<String, String>,
}

/// Why the relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal's directory.
    #[error("journal in {0} cannot be opened: {1}")]
    Journal(String, std::io::Error),
    /// The files of what it says itself.
    #[error("announcements in {0} cannot be read: {1}")]
    Announcements(String, std::io::Error),
    /// The HTTP server.
    #[error("cannot listen for HTTP on {0}: {1}")]
    Http(SocketAddr, std::io::Error),
    /// SIP.
    #[error(transparent)]
    Sip(#[from] sip_stack::StackError),
    /// TLS towards the model.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A trunk that asks for credentials has none.
    #[error("trunk {0} has digest.password_env, but that variable is not set: nobody could call")]
    Password(String),
    /// The client of the session function.
    #[error(transparent)]
    Function(#[from] FunctionError),
}

/// A relay that runs.
pub struct Relay {
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Where `/healthz` is.
    pub http: SocketAddr,
}

impl Relay {
    /// Starts everything; `secret` reads a variable of the environment.
    pub async fn start(config: Config, secret: impl Fn(&str) -> Option<String>) -> Result<Relay, StartError> {
        // Two providers in one program make rustls panic at its first connection; the first to be installed stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let passwords = passwords(&config, &secret)?;
        let announcements = match &config.media.announcements {
            Some(directory) => Announcements::read(directory)
                .map_err(|error| StartError::Announcements(directory.display().to_string(), error))?,
            None => Announcements::default(),
        };
        let clock = Clock::start();
        let log = Log::new(clock);
        let directory = &config.journal.directory;
        let (journal, leftovers) = Journal::open(directory, clock)
            .map_err(|error| StartError::Journal(directory.display().to_string(), error))?;
        let function = Function::new(&config.session, secret(&config.session.key_env).unwrap_or_default())?;
        let desk = Desk { journal, function, log };
        let connector = tls::connector(config.model.ca_file.as_deref())?;
        let shared = Arc::new(Shared {
            clock,
            announcements,
            metrics: Metrics::default(),
            ports: Ports::new(config.media.bind, config.media.ports.0.clone()),
            connector: Arc::new(connector),
            model_key: secret(&config.model.api_key_env).unwrap_or_default().into(),
            stop_calls: watch::Sender::new(()),
            admission: Mutex::default(),
            authenticator: Mutex::new(Authenticator::new(key())),
            passwords,
            desk: desk.clone(),
            config,
        });
        if !leftovers.is_empty() {
            let message = "calls of a former process are being closed";
            log.event("RELAY_RECOVERING", Level::Warn, message, json!({ "calls": leftovers.len() }));
        }
        let now_ms = clock.unix_ms(clock.now());
        for leftover in leftovers {
            scribe::finish(desk.clone(), leftover, now_ms);
        }
        let listen = shared.config.http.listen;
        let http = http::serve(listen, shared.clone()).await.map_err(|error| StartError::Http(listen, error))?;
        let stop = CancellationToken::new();
        sip_stack::serve(&shared.config.sip, Arc::new(Door(shared.clone())), stop.clone()).await?;
        log.event("RELAY_STARTED", Level::Info, "calls are welcome", json!({ "trunks": shared.config.trunks.len() }));
        Ok(Relay { shared, stop, http })
    }

    /// Lets nobody in any more, waits for the calls that run, and ends those that last too long.
    pub async fn drain(self) {
        self.shared.admission().drain();
        let log = self.shared.desk.log;
        log.event("RELAY_DRAINING", Level::Info, "no new calls", json!({ "running": self.shared.running() }));
        let clock = self.shared.clock;
        let deadline = clock.now() + Duration::from_secs(self.shared.config.limits.drain_seconds);
        while self.shared.running() > 0 && clock.now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.shared.stop_calls.send_replace(());
        // A BYE and the last posts of the scribes; what does not get through is in the journal.
        let grace = clock.now() + Duration::from_secs(5);
        while self.shared.running() > 0 && clock.now() < grace {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.stop.cancel();
        log.event("RELAY_STOPPED", Level::Info, "the relay ends", json!({}));
    }
}

impl Shared {
    fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call is over.
    pub fn ended(&self, trunk: &str, number: &E164) {
        self.admission().ended(trunk, number);
    }

    fn running(&self) -> usize {
        self.admission().running()
    }

    /// Whether calls are welcome, and what there is to say about it.
    pub fn health(&self) -> (bool, Value) {
        let admission = self.admission();
        let open = admission.is_open(&self.config);
        let status = open.err().map_or("ok", Refusal::as_str);
        (
            open.is_ok(),
            json!({ "status": status, "calls": admission.running(), "most_calls": self.config.limits.calls }),
        )
    }
}

/// Lets calls in.
struct Door(Arc<Shared>);

impl Door {
    fn request<'a>(invite: &'a Invite) -> Request<'a> {
        Request {
            scheme: &invite.scheme,
            called: &invite.called,
            caller: E164::parse_msisdn(&invite.caller).ok(),
            max_forwards: invite.max_forwards,
            required: invite.required.iter().map(String::as_str).collect(),
            content_type: invite.content_type.as_deref(),
            user_agent: invite.user_agent.as_deref(),
            identity: [&invite.from_tag, &invite.call_id, &invite.cseq],
            branch: &invite.branch,
        }
    }

    fn refuse(&self, invite: &Invite, refusal: Refusal) -> Option<Refused> {
        self.0.metrics.refused(refusal);
        let fields = json!({ "reason": refusal.as_str(), "status": refusal.status(), "called": invite.called, "call_sid": invite.call_id });
        self.0.desk.log.event("CALL_REFUSED", Level::Warn, "a call was not let in", fields);
        refusal.status()?;
        let mut answer = refused(refusal);
        if refusal == Refusal::UnsupportedExtension {
            let required: Vec<&str> = invite.required.iter().map(String::as_str).collect();
            answer.headers.push(("Unsupported", unsupported(&required).join(", ")));
        }
        Some(answer)
    }

    /// What a trunk that asks for credentials wants to be answered; nothing if it does not ask or was answered.
    fn challenge(&self, invite: &Invite) -> Option<Vec<String>> {
        let trunk = Admission::trunk_of(&self.0.config, invite.source?).ok()?;
        let digest = trunk.digest.as_ref()?;
        let password = self.0.passwords.get(&trunk.name)?;
        let credentials = Credentials { username: &digest.username, password };
        let mut authenticator = self.0.authenticator.lock().unwrap_or_else(PoisonError::into_inner);
        match authenticator.check(self.0.clock.now(), invite.authorization.as_deref(), "INVITE", credentials) {
            Verdict::Accepted => None,
            Verdict::Challenged(challenges) => Some(challenges),
        }
    }

    /// All that can be refused is refused before the telephone rings.
    fn admit<'c>(&'c self, invite: &Invite) -> Result<Admitted<'c>, Refusal> {
        let source = invite.source.ok_or(Refusal::UnknownSource)?;
        let now = self.0.clock.now();
        let admitted = self.0.admission().judge(now, &self.0.config, source, &Door::request(invite))?;
        interval(invite)?;
        if !invite.offer.is_empty() {
            let (codecs, allowed) = policy_of(admitted.trunk);
            let mut local = Local::new(SocketAddr::from(([0, 0, 0, 0], 2)), 0);
            local.answer(&invite.offer, Policy { codecs, allowed: &allowed }).map_err(|error| match error {
                DescriptionError::Unreadable(_) => Refusal::Malformed,
                DescriptionError::NothingInCommon | DescriptionError::BadAddress => Refusal::NoCommonCodec,
            })?;
        }
        Ok(admitted)
    }

    fn start(&self, invite: &Invite, incoming: Incoming) -> Result<Start, Incoming> {
        match self.prepare(invite) {
            Some(prepared) => Ok(prepared(incoming)),
            None => Err(incoming),
        }
    }

    /// All that a call needs but its dialog.
    fn prepare(&self, invite: &Invite) -> Option<impl FnOnce(Incoming) -> Start + use<>> {
        let shared = &self.0;
        let request = Door::request(invite);
        let trunk = Admission::trunk_of(&shared.config, invite.source?).ok()?;
        let Admitted { trunk, did } = Admission::route(trunk, &request).ok()?;
        let pair = shared.ports.open(shared.clock.now(), dice).ok()?;
        let settings = &shared.config.media;
        let address = settings.advertised.or(shared.config.sip.advertised).unwrap_or(settings.bind);
        let session = u64::from(dice()) << 32 | u64::from(dice());
        let mut local = Local::new(SocketAddr::new(address, pair.port), session);
        let (codecs, allowed) = policy_of(trunk);
        let policy = Policy { codecs, allowed: &allowed };
        let (description, agreed) = if invite.offer.is_empty() {
            // Only one law, so that the model can be spoken to before the answer is known.
            (local.offer(Policy { codecs: codecs.get(..1)?, ..policy }), None)
        } else {
            let (description, agreed) = local.answer(&invite.offer, policy).ok()?;
            (description, Some(agreed))
        };
        let (call_sid, caller, interval) = (invite.call_id.clone(), request.caller, interval(invite).ok()?);
        let (trunk, did) = (trunk.clone(), did.clone());
        Some(move |incoming| Start {
            incoming,
            call_sid,
            caller,
            interval,
            trunk,
            did,
            pair,
            local,
            description,
            agreed,
        })
    }
}

/// The passwords that the settings name, all of them or none.
fn passwords(config: &Config, secret: &impl Fn(&str) -> Option<String>) -> Result<HashMap<String, String>, StartError> {
    let asking = config.trunks.iter().filter_map(|trunk| Some((trunk, trunk.digest.as_ref()?)));
    let password = |(trunk, digest): (&Trunk, &Digest)| match secret(&digest.password_env) {
        Some(password) => Ok((trunk.name.clone(), password)),
        None => Err(StartError::Password(trunk.name.clone())),
    };
    asking.map(password).collect()
}

/// 64 random bytes.
fn key() -> [u8; 64] {
    let mut key = [0; 64];
    for part in key.chunks_exact_mut(4) {
        part.copy_from_slice(&dice().to_be_bytes());
    }
    key
}

fn interval(invite: &Invite) -> Result<Option<Interval>, Refusal> {
    let supports = invite.supported.iter().chain(&invite.required).any(|tag| tag.eq_ignore_ascii_case("timer"));
    Interval::of_request(invite.session_expires.as_deref(), supports)
}

impl Reception for Door {
    fn knows(&self, source: IpAddr) -> bool {
        let known = Admission::trunk_of(&self.0.config, source).is_ok();
        if !known {
            self.0.metrics.refused(Refusal::UnknownSource);
        }
        known
    }

    fn judge(&self, invite: &Invite) -> Result<(), Option<Refused>> {
        if let Some(challenges) = self.challenge(invite) {
            // Without credentials it is the ordinary first half of every call; with wrong ones it is a refusal.
            if invite.authorization.is_some() {
                self.refuse(invite, Refusal::Unauthenticated);
            }
            let headers = challenges.into_iter().map(|challenge| ("WWW-Authenticate", challenge)).collect();
            return Err(Some(Refused { status: 401, headers }));
        }
        self.admit(invite).map(|_| ()).map_err(|refusal| self.refuse(invite, refusal))
    }

    fn begin(&self, invite: Invite, incoming: Incoming) {
        match self.start(&invite, incoming) {
            Ok(start) => {
                self.0.admission().began(&start.trunk.name, &start.did.number.0);
                self.0.metrics.began();
                tokio::spawn(call::run(self.0.clone(), start));
            }
            Err(incoming) => {
                let refusal = Refusal::RelayFull;
                let message = "a call was not let in: there is no media port for it";
                self.0.desk.log.event("CALL_REFUSED", Level::Error, message, json!({ "reason": refusal.as_str() }));
                self.0.metrics.refused(refusal);
                incoming.dialog.reject(refused(refusal).status);
            }
        }
    }

    fn unavailable(&self) -> Option<Refused> {
        self.0.admission().is_open(&self.0.config).err().map(refused)
    }
}
