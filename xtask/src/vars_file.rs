//! `NAME=value` files: `.dev.vars` for the local world, `.vars.<stage>` for a deployment.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

pub type Vars = BTreeMap<String, String>;

/// The file's values; none when there is no such file.
pub fn read(file: &Path) -> Result<Vars> {
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text).with_context(|| format!("could not understand {}", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vars::new()),
        Err(error) => Err(error).with_context(|| format!("could not read {}", file.display())),
    }
}

/// Blank lines and `#` lines are skipped, an `export ` in front and quotes around a value are taken off.
fn parse(text: &str) -> Result<Vars> {
    let mut vars = Vars::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        // The line itself may be a secret: only its number is told.
        let Some((name, value)) = line.split_once('=') else {
            bail!("line {} is not NAME=value", number + 1);
        };
        let name = name.trim();
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            bail!("line {} does not begin with a name of letters, digits and _", number + 1);
        }
        vars.insert(name.to_owned(), unquoted(value.trim()).to_owned());
    }
    Ok(vars)
}

fn unquoted(value: &str) -> &str {
    ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote)).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_quotes_and_export_are_taken_off() {
        let vars = parse("# keys\n\nA=1\nexport B=\"two words\"\nC='x=y'\n").unwrap_or_default();
        let pairs: Vec<(&str, &str)> = vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "two words"), ("C", "x=y")]);
    }

    #[test]
    fn a_line_that_is_no_setting_is_named_by_number_and_never_shown() {
        let error = parse("A=1\nsecret-without-name").map_err(|error| error.to_string());
        assert_eq!(error, Err("line 2 is not NAME=value".to_owned()));
    }
}
