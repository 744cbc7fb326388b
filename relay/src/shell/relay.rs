//! The relay as a whole: starts its parts, lets calls in, and ends without harming those that run.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ihuza_core::phone::E164;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_websockets::Connector;

use super::announcements::Announcements;
use super::call::{self, Start, dice, policy_of, refused};
use super::clock::Clock;
use super::journal::Journal;
use super::ledger::Ledger;
use super::log::{Level, Log};
use super::metrics::Metrics;
use super::outbound::Calls;
use super::ports::Ports;
use super::recorder::Recorder;
use super::scribe::Desk;
use super::session_function::{Function, FunctionError};
use super::signalling::{Incoming, Invite, Reception, Refused};
use super::trunks::{self, Trunks};
use super::{http, sip_stack, tls};
use crate::config::{Config, Digest, Trunk};
use crate::gateway::token::Tokens;
use crate::journal::entry::Origin;
use crate::sip::admission::{Admission, Admitted, Refusal, Request, unsupported};
use crate::sip::description::{DescriptionError, Local, Policy};
use crate::sip::digest::{Authenticator, Credentials, Verdict, md5_only};
use crate::sip::session_timer::Interval;

/// Gateways that have not named their call; each has five seconds for it.
const MOST_GATEWAYS_WAITING: usize = 64;

/// What is not needed any more is forgotten this often.
const FORGET_EVERY: Duration = Duration::from_secs(2);

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
    /// Recordings, where a trunk records.
    pub recorder: Option<Recorder>,
    /// TLS towards the model.
    pub connector: Arc<Connector>,
    /// The key for the model where a call brings none.
    pub model_key: Arc<str>,
    /// How the trunks are.
    pub trunks: Trunks,
    /// Calls that it was asked to place.
    pub calls: Calls,
    /// Ends all calls.
    pub stop_calls: watch::Sender<()>,
    /// What gateways show, by their trunks' names.
    pub gateway_secrets: HashMap<String, String>,
    /// Tokens of gateways that were used.
    pub tokens: Mutex<Tokens>,
    /// Seats for gateways that have not named their call.
    pub gateways_waiting: Arc<Semaphore>,
    /// Names of the calls that gateways carry.
    streams: Mutex<HashSet<String>>,
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
    #[error("announcements: {0}")]
    Announcements(std::io::Error),
    /// The recordings' directory.
    #[error("recordings in {0} cannot be kept: {1}")]
    Recordings(String, std::io::Error),
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
    /// Nobody could ask for a call.
    #[error("outbound.key_env names the variable {0}, but it is not set: nobody could ask for a call")]
    CallsKey(String),
    /// A trunk that takes gateways has no secret for them.
    #[error("trunk {0} has gateway.secret_env, but that variable is not set: no gateway could call")]
    GatewaySecret(String),
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
        let gateway_secrets = gateway_secrets(&config, &secret)?;
        let announcements = Announcements::of(&config).map_err(StartError::Announcements)?;
        let clock = Clock::start();
        let log = Log::new(clock);
        let directory = &config.journal.directory;
        let (journal, leftovers) = Journal::open(directory, clock)
            .map_err(|error| StartError::Journal(directory.display().to_string(), error))?;
        let recorder = recorder(&config, log)?;
        let function = Function::new(&config.session, secret(&config.session.key_env).unwrap_or_default())?;
        let desk = Desk::new(journal, function, log, clock);
        let (calls_key, calls_passwords) = calls_secrets(&config, &secret)?;
        let now_ms = clock.unix_ms(clock.now());
        let (ledger, lines) = Ledger::open(directory, now_ms)
            .map_err(|error| StartError::Journal(directory.display().to_string(), error))?;
        let calls = Calls::new(calls_key, calls_passwords, ledger, &lines, now_ms);
        let connector = tls::connector(config.model.ca_file.as_deref())?;
        let shared = Arc::new(Shared {
            clock,
            announcements,
            recorder,
            metrics: Metrics::default(),
            ports: Ports::new(config.media.bind, config.media.ports.0.clone()),
            connector: Arc::new(connector),
            model_key: secret(&config.model.api_key_env).unwrap_or_default().into(),
            trunks: Trunks::new(clock.now(), &config),
            calls,
            stop_calls: watch::Sender::new(()),
            gateway_secrets,
            tokens: Mutex::default(),
            gateways_waiting: Arc::new(Semaphore::new(MOST_GATEWAYS_WAITING)),
            streams: Mutex::default(),
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
        for leftover in leftovers {
            desk.leave_to_journal(leftover);
        }
        let stop = CancellationToken::new();
        let signalling = sip_stack::serve(&shared.config.sip, Arc::new(Door(shared.clone())), stop.clone()).await?;
        shared.calls.connect(signalling.clone());
        trunks::watch(shared.clone(), signalling);
        tokio::spawn(forget(Arc::downgrade(&shared)));
        // Last: whoever hears that the relay is well may call.
        let listen = shared.config.http.listen;
        let served = http::serve(listen, shared.clone()).await.map_err(|error| StartError::Http(listen, error));
        let http = served.inspect_err(|_| stop.cancel())?;
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

    /// Whether a call over a gateway is let in.
    pub fn let_in<'c>(&self, trunk: &'c Trunk, request: &Request) -> Result<Admitted<'c>, Refusal> {
        self.admission().judge_for(self.clock.now(), &self.config, trunk, request)
    }

    /// A call begins.
    pub fn began(&self, trunk: &str, number: &E164) {
        self.admission().began(trunk, number);
        self.metrics.began();
    }

    /// A place for a gateway's call of this name; nothing if there is one. It is free again when what is returned is dropped.
    pub fn place_of_stream(self: &Arc<Self>, call_sid: &str) -> Option<StreamPlace> {
        let is_new = self.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(call_sid.to_owned());
        is_new.then(|| StreamPlace { shared: self.clone(), call_sid: call_sid.to_owned() })
    }

    /// A call is over.
    pub fn ended(&self, trunk: &str, number: &E164) {
        self.admission().ended(trunk, number);
    }

    fn running(&self) -> usize {
        self.admission().running()
    }

    /// Takes a line for a call that we place.
    pub fn take_line(&self, call: Admitted) -> Result<(), Refusal> {
        let mut admission = self.admission();
        admission.check_room(&self.config, call)?;
        admission.began(&call.trunk.name, &call.did.number.0);
        Ok(())
    }

    /// Calls that run on a trunk.
    pub fn calls_on(&self, trunk: &str) -> usize {
        self.admission().running_on(trunk)
    }

    /// Whether all is well, and what there is to say about it. A disk that refuses the journal needs a person; calls are
    /// taken all the same.
    pub fn health(&self) -> (bool, Value) {
        let (open, calls) = {
            let admission = self.admission();
            (admission.is_open(&self.config), admission.running())
        };
        let journal = if self.desk.journal.is_failing() { "failing" } else { "ok" };
        let well = if journal == "ok" { "ok" } else { "journal_failing" };
        let status = open.err().map_or(well, Refusal::as_str);
        let (most_calls, trunks) = (self.config.limits.calls, trunks::told(self, true));
        let told = json!({
            "status": status, "calls": calls, "most_calls": most_calls, "journal": journal, "trunks": trunks,
        });
        (status == "ok", told)
    }
}

/// Gives back, also while nobody calls, the room of what former calls left in the tables.
async fn forget(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        let now = shared.clock.now();
        shared.admission().forget(now, &shared.config);
        shared.ports.forget(now);
    }
}

/// The place of one call over a gateway.
pub struct StreamPlace {
    shared: Arc<Shared>,
    call_sid: String,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.call_sid);
    }
}

/// Lets calls in.
struct Door(Arc<Shared>);

impl Door {
    /// A trunk that asks something is there.
    fn heard(&self, source: Option<IpAddr>) {
        if let Some(Ok(trunk)) = source.map(|source| Admission::trunk_of(&self.0.config, source)) {
            self.0.trunks.heard(self.0.clock.now(), &trunk.name);
        }
    }

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
            Verdict::Challenged(challenges) if digest.md5_only => Some(md5_only(challenges)),
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
            (local.offer(policy), None)
        } else {
            let (description, agreed) = local.answer(&invite.offer, policy).ok()?;
            (description, Some(agreed))
        };
        let (call_sid, caller, interval) = (invite.call_id.clone(), request.caller, interval(invite).ok()?);
        let (trunk, did, locale) = (trunk.clone(), did.clone(), did.locale.0);
        Some(move |incoming| Start {
            incoming,
            call_sid,
            caller,
            interval,
            origin: Origin::MtnSip,
            trunk,
            did,
            locale,
            pair: Some(pair),
            line: None,
            local,
            description,
            agreed,
            placed: None,
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

/// The key for those who ask for calls, and passwords for trunks that ask us for one.
fn calls_secrets(
    config: &Config,
    secret: &impl Fn(&str) -> Option<String>,
) -> Result<(Option<String>, HashMap<String, String>), StartError> {
    let Some(outbound) = &config.outbound else { return Ok((None, HashMap::new())) };
    let key = secret(&outbound.key_env).ok_or_else(|| StartError::CallsKey(outbound.key_env.clone()))?;
    let asked = config.trunks.iter().filter_map(|trunk| Some((trunk, trunk.outbound.as_ref()?.digest.as_ref()?)));
    let password = |(trunk, digest): (&Trunk, &Digest)| match secret(&digest.password_env) {
        Some(password) => Ok((trunk.name.clone(), password)),
        None => Err(StartError::Password(trunk.name.clone())),
    };
    Ok((Some(key), asked.map(password).collect::<Result<_, _>>()?))
}

/// The secrets of gateways that the settings name, all of them or none.
fn gateway_secrets(
    config: &Config,
    secret: &impl Fn(&str) -> Option<String>,
) -> Result<HashMap<String, String>, StartError> {
    let taking = config.trunks.iter().filter_map(|trunk| Some((trunk, trunk.gateway.as_ref()?)));
    let shown = |(trunk, gateway): (&Trunk, &crate::config::Gateway)| match secret(&gateway.secret_env) {
        Some(secret) => Ok((trunk.name.clone(), secret)),
        None => Err(StartError::GatewaySecret(trunk.name.clone())),
    };
    taking.map(shown).collect()
}

/// The writer of recordings, if any trunk records; what a former process left unfinished is finished.
fn recorder(config: &Config, log: Log) -> Result<Option<Recorder>, StartError> {
    let Some(directory) =
        config.recording.directory.as_ref().filter(|_| config.trunks.iter().any(|trunk| trunk.record))
    else {
        return Ok(None);
    };
    let (recorder, mended) =
        Recorder::open(directory).map_err(|error| StartError::Recordings(directory.display().to_string(), error))?;
    for correlation_id in mended {
        let message = "the recording of a former process was finished";
        log.event("RECORDING_MENDED", Level::Warn, message, json!({ "correlation_id": correlation_id }));
    }
    Ok(Some(recorder))
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

    fn unfit(&self, source: IpAddr, refusal: Refusal, fault: &'static str) {
        self.0.metrics.refused(refusal);
        let trunk = Admission::trunk_of(&self.0.config, source).map_or("", |trunk| &trunk.name);
        let fields = json!({ "reason": refusal.as_str(), "status": refusal.status(), "fault": fault, "trunk": trunk });
        self.0.desk.log.event("SIP_REFUSED", Level::Warn, "a message is no sound request", fields);
    }

    fn judge(&self, invite: &Invite) -> Result<(), Option<Refused>> {
        self.heard(invite.source);
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
                self.0.began(&start.trunk.name, &start.did.number.0);
                self.0.trunks.called(self.0.clock.now(), &start.trunk.name);
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

    fn unavailable(&self, source: Option<IpAddr>) -> Option<Refused> {
        self.heard(source);
        self.0.admission().is_open(&self.0.config).err().map(refused)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::journal::entry::Entry;
    use crate::shell::signalling::{Accepted, Dialog, Later};
    use crate::sip::call::EndCause;

    /// A dialog in which something of ours breaks: when it rings, or when the call is answered.
    struct Broken {
        breaks_when_ringing: bool,
        done: mpsc::UnboundedSender<&'static str>,
    }

    impl Dialog for Broken {
        fn ring(&self) {
            assert!(!self.breaks_when_ringing, "a fault while it rings");
        }

        fn accept(&self, _: &Accepted) {
            panic!("a fault when it is answered");
        }

        fn reject(&self, _: u16) {
            self.done.send("reject").unwrap();
        }

        fn cancel(&self) -> Later<'_, ()> {
            Box::pin(async {})
        }

        fn hang_up(&self, _: u8) -> Later<'_, ()> {
            Box::pin(async { self.done.send("hang up").unwrap() })
        }

        fn refer(&self, _: String) -> Later<'_, Option<u16>> {
            Box::pin(async { None })
        }

        fn refresh(&self, _: String) -> Later<'_, bool> {
            Box::pin(async { true })
        }
    }

    /// A relay whose session function cannot be reached.
    async fn relay(directory: &std::path::Path) -> Relay {
        let text = format!(
            r#"
            sip = {{ udp = "127.0.0.1:0" }}
            media = {{ bind = "127.0.0.1", ports = "44000-44998" }}
            limits = {{ calls = 1 }}
            model = {{ url = "ws://127.0.0.1:1/", api_key_env = "KEY" }}
            session = {{ url = "http://127.0.0.1:1", key_env = "KEY" }}
            journal = {{ directory = "{}" }}
            http = {{ listen = "127.0.0.1:0" }}
            [[trunk]]
            name = "mtn"
            sources = ["127.0.0.1"]
            did = [{{ number = "+250788000100", agent = "concierge", locale = "en" }}]
            "#,
            directory.display()
        );
        Relay::start(Config::parse(&text).unwrap(), |_| None).await.unwrap()
    }

    fn invite() -> Invite {
        let offer =
            "v=0\r\no=t 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 8\r\n";
        Invite {
            source: Some(IpAddr::from([127, 0, 0, 1])),
            scheme: "sip".into(),
            called: "+250788000100".into(),
            caller: "+250788123456".into(),
            call_id: "call".into(),
            from_tag: "tag".into(),
            cseq: "1 INVITE".into(),
            branch: "z9hG4bK1".into(),
            max_forwards: Some(70),
            required: Vec::new(),
            supported: Vec::new(),
            content_type: Some("application/sdp".into()),
            user_agent: None,
            authorization: None,
            session_expires: None,
            offer: offer.into(),
        }
    }

    async fn breaks(breaks_when_ringing: bool, answered_with: &str) {
        let name = format!("ihuza-relay-fault-{}-{breaks_when_ringing}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&directory);
        let relay = relay(&directory).await;
        let shared = relay.shared.clone();
        let (done, mut seen) = mpsc::unbounded_channel();
        let (_signals, signals) = mpsc::channel(1);
        let dialog = Arc::new(Broken { breaks_when_ringing, done });
        Door(shared.clone()).begin(invite(), Incoming { dialog, signals });
        assert_eq!(shared.running(), 1, "the only line is taken");
        let seen = tokio::time::timeout(Duration::from_secs(60), seen.recv()).await.unwrap();
        assert_eq!(seen, Some(answered_with));
        assert_eq!((shared.running(), shared.ports.in_use()), (0, 0));
        let metrics = shared.metrics.render();
        assert!(metrics.contains("cause=\"relay_fault\"} 1") && metrics.contains("calls_running 0"), "{metrics}");
        let ends = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                for file in std::fs::read_dir(&directory).unwrap() {
                    let bytes = std::fs::read(file.unwrap().path()).unwrap();
                    let records = crate::journal::record::scan(&bytes).records;
                    let entries =
                        records.iter().filter_map(|(_, payload)| serde_json::from_slice::<Entry>(payload).ok());
                    let ends: Vec<_> = entries.filter(|entry| matches!(entry, Entry::Ended { .. })).collect();
                    if !ends.is_empty() {
                        return ends;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let ends = ends.await.expect("the end is on disk, to be told");
        assert!(matches!(&ends[..], [Entry::Ended { cause: EndCause::RelayFault, .. }]), "{ends:?}");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn a_call_that_a_fault_breaks_off_while_it_rings_is_refused_and_leaves_its_line_free() {
        breaks(true, "reject").await;
    }

    #[tokio::test]
    async fn a_call_that_a_fault_breaks_off_when_it_is_answered_is_hung_up_and_leaves_its_line_free() {
        breaks(false, "hang up").await;
    }
}
