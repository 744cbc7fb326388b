//! Which compiler makes wasm: the active toolchain where it has the target, otherwise the distribution's compiler with
//! a standard library that `setup` has built into a private sysroot.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::call::Call;
use crate::places;

pub const TARGET: &str = "wasm32-unknown-unknown";
/// How the private standard library is built; another one means that it is built anew. The names of folder and toolchain
/// have it, so that two clones of different ages do not build each other's away.
pub const RECIPE: &str = "for-size-2";

/// The name under which rustup knows the private sysroot.
pub fn linked_name() -> String {
    format!("ihuza-wasm-{RECIPE}")
}

/// `IHUZA_WASM_TOOLCHAIN`: where the wasm target may come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// rustup first, the distribution's compiler where that fails.
    Auto,
    /// The distribution's compiler; nothing is ever downloaded by rustup.
    Distro,
}

impl Policy {
    pub fn read() -> Result<Self> {
        match places::set("IHUZA_WASM_TOOLCHAIN").as_deref() {
            None | Some("auto" | "rustup") => Ok(Self::Auto),
            Some("distro") => Ok(Self::Distro),
            Some(other) => bail!(
                "IHUZA_WASM_TOOLCHAIN is {other:?}: leave it unset (rustup, then the distribution) or set it to distro"
            ),
        }
    }

    pub fn is_distro() -> bool {
        matches!(Self::read(), Ok(Self::Distro))
    }

    /// rustup downloads silently when a toolchain or target is missing, and worker-build asks it to. An address where
    /// nobody listens makes such an attempt fail at once.
    pub fn forbid_downloads(command: &mut Command) {
        command
            .env("RUSTUP_DIST_SERVER", "http://127.0.0.1:9")
            .env("RUSTUP_UPDATE_ROOT", "http://127.0.0.1:9")
            .env("RUSTUP_AUTO_INSTALL", "0");
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WasmToolchain {
    /// The toolchain of rust-toolchain.toml has the target.
    Active,
    /// The private sysroot in the cache; `rustup` says whether it is linked there by name.
    Private { dir: PathBuf, rustup: bool },
}

impl WasmToolchain {
    /// The toolchain that is ready for use now, if any.
    pub fn find() -> Result<Option<Self>> {
        if has_target(Path::new("rustc")) {
            return Ok(Some(Self::Active));
        }
        let dir = private_dir()?;
        let Some(hash) = commit_hash(&dir.join("bin/rustc")) else {
            return Ok(None);
        };
        let done = std::fs::read_to_string(dir.join(".done")).unwrap_or_default();
        if done.trim() != stamp(&hash) || !has_target(&dir.join("bin/rustc")) {
            return Ok(None);
        }
        Ok(Some(Self::Private { rustup: is_linked(&dir), dir }))
    }

    /// Make this call, and whatever it starts, compile with this toolchain.
    pub fn apply(&self, call: Call) -> Call {
        match self {
            Self::Active => call,
            Self::Private { rustup: true, .. } => call.env("RUSTUP_TOOLCHAIN", linked_name()),
            Self::Private { dir, rustup: false } => call.path_first(&dir.join("bin")),
        }
    }

    pub fn describe(&self) -> String {
        match self {
            Self::Active => "the active Rust toolchain has the wasm target".to_owned(),
            Self::Private { dir, .. } => {
                format!("the distribution's compiler, std in {}", dir.display())
            }
        }
    }

    /// What tells two compilers apart, so that a changed compiler means a new build.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Active => commit_hash(Path::new("rustc")).unwrap_or_default(),
            Self::Private { dir, .. } => stamp(&commit_hash(&dir.join("bin/rustc")).unwrap_or_default()),
        }
    }
}

/// The name of this folder must not contain "rustup": worker-build would take it for one of rustup's and ask rustup to
/// add the target.
pub fn private_dir() -> Result<PathBuf> {
    Ok(places::cache()?.join(format!("wasm-sysroot-{RECIPE}")))
}

/// What the private sysroot is stamped with when it is whole.
pub fn stamp(commit_hash: &str) -> String {
    format!("{commit_hash} {RECIPE}")
}

/// Whether this compiler can build for the wasm target.
pub fn has_target(rustc: &Path) -> bool {
    let call = Call::new(rustc, "ask rustc for its wasm target").args(["--print", "target-libdir", "--target", TARGET]);
    call.read().is_ok_and(|dir| {
        std::fs::read_dir(dir).is_ok_and(|files| {
            files.flatten().any(|file| {
                let name = file.file_name();
                let name = name.to_string_lossy();
                name.starts_with("libcore-") && name.ends_with(".rlib")
            })
        })
    })
}

pub fn commit_hash(rustc: &Path) -> Option<String> {
    field(&Call::new(rustc, "ask rustc for its version").arg("-vV").read().ok()?, "commit-hash: ")
}

/// One line of `rustc -vV`.
pub fn field(version: &str, name: &str) -> Option<String> {
    version.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

/// Whether rustup knows the private sysroot by name.
pub fn is_linked(dir: &Path) -> bool {
    let home = places::set("RUSTUP_HOME").map(PathBuf::from);
    let home = home.or_else(|| places::set("HOME").map(|home| PathBuf::from(home).join(".rustup")));
    let link = home.map(|home| home.join("toolchains").join(linked_name()));
    let target = link.and_then(|link| link.canonicalize().ok());
    places::on_path("rustup").is_some() && target.is_some() && target == dir.canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_hash_is_found_among_the_lines_of_rustc() {
        let version =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\ncommit-hash: ac68faa2\nhost: x86_64-unknown-linux-gnu";
        assert_eq!(field(version, "commit-hash: ").as_deref(), Some("ac68faa2"));
        assert_eq!(field(version, "release: "), None);
    }
}
