//! The programs that cargo builds: wasm-bindgen, worker-build, cargo-deny.
//!
//! One of exactly the right version on PATH is used as it is. Otherwise it is built once into the cache, where every
//! clone finds it: as a debug build with `opt-level = 1`, which is a third cheaper to make and as fast on our input.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Ledger, apt};
use crate::call::Call;
use crate::places;
use crate::progress;

struct CargoTool {
    package: &'static str,
    bin: &'static str,
    version: &'static str,
    usual: &'static str,
}

/// Must equal the version of the crate `wasm-bindgen` in Cargo.lock; `check_bindgen` holds it to that.
const WASM_BINDGEN: CargoTool =
    CargoTool { package: "wasm-bindgen-cli", bin: "wasm-bindgen", version: "0.2.130", usual: "about 3 min, once" };
const WORKER_BUILD: CargoTool =
    CargoTool { package: "worker-build", bin: "worker-build", version: "0.8.7", usual: "about 3 min, once" };
const CARGO_DENY: CargoTool =
    CargoTool { package: "cargo-deny", bin: "cargo-deny", version: "0.20.2", usual: "about 3 min, once" };

pub fn ensure(ledger: &mut Ledger) -> Result<[PathBuf; 3]> {
    check_bindgen()?;
    let tools = [WASM_BINDGEN, WORKER_BUILD, CARGO_DENY];
    let scratch = places::cache()?.join("tools/target");
    let mut installed = Vec::new();
    for tool in &tools {
        if tool.find()?.is_none() {
            installed.push(tool.install(&scratch, ledger)?);
        }
    }
    if !installed.is_empty() {
        // Intermediate files of three builds: a gigabyte that nothing needs again.
        std::fs::remove_dir_all(&scratch).ok();
        let names: Vec<String> = installed.iter().map(|bin| bin.display().to_string()).collect();
        ledger.add(format!("tools built: {}", names.join(", ")));
    }
    let [a, b, c] = tools.map(|tool| {
        let found = tool.find()?;
        found.with_context(|| format!("{} was installed but does not run", tool.bin))
    });
    progress::done(&format!(
        "{}, {} and {}",
        WASM_BINDGEN.full_name(),
        WORKER_BUILD.full_name(),
        CARGO_DENY.full_name()
    ));
    Ok([a?, b?, c?])
}

impl CargoTool {
    fn full_name(&self) -> String {
        format!("{} {}", self.bin, self.version)
    }

    fn find(&self) -> Result<Option<PathBuf>> {
        let cached = self.root()?.join("bin").join(self.bin);
        let on_path = places::on_path(self.bin);
        Ok(on_path.into_iter().chain([cached]).find(|program| self.is_right(program)))
    }

    /// Programs say "wasm-bindgen 0.2.130" or only "0.8.7".
    fn is_right(&self, program: &Path) -> bool {
        program.is_file()
            && Call::new(program, "ask a tool for its version")
                .arg("--version")
                .read()
                .is_ok_and(|said| said.split_whitespace().any(|word| word == self.version))
    }

    fn root(&self) -> Result<PathBuf> {
        Ok(places::cache()?.join("tools").join(format!("{}-{}", self.bin, self.version)))
    }

    fn install(&self, scratch: &Path, ledger: &mut Ledger) -> Result<PathBuf> {
        if self.bin == WORKER_BUILD.bin {
            ensure_openssl(ledger)?;
        }
        let root = self.root()?;
        // Without --locked: the lock file that wasm-bindgen-cli ships names a version that registries may not serve.
        Call::cargo(&format!("build {}", self.full_name()))
            .args(["install", "--debug", "--force", "--version", self.version, "--bin", self.bin, "--root"])
            .arg(&root)
            .arg(self.package)
            .env("CARGO_TARGET_DIR", scratch)
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .usual(self.usual)
            .hint("check that the crate registry can be reached, then set up again: what is built already is kept")
            .run()?;
        Ok(root.join("bin").join(self.bin))
    }
}

/// worker-build links to the system's OpenSSL.
fn ensure_openssl(ledger: &mut Ledger) -> Result<()> {
    let has = || Call::new("pkg-config", "look for OpenSSL").args(["--exists", "openssl"]).read().is_ok();
    if has() {
        return Ok(());
    }
    if !apt::exists() {
        bail!(
            "worker-build needs pkg-config and the development files of OpenSSL (openssl-devel or its like): install them"
        );
    }
    apt::install(&["pkg-config".to_owned(), "libssl-dev".to_owned()], "to build worker-build", ledger)
}

/// The crate in the wasm and the program that processes it must be of the same version, to the last digit.
fn check_bindgen() -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let file = places::project().join("Cargo.lock");
    let text = std::fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
    let lock: Lock = toml::from_str(&text).with_context(|| format!("{} is not what cargo writes", file.display()))?;
    match lock.package.iter().find(|package| package.name == "wasm-bindgen") {
        Some(package) if package.version != WASM_BINDGEN.version => bail!(
            "Cargo.lock has wasm-bindgen {}, the set-up installs the program {}: make both the same (Cargo.toml and \
             xtask/src/setup/cargo_tools.rs)",
            package.version,
            WASM_BINDGEN.version
        ),
        _ => Ok(()),
    }
}
