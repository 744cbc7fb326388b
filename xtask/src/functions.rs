//! The functions, as wrangler.toml lists them: one `[env.<function>]` section each.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::places;

/// One function: a folder, a crate, an endpoint and a section, all of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
}

impl Function {
    pub fn dir(&self) -> PathBuf {
        places::project().join("functions").join(&self.name)
    }

    /// What `worker-build` leaves for the runtime.
    pub fn outputs(&self) -> [PathBuf; 2] {
        ["build/index.js", "build/index_bg.wasm"].map(|file| self.dir().join(file))
    }
}

pub fn wrangler_toml() -> Result<Table> {
    let file = places::project().join("wrangler.toml");
    let text = std::fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
    text.parse().with_context(|| format!("{} is not TOML", file.display()))
}

pub fn all() -> Result<Vec<Function>> {
    of(&wrangler_toml()?)
}

fn of(config: &Table) -> Result<Vec<Function>> {
    let sections =
        config.get("env").and_then(Value::as_table).context("wrangler.toml has no [env.<function>] section")?;
    sections
        .iter()
        .map(|(name, section)| {
            let main = section.get("main").and_then(Value::as_str).unwrap_or_default();
            let own_name = section.get("name").and_then(Value::as_str).unwrap_or_default();
            if own_name != name || main != format!("functions/{name}/build/index.js") {
                bail!(
                    "wrangler.toml: [env.{name}] needs name = \"{name}\" and main = \"functions/{name}/build/index.js\""
                );
            }
            Ok(Function { name: name.clone() })
        })
        .collect()
}

/// Those that were asked for, or all of them.
pub fn chosen(names: &[String]) -> Result<Vec<Function>> {
    let all = all()?;
    if names.is_empty() {
        return Ok(all);
    }
    names
        .iter()
        .map(|name| {
            let known = || all.iter().map(|function| function.name.as_str()).collect::<Vec<_>>().join(", ");
            all.iter()
                .find(|function| function.name == *name)
                .cloned()
                .with_context(|| format!("there is no function {name:?}: choose from {}", known()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_whose_name_or_main_is_another_functions_is_refused() {
        let config = |text: &str| text.parse::<Table>().unwrap_or_default();
        let good = "[env.a]\nname = \"a\"\nmain = \"functions/a/build/index.js\"";
        assert_eq!(of(&config(good)).ok(), Some(vec![Function { name: "a".into() }]));
        assert!(of(&config(&good.replace("name = \"a\"", "name = \"b\""))).is_err());
        assert!(of(&config("[env.a]")).is_err());
    }

    #[test]
    fn the_projects_own_file_names_every_folder_of_functions() {
        let mut listed: Vec<String> = all().map(|all| all.into_iter().map(|f| f.name).collect()).unwrap_or_default();
        let mut folders: Vec<String> = std::fs::read_dir(places::project().join("functions"))
            .map(|dirs| dirs.flatten().map(|dir| dir.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        listed.sort();
        folders.sort();
        assert_eq!(listed, folders);
    }
}
