//! Packages of a Debian-like distribution, only when something is really missing, and never without saying so.

use anyhow::{Result, bail};

use super::Ledger;
use crate::call::Call;
use crate::places;
use crate::progress;

pub fn exists() -> bool {
    places::on_path("apt-get").is_some() && places::on_path("dpkg-query").is_some()
}

pub fn is_installed(package: &str) -> bool {
    Call::new("dpkg-query", "ask dpkg for a package")
        .args(["-W", "-f", "${Status}", package])
        .read()
        .is_ok_and(|status| status == "install ok installed")
}

/// Install what is missing of `packages`; `why` says what for.
pub fn install(packages: &[String], why: &str, ledger: &mut Ledger) -> Result<()> {
    let missing: Vec<&str> = packages.iter().map(String::as_str).filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !exists() {
        bail!("{why} needs the system packages {names} and there is no apt here: install their like by hand");
    }
    progress::warn(&format!("system packages are needed {why}: {names}"));
    // A stale list is no reason to stop: the packages may be known already.
    if let Err(error) = as_root("refresh the list of system packages")?.args(["update", "-qq"]).run() {
        progress::note(&format!("{error}: going on with the list as it is"));
    }
    as_root(&format!("install the system packages {names}"))?
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .usual("about 1 min")
        .hint(&format!("run `sudo apt-get install {names}` yourself and set up again"))
        .run()?;
    ledger.add(format!("system packages installed by apt: {names}"));
    Ok(())
}

fn as_root(what: &str) -> Result<Call> {
    let user = Call::new("id", "find out who runs this").arg("-u").read()?;
    if user == "0" {
        return Ok(Call::new("apt-get", what));
    }
    if places::on_path("sudo").is_none() {
        bail!("could not {what}: that takes root, and there is no sudo here. Run it as root once");
    }
    progress::note("sudo may ask for your password");
    Ok(Call::new("sudo", what).arg("--preserve-env=DEBIAN_FRONTEND").arg("apt-get"))
}
