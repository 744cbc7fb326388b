//! Callers that are not ours, for the tests of the relay: SIPp and PJSIP.
//!
//! Neither is needed to build or run anything. Where one cannot be had, the set-up says so and goes on; the tests that
//! play it fail then, and say the same.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Ledger, apt};
use crate::call::Call;
use crate::places;
use crate::progress;

const SIPP_PACKAGE: &str = "sip-tester";
const PJSIP_PACKAGE: &str = "pjsua2-python==2.15.1.post1";
/// Of its packages for CPython 3.9 to 3.12 on x86-64. Its publisher is a third party.
const PJSIP_SHA256: [&str; 4] = [
    "910537e3fe88f606769541b80c7a9cad7eaf65ad77758a919e165b2f531b2b32",
    "c257151dd4f4d149ce60cd2bc9bcfbb3ca97914932fe5f53563d431e035c8c26",
    "4eb5c3afca5ef589f94493ae14c86dbaf3584a9abc7964e89864ed85020c3d16",
    "382f0a69e31d8a7bc98cf542fa1a369592150534aea43d38cb05864b17d9d00b",
];

/// `SIPP_BIN`, or what is on PATH, or the distribution's package.
pub fn ensure_sipp(ledger: &mut Ledger) -> Option<PathBuf> {
    let found =
        || places::set("SIPP_BIN").map(PathBuf::from).filter(|own| own.is_file()).or_else(|| places::on_path("sipp"));
    if found().is_none()
        && let Err(error) = apt::install(&[SIPP_PACKAGE.to_owned()], "for calls to the relay by SIPp", ledger)
    {
        progress::warn(&format!("{error}: without SIPp (Debian: {SIPP_PACKAGE}, or SIPP_BIN) the test `sipp` fails"));
    }
    let sipp = found()?;
    progress::done(&format!("SIPp: {}", sipp.display()));
    Some(sipp)
}

/// The folder with PJSIP's Python package; it belongs to this clone.
pub fn ensure_pjsip() -> Option<PathBuf> {
    if let Some(own) = places::set("PJSIP_PYTHON").map(PathBuf::from) {
        progress::done(&format!("PJSIP of your own: {}", own.display()));
        return Some(own);
    }
    let folder = places::local().join("pjsip");
    if !imports(&folder)
        && let Err(error) = install(&folder).and_then(|()| works(&folder))
    {
        progress::warn(&format!(
            "{error}: without PJSIP the test `pjsip` fails. It takes python3 with pip (Debian: python3-pip) and a package for \
             this machine; PJSIP_PYTHON names a folder that has it"
        ));
        return None;
    }
    progress::done(&format!("PJSIP: {PJSIP_PACKAGE} in {}", folder.display()));
    Some(folder)
}

fn install(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    let hashes = PJSIP_SHA256.map(|hash| format!(" --hash=sha256:{hash}")).concat();
    let list = folder.join("requirements.txt");
    std::fs::write(&list, format!("{PJSIP_PACKAGE}{hashes}\n"))
        .with_context(|| format!("could not write {}", list.display()))?;
    Call::new("python3", "install PJSIP's Python package")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--upgrade", "--require-hashes", "--target"])
        .arg(folder)
        .arg("--requirement")
        .arg(&list)
        .usual("about 10 s")
        .run()
}

fn imports(folder: &Path) -> bool {
    folder.is_dir() && works(folder).is_ok()
}

fn works(folder: &Path) -> Result<()> {
    Call::new("python3", "load PJSIP's Python package")
        .env("PYTHONPATH", folder)
        .args(["-c", "import pjsua2"])
        .read()
        .map(drop)
}
