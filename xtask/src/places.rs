//! Where things are: the project folder, and the one cache folder outside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The project folder. Known at compile time: xtask is always run by the cargo of the tree that it belongs to.
pub fn project() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// `${XDG_CACHE_HOME:-~/.cache}/ihuza`: tools that are built once and shared by every clone.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = set("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(dir).join("ihuza"));
    }
    let home = set("HOME").context("neither XDG_CACHE_HOME nor HOME is set: set one, tools are cached below it")?;
    Ok(PathBuf::from(home).join(".cache/ihuza"))
}

pub fn node_modules() -> PathBuf {
    project().join("node_modules")
}

/// What belongs to this clone alone and is kept out of git: derived files, the local world's data.
pub fn local() -> PathBuf {
    project().join(".local")
}

/// Where cargo puts what it compiles, when the user has not moved it.
fn target() -> PathBuf {
    set("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), |dir| project().join(dir))
}

/// What is built for this machine: its profiles are folders in it.
pub fn native_target() -> PathBuf {
    target()
}

/// The wasm build has a folder of its own: it may use another compiler, and two compilers share a folder badly.
pub fn edge_target() -> PathBuf {
    target().join("edge")
}

/// Full output of the programs that were run, for when a step fails.
pub fn logs() -> PathBuf {
    target().join("xtask-logs")
}

/// An environment variable that is set and not empty.
pub fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The first file called `name` on PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
