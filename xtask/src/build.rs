//! `cargo xtask build`: every function as a wasm module and the small script that loads it.
//!
//! One cargo call compiles all functions, so that what they share is compiled once; worker-build then bundles each. What
//! is already built from the same sources by the same tools is left alone.

mod unmade;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::call::{self, Call};
use crate::functions::{self, Function};
use crate::places;
use crate::progress;
use crate::setup::{self, Tools};
use crate::wasm_toolchain::TARGET;

/// How what is compiled becomes what is deployed; another text here means that everything is bundled anew.
const BUNDLED: &str = "shrunk-2";

#[derive(clap::Args)]
pub struct Options {
    /// Build only these functions.
    functions: Vec<String>,
    /// Build even what looks up to date.
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let chosen = functions::chosen(&options.functions)?;
    let tools = setup::ensure()?;
    build(&tools, &chosen, options.force)
}

/// Build the relay of the local world, where it is looked for: beside this very program.
pub fn relay() -> Result<()> {
    Call::cargo("compile the relay")
        // Always the whole workspace: another selection means other features, and everything compiled again.
        .args(["build", "--workspace", "--bin", "ihuza-relay"])
        .usual("about 1 min the first time")
        .run()
}

/// Build all functions that are not up to date.
pub fn ensure(tools: &Tools) -> Result<()> {
    build(tools, &functions::all()?, false)
}

fn build(tools: &Tools, functions: &[Function], force: bool) -> Result<()> {
    progress::headline("Functions");
    let _one_at_a_time = call::lock(&places::edge_target().join("build.lock"))?;
    let shared = fingerprint_of_shared(tools)?;
    let mut stale: Vec<(&Function, String)> = Vec::new();
    for function in functions {
        let fingerprint = fingerprint(&shared, function)?;
        if force || !is_current(function, &fingerprint) {
            stale.push((function, fingerprint));
        }
    }
    if stale.is_empty() {
        progress::done("all functions are up to date");
        return Ok(());
    }
    forget_other_compilers(tools)?;
    compile(tools, &stale)?;
    bundle(tools, &stale)
}

/// Removes what another compiler or standard library has compiled. Cargo tells compilers apart by their version and does
/// not notice a standard library that was built anew; rustc then finds none of the crates.
fn forget_other_compilers(tools: &Tools) -> Result<()> {
    let (mark, now) = (places::edge_target().join(".compiled-by"), tools.toolchain.fingerprint());
    if std::fs::read_to_string(&mark).is_ok_and(|before| before == now) {
        return Ok(());
    }
    let compiled = places::edge_target().join(TARGET);
    if compiled.exists() {
        std::fs::remove_dir_all(&compiled).with_context(|| format!("could not remove {}", compiled.display()))?;
    }
    std::fs::create_dir_all(places::edge_target()).context("could not create the target folder")?;
    std::fs::write(&mark, now).with_context(|| format!("could not write {}", mark.display()))
}

fn compile(tools: &Tools, stale: &[(&Function, String)]) -> Result<()> {
    let packages = stale.iter().flat_map(|(function, _)| ["-p", function.name.as_str()]);
    let call = Call::cargo(&format!("compile {} to wasm", count(stale.len())))
        .env("CARGO_TARGET_DIR", places::edge_target())
        .args(["build", "--lib", "--release", "--target", TARGET])
        .args(packages)
        .usual("about 4 min the first time");
    tools.toolchain.apply(call).run()
}

/// Bundling is mostly wasm-opt, which uses one core: several functions at once.
fn bundle(tools: &Tools, stale: &[(&Function, String)]) -> Result<()> {
    // worker-build only warns about a tool that is not there, and downloads another.
    for tool in [&tools.wasm_bindgen, &tools.npm.wasm_opt, &tools.npm.esbuild, &tools.worker_build] {
        if !tool.is_file() {
            bail!("{} is not there any more: run `cargo xtask setup`", tool.display());
        }
    }
    let at_once = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for some in stale.chunks(at_once) {
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let running: Vec<_> =
                some.iter().map(|(function, _)| scope.spawn(|| bundle_one(tools, function))).collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a bundling thread ended abnormally")))
                .collect()
        });
        results.into_iter().collect::<Result<()>>()?;
        for (function, fingerprint) in some {
            std::fs::write(stamp(function), fingerprint)
                .with_context(|| format!("could not write the stamp of {}", function.name))?;
        }
    }
    Ok(())
}

fn bundle_one(tools: &Tools, function: &Function) -> Result<()> {
    std::fs::remove_file(stamp(function)).ok();
    let call = Call::new(&tools.worker_build, &format!("bundle {}", function.name))
        .dir(function.dir())
        .arg("--release")
        .env("CARGO_TARGET_DIR", places::edge_target())
        .env("WASM_BINDGEN_BIN", &tools.wasm_bindgen)
        .env("WASM_OPT_BIN", &tools.npm.wasm_opt)
        .env("ESBUILD_BIN", &tools.npm.esbuild);
    tools.toolchain.apply(tools.npm.quiet(call)).run()?;
    for output in function.outputs() {
        if !output.is_file() {
            bail!("worker-build said it was done but {} is not there", output.display());
        }
    }
    strip(tools, function)
}

/// Takes out of what is deployed what is not used there: classes that nothing makes, and the names of Rust's functions, a
/// sixth of it and needed only to read a stack trace. The module with its names stays below the target folder; its functions
/// have the same numbers.
fn strip(tools: &Tools, function: &Function) -> Result<()> {
    let [_, wasm] = function.outputs();
    let named = names(function);
    let folder = named.parent().unwrap_or(&named);
    std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    let module = std::fs::read(&wasm).with_context(|| format!("could not read {}", wasm.display()))?;
    let module = unmade::without_classes(&module).with_context(|| format!("could not shrink {}", wasm.display()))?;
    std::fs::write(&named, module).with_context(|| format!("could not keep {}", named.display()))?;
    let call = Call::new(&tools.npm.wasm_opt, &format!("shrink {}", function.name))
        // Once with what values can be where, which only pays when the rest is small.
        .args(["--gufa", "-Oz", "--debuginfo"])
        .arg(&named)
        .arg("-o")
        .arg(&named);
    tools.npm.quiet(call).run()?;
    let call = Call::new(&tools.npm.wasm_opt, &format!("strip {}", function.name))
        .args(["--strip-debug", "--strip-producers"])
        .arg(&named)
        .arg("-o")
        .arg(&wasm);
    tools.npm.quiet(call).run()
}

/// The module of a function with the names of its Rust functions.
fn names(function: &Function) -> PathBuf {
    places::edge_target().join("names").join(&function.name).with_extension("wasm")
}

fn is_current(function: &Function, fingerprint: &str) -> bool {
    function.outputs().iter().all(|output| output.is_file())
        && names(function).is_file()
        && std::fs::read_to_string(stamp(function)).is_ok_and(|stamp| stamp == fingerprint)
}

fn stamp(function: &Function) -> PathBuf {
    function.dir().join("build/.built-from")
}

/// Everything that goes into every function: shared code, versions, settings of the build, the tools themselves.
fn fingerprint_of_shared(tools: &Tools) -> Result<String> {
    let project = places::project();
    let mut hash = Sha256::new();
    hash.update(tools.toolchain.fingerprint());
    hash.update(BUNDLED);
    for tool in [&tools.wasm_bindgen, &tools.worker_build] {
        hash.update(tool.to_string_lossy().as_bytes());
    }
    for file in ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "package-lock.json", ".cargo/config.toml"] {
        add(&mut hash, &project, &project.join(file))?;
    }
    add(&mut hash, &project, &project.join("shared"))?;
    Ok(hex(hash))
}

fn fingerprint(shared: &str, function: &Function) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(shared);
    add(&mut hash, &places::project(), &function.dir())?;
    Ok(hex(hash))
}

/// Names and contents of a file or of a folder with all below it, in a fixed order. Build output and tests stay out.
fn add(hash: &mut Sha256, project: &Path, path: &Path) -> Result<()> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| format!("could not list {}", path.display()))?;
        let mut below: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        below.sort();
        for entry in below {
            let name = entry.file_name().unwrap_or_default();
            if !matches!(name.to_str(), Some("build" | "target" | "tests" | "proptest-regressions")) {
                add(hash, project, &entry)?;
            }
        }
    } else if path.is_file() {
        let bytes = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
        hash.update(path.strip_prefix(project).unwrap_or(path).to_string_lossy().as_bytes());
        hash.update(bytes.len().to_le_bytes());
        hash.update(&bytes);
    }
    Ok(())
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn count(functions: usize) -> String {
    if functions == 1 { "one function".to_owned() } else { format!("{functions} functions") }
}
