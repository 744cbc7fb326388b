//! A world to play in. Whoever plays gets a [`Stage`]; when the play is over, every line that the functions logged is read.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ihuza_sim::mtn::Sms;
use ihuza_sim::verbs::{CallSeed, SeededCall};
use ihuza_sim::world::{World, WorldConfig};
use serde_json::{Map, Value, json};
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, Semaphore};

use crate::logs;

/// How long a state may take to come. Generous: a busy machine must not make a test red.
pub const SOON: Duration = Duration::from_secs(30);

/// A row of a query, column names as keys.
pub type Row = Map<String, Value>;

/// Worlds that are kept for the next play; the one that was not used for longest goes first. Fewer, and tests of several
/// topics that run at once, each with its worlds, would begin them again and again.
const KEPT: usize = 5;

/// A world, who is in it, and how much of its log has been read.
struct Hall {
    name: &'static str,
    door: Arc<RwLock<()>>,
    read: Mutex<usize>,
    world: World,
}

enum Turn {
    Together { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

/// One play.
pub struct Stage {
    turn: Turn,
    hall: Arc<Hall>,
}

/// A world that is begun by whoever comes first; others that want it wait, those who want another one do not.
type Place = Arc<OnceCell<Arc<Hall>>>;

static HALLS: Mutex<Vec<(&'static str, Place)>> = Mutex::new(Vec::new());

/// Worlds that begin at the same time.
static BEGINNING: Semaphore = Semaphore::const_new(2);

impl Stage {
    /// A play beside others in the world called `name`. Faults that it orders must name their person.
    pub async fn shared(name: &'static str, config: fn() -> WorldConfig) -> Self {
        let hall = hall(name, config).await;
        let guard = hall.door.clone().read_owned().await;
        Self { turn: Turn::Together { _guard: guard }, hall }
    }

    /// A play in the same world while nobody else plays there: it may order any fault.
    pub async fn alone(name: &'static str, config: fn() -> WorldConfig) -> Self {
        let hall = hall(name, config).await;
        let guard = hall.door.clone().write_owned().await;
        Self { turn: Turn::Alone { _guard: guard }, hall }
    }

    /// Somebody whom nobody knows yet.
    pub fn stranger(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("+25078{}", 8_200_000 + NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Seeds the call and asks for its notification; both must be taken.
    pub async fn told(&self, seed: &CallSeed) -> Told {
        let call = self.seed_call(seed).await.unwrap();
        self.ask(&call).await
    }

    pub async fn ask(&self, call: &SeededCall) -> Told {
        let answer = self.post_call_notify(call).await.unwrap();
        assert_eq!(answer.status, 202, "{}", answer.body);
        let correlation_id = answer.correlation_id().unwrap().to_owned();
        Told { call: call.clone(), correlation_id }
    }

    /// Seeds the call, asks, and waits until its notification is recorded.
    pub async fn told_and_done(&self, seed: &CallSeed) -> Told {
        let told = self.told(seed).await;
        self.done(&told).await;
        told
    }

    pub async fn done(&self, told: &Told) {
        self.until(&format!("select status = 'done' from call_notifications where call_id = '{}'", told.call.id)).await;
    }

    /// Looks until the query says `true`.
    #[track_caller]
    pub fn until(&self, sql: &str) -> impl Future<Output = ()> {
        let from = std::panic::Location::caller();
        let sql = format!("select coalesce(({sql}), false)");
        async move {
            if let Err(trouble) = self.wait_for_sql(&sql, SOON).await {
                panic!("{from}: {trouble:?}");
            }
        }
    }

    /// The text of the `count`th SMS to `phone`.
    #[track_caller]
    pub fn sms_to(&self, phone: &str, count: usize) -> impl Future<Output = String> {
        let from = std::panic::Location::caller();
        let phone = phone.to_owned();
        async move {
            let what = format!("SMS number {count} to {phone}");
            let look = async || {
                let messages = self.mtn().messages_to(&phone);
                Ok(messages.get(count - 1).map(|sms: &Sms| sms.text.clone()))
            };
            match self.wait_for(what, SOON, look).await {
                Ok(text) => text,
                Err(trouble) => panic!("{from}: {trouble:?}"),
            }
        }
    }

    /// The text of the `count`th WhatsApp message to `address`, a number or a user id.
    #[track_caller]
    pub fn whatsapp_to(&self, address: &str, count: usize) -> impl Future<Output = String> {
        let from = std::panic::Location::caller();
        let address = address.to_owned();
        async move {
            let what = format!("WhatsApp message number {count} to {address}");
            let look = async || Ok(self.whatsapp().messages_to(&address).get(count - 1).map(|sent| sent.shown.clone()));
            match self.wait_for(what, SOON, look).await {
                Ok(text) => text,
                Err(trouble) => panic!("{from}: {trouble:?}"),
            }
        }
    }

    /// Writes on WhatsApp, and waits for the next message that comes back there.
    pub async fn writes(&self, address: &str, text: &str) -> String {
        let before = self.whatsapp().messages_to(address).len();
        let posted = self.whatsapp().deliver(address, text).await.unwrap();
        assert_eq!(posted.status, Some(200), "{}", posted.answer);
        self.whatsapp_to(address, before + 1).await
    }

    /// Writes an SMS, and waits for the next one that comes back.
    pub async fn says(&self, phone: &str, text: &str) -> String {
        let before = self.mtn().messages_to(phone).len();
        let posted = self.sms_from(phone, text).await.unwrap();
        assert_eq!(posted.status, Some(200), "{}", posted.answer);
        self.sms_to(phone, before + 1).await
    }

    /// What the person has received, all channels, each oldest first: the outbox of a story.
    pub fn outbox(&self, phone: &str) -> String {
        let sms = self.mtn().messages_to(phone);
        let mut all: Vec<String> = sms.iter().map(|sms| format!("SMS from {}:\n{}\n", sms.sender, sms.text)).collect();
        for sent in self.whatsapp().messages_to(phone) {
            let kind = match (&sent.template, &sent.language) {
                (Some(name), Some(language)) => format!(" ({name}, {language})"),
                _ => String::new(),
            };
            all.push(format!("WhatsApp{kind}:\n{}\n", sent.shown));
        }
        all.join("\n")
    }

    /// The one row of a query.
    pub async fn row(&self, sql: &str) -> Row {
        let mut rows = self.rows(sql).await.unwrap();
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.remove(0)
    }

    /// The one value of a query.
    pub async fn value(&self, sql: &str) -> Value {
        let row = self.row(sql).await;
        assert_eq!(row.len(), 1, "{sql}");
        row.into_iter().next().map(|(_, value)| value).unwrap_or_default()
    }

    pub async fn count(&self, sql: &str) -> u64 {
        self.value(&format!("select count(*) as n from {sql}")).await.as_u64().unwrap()
    }

    /// Outbound messages to a person, one line each: `channel status attempts [marks]`, by channel and age.
    pub async fn deliveries(&self, phone: &str) -> String {
        let rows = self
            .rows(&format!(
                "select channel, status, attempts, possible_duplicate, fallback_of is not null as fallback
                   from message_delivery_log
                  where direction = 'outbound'
                    and (recipient = '{phone}' or profile_id = (select id from profiles where phone_number = '{phone}'))
                  order by channel, created_at"
            ))
            .await
            .unwrap();
        let line = |row: &Row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let mark = |name: &str, word: &str| if row[name] == true { format!(" {word}") } else { String::new() };
            format!(
                "{} {} {}{}{}",
                text("channel"),
                text("status"),
                row["attempts"],
                mark("possible_duplicate", "possible-duplicate"),
                mark("fallback", "fallback"),
            )
        };
        rows.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    /// Waits until [`Stage::deliveries`] reads like this.
    #[track_caller]
    pub fn delivered(&self, phone: &str, expected: &str) -> impl Future<Output = ()> {
        let from = std::panic::Location::caller();
        let (phone, expected) = (phone.to_owned(), expected.to_owned());
        async move {
            let look = async || Ok((self.deliveries(&phone).await == expected).then_some(()));
            if let Err(trouble) = self.wait_for(&expected, SOON, look).await {
                panic!(
                    "{from}: deliveries of {phone} are `{}`, not `{expected}`\n{trouble:?}",
                    self.deliveries(&phone).await
                );
            }
        }
    }

    /// Calls of PostgREST that carry this text (a correlation id), by name of the RPC, in order.
    pub fn rpcs(&self, part: &str) -> Vec<String> {
        let requests = self.gateway().requests();
        let ours = requests.iter().filter(|request| request.body.contains(part));
        ours.filter_map(|request| request.path.rsplit('/').next().map(str::to_owned)).collect()
    }

    /// The lines about one piece of work.
    pub fn story(&self, correlation_id: &str) -> Vec<Value> {
        let lines = self.logs().unwrap();
        let lines = lines.iter().map(ihuza_sim::edge::LogLine::json);
        lines.filter(|line| line["correlation_id"] == correlation_id).collect()
    }

    pub async fn prefers(&self, phone: &str, preferences: &Value) {
        let sql = "update profiles set notification_preferences = $1 where phone_number = $2";
        assert_eq!(self.execute(sql, &[preferences, &phone]).await.unwrap(), 1, "{phone} has no profile");
    }

    pub async fn whatsapp_only(&self, phone: &str) {
        self.prefers(phone, &json!({"policy": "whatsapp_only"})).await;
    }

    /// Breakers stay closed whatever fails: the play is about something else.
    pub async fn without_breakers(&self) {
        self.execute(
            "update provider_health set state = 'closed', open_until = null, probe_token = null, changed_at = 'infinity'",
            &[],
        )
        .await
        .unwrap();
    }
}

/// A call, and the request to tell about it.
#[derive(Clone, Debug)]
pub struct Told {
    pub call: SeededCall,
    pub correlation_id: String,
}

impl Deref for Stage {
    type Target = World;

    fn deref(&self) -> &World {
        &self.hall.world
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Faults for everybody must not reach the next play, however this one ended.
        if matches!(self.turn, Turn::Alone { .. }) {
            for control in
                [self.mtn().control(), self.whatsapp().control(), self.openai().control(), self.twilio().control()]
            {
                control.clear_faults();
            }
        }
        if std::thread::panicking() {
            return;
        }
        let complaints = self.hall.complaints();
        assert!(
            complaints.is_empty(),
            "{} lines of the log of {:?} are not as they must be:\n{}",
            complaints.len(),
            self.hall.name,
            complaints.join("\n")
        );
    }
}

impl Hall {
    /// Reads the lines that nobody has read yet.
    fn complaints(&self) -> Vec<String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = self.world.logs().unwrap_or_default();
        let fresh: Vec<String> = lines.iter().skip(*read).map(|line| line.text.clone()).collect();
        *read = lines.len();
        let ready = self.world.ready_file();
        let settings: BTreeMap<String, String> = ready["secrets"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        let database = self.world.database_url();
        // The runtime of the test that ends may not be waited in.
        let private = std::thread::scope(|scope| {
            let task = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(logs::Private::of(&database, &settings))
            });
            task.join()
        });
        match private {
            Ok(private) => fresh.iter().filter_map(|line| private.complaint(line)).collect(),
            Err(_) => vec!["what must not be in the log could not be found out".to_owned()],
        }
    }
}

/// A world of this name, kept from the play before or begun now.
async fn hall(name: &'static str, config: fn() -> WorldConfig) -> Arc<Hall> {
    let begin = async || {
        // So that each has a core and is there soon.
        let _turn = BEGINNING.acquire().await.unwrap();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("e2e-{name}"));
        let _ = std::fs::remove_dir_all(&folder);
        let world = World::start(WorldConfig { logs: Some(folder), ..config() });
        Arc::new(Hall { name, door: Arc::default(), read: Mutex::new(0), world: world.await.unwrap() })
    };
    place(name).get_or_init(begin).await.clone()
}

/// Where the world of this name is, or will be.
fn place(name: &'static str) -> Place {
    let mut halls = HALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = halls.iter().position(|(known, _)| *known == name);
    let place = known.map(|at| halls.remove(at).1).unwrap_or_default();
    halls.push((name, place.clone()));
    if halls.len() > KEPT {
        let oldest = halls.remove(0);
        // Ending a world takes a moment; whoever still plays in it keeps it until then.
        std::thread::spawn(move || drop(oldest));
    }
    place
}
