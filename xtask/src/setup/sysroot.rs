//! A wasm standard library for the distribution's compiler, built once into a private sysroot.
//!
//! Debian ships the compiler and the sources of std, but no std for wasm. The sysroot holds that std, a link to the
//! distribution's own host libraries, and wrappers that start its compiler with `--sysroot`.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Ledger, apt};
use crate::call::Call;
use crate::places;
use crate::wasm_toolchain::{TARGET, commit_hash, field, private_dir, stamp};

/// The crate is empty: only the standard library that cargo builds for it is wanted. It is built for size, as the functions
/// are: 6 KB less of each, gzipped, than with the `opt-level` of a released toolchain. A change here, in [`FLAGS`] or in
/// [`WRAPPER`] wants a new [`crate::wasm_toolchain::RECIPE`].
const SEED_MANIFEST: &str = "\
[package]
name = \"stdseed\"
version = \"0.0.0\"
edition = \"2021\"
[workspace]
[profile.release]
opt-level = \"z\"
debug = 0
";

/// A panic traps where it is, and neither its text nor its place is in the module. Nothing of ours panics (clippy denies
/// it), so what is lost is the text of a fault in a library; the trap's stack is logged and its functions have the numbers
/// of the module with names that the build keeps. The standard library and all that is compiled with it must agree.
const FLAGS: &str = "-Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none";

/// Starts the distribution's compiler with the private sysroot. For wasm it compiles as the sysroot was; what runs on this
/// machine (build scripts, macros) it leaves alone.
const WRAPPER: &str = r#"#!/bin/sh
here="$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")"
case " $* " in
*" --target TARGET "*) RUSTC_BOOTSTRAP=1 exec PROGRAM --sysroot "$here" "$@" FLAGS ;;
esac
exec PROGRAM --sysroot "$here" "$@"
"#;

pub fn build(ledger: &mut Ledger) -> Result<()> {
    if !apt::exists() {
        bail!(
            "no compiler here can build for {TARGET}: rustup added nothing and there is no apt to install one with.\n  \
             to do: `rustup target add {TARGET}` where downloads are possible, or install your distribution's package of \
             Rust's wasm32 standard library"
        );
    }
    apt::install(&packages(), "to compile wasm without rustup", ledger)?;
    let rustc = file_of("rustc-web", "rustc")?;
    let rustdoc = file_of("rustc-web", "rustdoc")?;
    let cargo = file_of("cargo-web", "cargo")?;

    let dir = private_dir()?;
    let work = dir.with_extension("build");
    remove(&work)?;
    let libraries = build_std(&work.join("seed"), &cargo, &rustc)?;
    let new = work.join("sysroot");
    assemble(&new, &libraries, &cargo, &[("rustc", &rustc), ("rustdoc", &rustdoc)])?;
    let hash = commit_hash(&rustc).context("the distribution's rustc does not tell its commit hash")?;
    write(&new.join(".done"), &stamp(&hash))?;
    remove(&dir)?;
    std::fs::rename(&new, &dir).with_context(|| format!("could not move the new sysroot to {}", dir.display()))?;
    remove(&work)?;
    ledger.add(format!("wasm standard library for {} in {}", rustc.display(), dir.display()));
    Ok(())
}

/// rust-web-src must be of the same version as rustc-web, and lld of the same LLVM.
fn packages() -> Vec<String> {
    let shown = Call::new("apt-cache", "look a package up").args(["show", "rust-web-llvm"]).read().unwrap_or_default();
    let llvm = shown
        .split([' ', ',', '\n'])
        .find_map(|word| word.strip_prefix("llvm-"))
        .filter(|version| version.chars().all(|c| c.is_ascii_digit()))
        .unwrap_or("22");
    ["rustc-web", "cargo-web", "rust-web-src", "rust-web-llvm"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("lld-{llvm}")])
        .collect()
}

/// The program `name` of an installed package. Another `rustc` may come first on PATH.
fn file_of(package: &str, name: &str) -> Result<PathBuf> {
    let files = Call::new("dpkg", "list the files of a package").args(["-L", package]).read()?;
    let suffix = format!("/bin/{name}");
    let mut found: Vec<&str> = files.lines().filter(|file| file.ends_with(&suffix)).collect();
    found.sort_by_key(|file| file.len());
    found.first().map(PathBuf::from).with_context(|| format!("the package {package} has no program {name}"))
}

/// Returns the folder with the compiled libraries.
fn build_std(seed: &Path, cargo: &Path, rustc: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(seed.join("src")).with_context(|| format!("could not create {}", seed.display()))?;
    write(&seed.join("src/lib.rs"), "")?;
    write(&seed.join("Cargo.toml"), SEED_MANIFEST)?;
    Call::new(cargo, "build the wasm standard library")
        .dir(seed)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO_BUILD_TARGET")
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        // Without bitcode in std a later `lto = true` has nothing to optimise.
        .env("RUSTFLAGS", format!("-C embed-bitcode=yes {FLAGS}"))
        .env("CARGO_TARGET_DIR", seed.join("target"))
        .args(["build", "--release", "--target", TARGET])
        .args(["-Z", "build-std=std,panic_abort,panic_unwind,proc_macro"])
        .args(["-Z", "build-std-features=optimize_for_size"])
        .usual("about 1 min, once")
        .run()?;
    Ok(seed.join("target").join(TARGET).join("release/deps"))
}

fn assemble(new: &Path, libraries: &Path, cargo: &Path, wrapped: &[(&str, &PathBuf)]) -> Result<()> {
    let rustlib = new.join("lib/rustlib");
    let wasm = rustlib.join(TARGET).join("lib");
    let bin = new.join("bin");
    for dir in [&wasm, &bin] {
        std::fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    }
    for file in std::fs::read_dir(libraries).context("the standard library left no files")?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with("lib") && name.ends_with(".rlib") && !name.starts_with("libstdseed") {
            std::fs::copy(file.path(), wasm.join(&name)).with_context(|| format!("could not copy {name}"))?;
        }
    }
    for (name, program) in wrapped {
        let version = Call::new(program, "ask the distribution's compiler").args(["-vV"]).read()?;
        if *name == "rustc" {
            let host = field(&version, "host: ").context("rustc names no host")?;
            let root = Call::new(program, "ask rustc for its sysroot").args(["--print", "sysroot"]).read()?;
            link(&PathBuf::from(root).join("lib/rustlib").join(&host), &rustlib.join(&host))?;
        }
        let wrapper = bin.join(name);
        write(&wrapper, &wrapper_of(program))?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("could not make {} executable", wrapper.display()))?;
    }
    link(cargo, &bin.join("cargo"))
}

fn wrapper_of(program: &Path) -> String {
    WRAPPER.replace("TARGET", TARGET).replace("FLAGS", FLAGS).replace("PROGRAM", &program.to_string_lossy())
}

fn link(to: &Path, from: &Path) -> Result<()> {
    symlink(to, from).with_context(|| format!("could not link {} to {}", from.display(), to.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("could not write {}", file.display()))
}

/// Remove a folder of ours in the cache, if it is there.
fn remove(dir: &Path) -> Result<()> {
    debug_assert!(places::cache().is_ok_and(|cache| dir.starts_with(cache)));
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
