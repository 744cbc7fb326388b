//! `docs/relay-configuration.md` is written from `src/config.rs` and `src/config/text.rs`: every setting with its type, its
//! default and its meaning as they stand there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ihuza_relay::config::Config;

const SOURCES: [&str; 2] = [include_str!("../src/config.rs"), include_str!("../src/config/text.rs")];
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/relay-configuration.md");
/// The least that is a configuration; what else is in it once it was read is a default.
const LEAST: &str = r#"
    sip = {}
    session = { url = "https://edge.example.org/openai-realtime-sip/openai-realtime" }
    journal = { directory = "/var/lib/ihuza-relay" }
    [[trunk]]
    name = "mtn"
    sources = ["192.0.2.1"]
    digest = { username = "trunk", password_env = "TRUNK_PASSWORD" }
    did = [{ number = "+250788000100", agent = "concierge", locale = "rw" }]
"#;

/// A struct, an enum or a setting that is taken from text.
#[derive(Debug, Default)]
struct Kind {
    doc: String,
    /// For a struct: all fields have defaults.
    has_default: bool,
    fields: Vec<Field>,
    /// For an enum: its words.
    words: Vec<String>,
}

#[derive(Debug)]
struct Field {
    name: String,
    rust: String,
    doc: String,
    has_default: bool,
}

/// What the source says before its tests and its code.
fn kinds() -> BTreeMap<String, Kind> {
    let mut kinds = BTreeMap::new();
    let (mut doc, mut attributes) = (Vec::new(), String::new());
    let mut current: Option<(String, Kind, bool, String)> = None;
    let sources = SOURCES.map(|source| source.split("#[cfg(test)]").next().unwrap());
    for line in sources.iter().flat_map(|source| source.lines()).map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim().to_owned());
        } else if line.starts_with("#[") {
            attributes.push_str(line);
        } else if let Some((is_enum, rest)) = line
            .strip_prefix("pub struct ")
            .map(|rest| (false, rest))
            .or_else(|| line.strip_prefix("pub enum ").map(|rest| (true, rest)))
            && let Some(name) = rest.strip_suffix(" {")
        {
            let has_default = attributes.contains(", default)");
            let kind = Kind { doc: doc.join(" "), has_default, ..Kind::default() };
            current = Some((name.to_owned(), kind, is_enum, std::mem::take(&mut attributes)));
            doc.clear();
        } else if line == "}" {
            if let Some((name, kind, ..)) = current.take() {
                kinds.insert(name, kind);
            }
        } else if let Some((_, kind, is_enum, of_kind)) = &mut current {
            let text = doc.join(" ");
            doc.clear();
            let of_field = std::mem::take(&mut attributes);
            if *is_enum {
                let word = line.split(['(', ',']).next().unwrap();
                let snake = of_kind.contains("snake_case");
                let small = word.char_indices().fold(String::new(), |text, (at, c)| {
                    let gap = if snake && at > 0 && c.is_uppercase() { "_" } else { "" };
                    text + gap + &c.to_lowercase().to_string()
                });
                // Without a tag it is what it holds.
                let held = line.split_once('(').and_then(|(_, rest)| rest.split(')').next());
                kind.words.push(match held.filter(|_| of_kind.contains("untagged")) {
                    Some(held) => held.to_owned(),
                    None => format!("`{small}`"),
                });
            } else if let Some((name, rust)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
                let renamed = of_field.split_once("rename = \"").map(|(_, rest)| rest.split('"').next().unwrap());
                kind.fields.push(Field {
                    name: renamed.unwrap_or(name).to_owned(),
                    rust: rust.trim_end_matches(',').to_owned(),
                    doc: text,
                    has_default: of_field.contains("serde(default"),
                });
            }
        } else {
            doc.clear();
            attributes.clear();
        }
    }
    // `by_text!(Name(Inner), parse, show, "meaning");`
    for part in sources.iter().flat_map(|source| source.split("by_text!(").skip(1)) {
        let whole = part.split("\n);").next().unwrap().trim();
        let (name, _) = whole.split_once('(').unwrap();
        let doc = whole.trim_end().trim_end_matches('"').rsplit_once('"').unwrap().1.to_owned();
        kinds.insert(name.to_owned(), Kind { doc, ..Kind::default() });
    }
    kinds
}

fn inner<'t>(rust: &'t str, of: &str) -> Option<&'t str> {
    rust.strip_prefix(of)?.strip_prefix('<')?.strip_suffix('>')
}

/// The type in words.
fn words(kinds: &BTreeMap<String, Kind>, rust: &str) -> String {
    if let Some(of) = inner(rust, "Option") {
        return words(kinds, of);
    }
    if let Some(of) = inner(rust, "Vec") {
        return format!("list: {}", words(kinds, of));
    }
    match rust {
        "String" => "text".into(),
        "char" => "one character".into(),
        "bool" => "`true` or `false`".into(),
        "u16" | "u32" | "u64" | "usize" => "whole number".into(),
        "f32" | "f64" => "number".into(),
        "SocketAddr" => "`address:port`".into(),
        "IpAddr" => "IP address".into(),
        "PathBuf" => "path".into(),
        _ => {
            let kind = kinds.get(rust).unwrap_or_else(|| panic!("{rust} is no type that this page can describe"));
            if kind.words.is_empty() {
                return kind.doc.trim_end_matches('.').to_owned();
            }
            let word = |word: &String| if word.starts_with('`') { word.clone() } else { words(kinds, word) };
            kind.words.iter().map(word).collect::<Vec<_>>().join(" or ")
        }
    }
}

/// The struct that a field is made of, if it is made of one.
fn nested<'k>(kinds: &'k BTreeMap<String, Kind>, rust: &str) -> Option<(&'k Kind, bool)> {
    let optional = inner(rust, "Option").unwrap_or(rust);
    let (name, list) = inner(optional, "Vec").map_or((optional, false), |of| (of, true));
    kinds.get(name).filter(|kind| !kind.fields.is_empty()).map(|kind| (kind, list))
}

fn section(page: &mut String, kinds: &BTreeMap<String, Kind>, kind: &Kind, path: &str, defaults: Option<&toml::Value>) {
    let plain: Vec<&Field> = kind.fields.iter().filter(|field| nested(kinds, &field.rust).is_none()).collect();
    if !plain.is_empty() {
        page.push_str("| setting | type | default | meaning |\n|---|---|---|---|\n");
    }
    for field in plain {
        let needed = !field.has_default && !kind.has_default && !field.rust.starts_with("Option<");
        let default = match defaults.and_then(|table| table.get(&field.name)) {
            _ if needed => "**needed**".into(),
            Some(value) => format!("`{value}`"),
            None => "none".into(),
        };
        let (kind, meaning) = (words(kinds, &field.rust), &field.doc);
        writeln!(page, "| `{}` | {kind} | {default} | {meaning} |", field.name).unwrap();
    }
    for field in &kind.fields {
        let Some((of, list)) = nested(kinds, &field.rust) else { continue };
        let path = if path.is_empty() { field.name.clone() } else { format!("{path}.{}", field.name) };
        let heading = if list { format!("[[{path}]]") } else { format!("[{path}]") };
        let doc = if field.doc.is_empty() { &of.doc } else { &field.doc };
        write!(page, "\n## `{heading}`\n\n{doc}\n\n").unwrap();
        let defaults = defaults.and_then(|table| table.get(&field.name));
        let defaults = if list { defaults.and_then(|list| list.get(0)) } else { defaults };
        section(page, kinds, of, &path, defaults);
    }
}

fn page() -> String {
    let mut page = String::from(
        "# Configuration of the relay\n\n\
         Written from `relay/src/config.rs`; a test fails when this page is out of date \
         (`IHUZA_UPDATE=1 cargo test -p ihuza-relay --test configuration` rewrites it).\n\n\
         The file is TOML. It is read once at the start and checked whole: an unknown setting is an error. \
         `ihuza-relay check --config FILE` says what is wrong with one, `print-config` shows it with all defaults, and \
         [`relay/relay.example.toml`](../relay/relay.example.toml) is one to begin with. No secret stands in it: where one \
         is needed, a setting names the environment variable that holds it.\n",
    );
    let config = Config::parse(LEAST).unwrap();
    let defaults = toml::Value::try_from(&config).unwrap();
    let kinds = kinds();
    section(&mut page, &kinds, &kinds["Config"], "", Some(&defaults));
    page
}

#[test]
fn the_page_is_current() {
    if std::env::var_os("IHUZA_UPDATE").is_some() {
        std::fs::write(PAGE, page()).unwrap();
    }
    assert!(
        std::fs::read_to_string(PAGE).unwrap_or_default() == page(),
        "docs/relay-configuration.md is out of date: IHUZA_UPDATE=1 cargo test -p ihuza-relay --test configuration rewrites it"
    );
}

/// What is printed with all defaults has no setting that the page has not.
#[test]
fn every_setting_of_the_example_is_on_the_page() {
    fn names(value: &toml::Value, found: &mut Vec<String>) {
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(name, value)| {
                found.push(name.clone());
                names(value, found);
            }),
            toml::Value::Array(list) => list.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }
    let config = Config::parse(include_str!("../relay.example.toml")).unwrap();
    let mut found = Vec::new();
    names(&toml::Value::try_from(&config).unwrap(), &mut found);
    let page = page();
    for name in found {
        let is_there = [format!("| `{name}` |"), format!("[{name}]"), format!(".{name}]")];
        assert!(is_there.iter().any(|text| page.contains(text)), "{name} is not on the page");
    }
}
