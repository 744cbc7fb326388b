//! Where the bytes of a wasm module are: its sections, and its code by the crate that each function comes from.
//!
//! WebAssembly core specification 2.0, section 5.5 (sections) and appendix "custom sections" (names of functions).

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, bail};

/// Part of a module -> its bytes; together they are the module.
pub type Shares = BTreeMap<String, u64>;

const CUSTOM: u8 = 0;
const IMPORT: u8 = 2;
pub const EXPORT: u8 = 7;
const ELEMENT: u8 = 9;
const CODE: u8 = 10;
const DATA: u8 = 11;

/// The crates of one part.
const PARTS: [(&str, &[&str]); 6] = [
    ("core", &["ihuza_core"]),
    ("edge", &["ihuza_edge"]),
    ("serde_json", &["serde_json", "serde", "serde_core", "itoa", "ryu", "zmij", "memchr"]),
    (
        "worker",
        &[
            "worker",
            "worker_sys",
            "worker_kv",
            "wasm_bindgen",
            "wasm_bindgen_futures",
            "js_sys",
            "web_sys",
            "serde_wasm_bindgen",
            "wasm_streams",
            "futures_util",
            "futures_core",
            "futures_channel",
            "pin_project",
            "http",
            "url",
        ],
    ),
    (
        "crypto",
        &[
            "hmac",
            "sha1",
            "sha2",
            "digest",
            "block_buffer",
            "crypto_common",
            "generic_array",
            "base64ct",
            "hex",
            "subtle",
            "getrandom",
        ],
    ),
    ("chrono", &["chrono", "num_traits"]),
];
const STANDARD: [&str; 8] =
    ["core", "alloc", "std", "compiler_builtins", "dlmalloc", "hashbrown", "rustc_demangle", "panic_abort"];

/// Divides `module`. Code goes to its crate's part as far as the names of `named` tell: the same module before its names
/// were taken out, or none where it has them itself. `function` is the crate of the function.
pub fn shares(module: &[u8], named: Option<&[u8]>, function: &str) -> Result<Shares> {
    let mut shares = Shares::new();
    let mut counted = 0;
    for section in sections(module)? {
        let part = match section.id {
            CODE => "code",
            DATA => "data",
            ELEMENT | IMPORT => "tables",
            CUSTOM if section.name(module) == Some("name") => "names",
            _ => "other",
        };
        *shares.entry(part.to_owned()).or_default() += section.whole.len() as u64;
        counted += section.whole.len() as u64;
    }
    *shares.entry("other".to_owned()).or_default() += module.len() as u64 - counted;
    let by_crate = code_by_part(named.unwrap_or(module), function)?;
    if let Some(code) = shares.remove("code") {
        for (part, bytes) in scaled(&by_crate, code) {
            *shares.entry(part).or_default() += bytes;
        }
    }
    Ok(shares)
}

/// Whether the module tells the names of its functions.
pub fn has_names(module: &[u8]) -> bool {
    sections(module).is_ok_and(|sections| {
        sections.iter().any(|section| section.id == CUSTOM && section.name(module) == Some("name"))
    })
}

/// Bytes of code by part. Everything is `code` where there are no names.
fn code_by_part(module: &[u8], function: &str) -> Result<Shares> {
    let names = names(module)?;
    let mut shares = Shares::new();
    let mut index = imported_functions(module)?;
    for section in sections(module)?.iter().filter(|section| section.id == CODE) {
        let mut reader = Reader { bytes: module, at: section.body.start };
        for _ in 0..reader.number()? {
            let start = reader.at;
            let size = reader.number()?;
            reader.skip(size)?;
            let part = match names.get(&index) {
                Some(name) => part_of(name, function),
                None if names.is_empty() => "code",
                None => "other_code",
            };
            *shares.entry(part.to_owned()).or_default() += (reader.at - start) as u64;
            index += 1;
        }
    }
    Ok(shares)
}

/// The same proportions with another sum; what rounding leaves goes to the largest.
fn scaled(shares: &Shares, sum: u64) -> Shares {
    let old: u64 = shares.values().sum();
    if old == 0 {
        return Shares::from([("code".to_owned(), sum)]);
    }
    let scale = |bytes: u64| (u128::from(bytes) * u128::from(sum) / u128::from(old)) as u64;
    let mut new: Shares = shares.iter().map(|(part, bytes)| (part.clone(), scale(*bytes))).collect();
    let rest = sum - new.values().sum::<u64>();
    if let Some(largest) = new.values_mut().max() {
        *largest += rest;
    }
    new
}

/// `ihuza_core::json::obj::h10de…` belongs to `core`, `<&T as core::fmt::Display>::fmt` to `std`.
fn part_of(name: &str, function: &str) -> &'static str {
    if name.starts_with("__wb") || name.starts_with("__extern") || name.ends_with("externref shim") {
        return "worker";
    }
    // The entry points' futures, with all that the compiler drew into them.
    if name.contains("::future_to_promise::") {
        return "function";
    }
    let Some(found) = crate_of(name) else { return "std" };
    if found == function {
        return "function";
    }
    if let Some((part, _)) = PARTS.iter().find(|(_, crates)| crates.contains(&found)) {
        return part;
    }
    if STANDARD.contains(&found) { "std" } else { "other_code" }
}

/// The crate that a demangled name begins with. Drop glue belongs to the type that is dropped; an implementation to its
/// type, unless that is any type at all, then to its trait. None for plain symbols such as `memcpy`.
fn crate_of(name: &str) -> Option<&str> {
    // `core::ptr::drop_in_place<T>`, or `core[12f89f2d8a73214f]::ptr::drop_in_place::<T>` in the newer mangling.
    let dropped = name.split_once("::ptr::drop_in_place").filter(|(owner, _)| owner.starts_with("core"));
    let mut rest = dropped.map_or(name, |(_, of)| of.strip_prefix("::").unwrap_or(of));
    loop {
        let before = rest;
        for sign in ["<", "&", "*const ", "*mut ", "mut ", "dyn ", "[", "("] {
            rest = rest.strip_prefix(sign).unwrap_or(rest);
        }
        if rest.len() == before.len() {
            break;
        }
    }
    let end = rest.find(|found: char| !found.is_ascii_alphanumeric() && found != '_')?;
    let (word, after) = rest.split_at(end);
    // The compiler's newer mangling shows a hash behind the crate: `std[465afff93ac137a0]::…`.
    let after = after.strip_prefix('[').and_then(|hash| hash.split_once(']')).map_or(after, |(_, after)| after);
    if after.starts_with("::") {
        return Some(word);
    }
    match after.split_once(" as ") {
        Some((_, implemented)) => crate_of(implemented),
        // A primitive type, or a type parameter by itself.
        None => Some("core"),
    }
}

pub struct Section {
    pub id: u8,
    /// With id and length.
    pub whole: Range<usize>,
    pub body: Range<usize>,
}

impl Section {
    /// The name of a custom section.
    fn name<'a>(&self, module: &'a [u8]) -> Option<&'a str> {
        Reader { bytes: module, at: self.body.start }.text().ok()
    }
}

pub fn sections(module: &[u8]) -> Result<Vec<Section>> {
    if !module.starts_with(b"\0asm\x01\0\0\0") {
        bail!("not a wasm module of version 1");
    }
    let mut reader = Reader { bytes: module, at: 8 };
    let mut found = Vec::new();
    while reader.at < module.len() {
        let start = reader.at;
        let id = reader.byte()?;
        let size = reader.number()?;
        let body = reader.at;
        reader.skip(size)?;
        found.push(Section { id, whole: start..reader.at, body: body..reader.at });
    }
    Ok(found)
}

/// The names under which things are imported.
pub fn imports(module: &[u8]) -> Result<Vec<&str>> {
    let mut names = Vec::new();
    for section in sections(module)?.iter().filter(|section| section.id == IMPORT) {
        let mut reader = Reader { bytes: module, at: section.body.start };
        for _ in 0..reader.number()? {
            reader.text()?;
            names.push(reader.text()?);
            let kind = reader.byte()?;
            reader.import_type(kind)?;
        }
    }
    Ok(names)
}

/// How many functions are imported: they take the first indices.
fn imported_functions(module: &[u8]) -> Result<u32> {
    const FUNCTION: u8 = 0;
    let mut functions = 0;
    for section in sections(module)?.iter().filter(|section| section.id == IMPORT) {
        let mut reader = Reader { bytes: module, at: section.body.start };
        for _ in 0..reader.number()? {
            reader.text()?;
            reader.text()?;
            let kind = reader.byte()?;
            functions += u32::from(kind == FUNCTION);
            reader.import_type(kind)?;
        }
    }
    Ok(functions)
}

/// Index of a function -> its name.
fn names(module: &[u8]) -> Result<BTreeMap<u32, &str>> {
    const FUNCTIONS: u8 = 1;
    let mut names = BTreeMap::new();
    let sections = sections(module)?;
    let Some(section) = sections.iter().find(|section| section.id == CUSTOM && section.name(module) == Some("name"))
    else {
        return Ok(names);
    };
    let mut reader = Reader { bytes: module, at: section.body.start };
    reader.text()?;
    while reader.at < section.body.end {
        let kind = reader.byte()?;
        let size = reader.number()?;
        if kind != FUNCTIONS {
            reader.skip(size)?;
            continue;
        }
        for _ in 0..reader.number()? {
            let index = reader.number()?;
            names.insert(index, reader.text()?);
        }
    }
    Ok(names)
}

/// Reads forward; an end that comes too early is an error.
pub struct Reader<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Reader<'a> {
    pub fn byte(&mut self) -> Result<u8> {
        let byte = self.bytes.get(self.at).copied().context("the wasm module ends too early")?;
        self.at += 1;
        Ok(byte)
    }

    /// An unsigned LEB128 number of 32 bits.
    pub fn number(&mut self) -> Result<u32> {
        let mut number = 0_u64;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(number).context("a number in the wasm module is too large");
            }
        }
        bail!("a number in the wasm module is too long")
    }

    fn skip(&mut self, size: u32) -> Result<&'a [u8]> {
        let start = self.at;
        let end = start.checked_add(size as usize).context("the wasm module ends too early")?;
        let skipped = self.bytes.get(start..end).context("the wasm module ends too early")?;
        self.at = end;
        Ok(skipped)
    }

    pub fn text(&mut self) -> Result<&'a str> {
        let size = self.number()?;
        std::str::from_utf8(self.skip(size)?).context("a name in the wasm module is not UTF-8")
    }

    fn import_type(&mut self, kind: u8) -> Result<()> {
        const WITH_MAXIMUM: u8 = 1;
        match kind {
            // Function: the index of its type.
            0 => drop(self.number()?),
            // Table: type of its elements, limits.
            1 => {
                self.byte()?;
                self.limits(WITH_MAXIMUM)?;
            }
            2 => self.limits(WITH_MAXIMUM)?,
            // Global: type, whether it changes. Tag: attribute, index of its type.
            3 => drop(self.skip(2)?),
            4 => {
                self.byte()?;
                self.number()?;
            }
            other => bail!("the wasm module imports something of unknown kind {other}"),
        }
        Ok(())
    }

    fn limits(&mut self, with_maximum: u8) -> Result<()> {
        let flags = self.byte()?;
        self.number()?;
        if flags & with_maximum != 0 {
            self.number()?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]
mod tests {
    use super::*;

    /// Two imports (one a function), two functions of 4 and 6 bytes, data, and names for both.
    fn module(with_names: bool) -> Vec<u8> {
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        let mut section = |id: u8, body: &[u8]| {
            module.extend([id, body.len() as u8]);
            module.extend(body);
        };
        section(1, &[1, 0x60, 0, 0]);
        section(2, b"\x02\x01m\x01f\x00\x00\x01m\x01t\x02\x01\x01\x02");
        section(3, &[2, 0, 0]);
        section(10, &[2, 3, 0, 0x01, 0x0b, 5, 0, 0x01, 0x01, 0x01, 0x0b]);
        section(11, &[1, 1, 2, 7, 7]);
        if with_names {
            let (one, two) = ("ihuza_core::json::obj::h10de", "<&T as core::fmt::Display>::fmt");
            let mut functions = vec![2, 1, one.len() as u8];
            functions.extend(one.bytes());
            functions.extend([2, two.len() as u8]);
            functions.extend(two.bytes());
            let mut body = b"\x04name\x01".to_vec();
            body.push(functions.len() as u8);
            body.extend(functions);
            section(0, &body);
        }
        module
    }

    fn of(part: &str, shares: &Shares) -> u64 {
        shares.get(part).copied().unwrap_or_default()
    }

    #[test]
    fn every_byte_is_counted_once() {
        for module in [module(true), module(false)] {
            let shares = shares(&module, None, "some_function").unwrap();
            assert_eq!(shares.values().sum::<u64>(), module.len() as u64, "{shares:?}");
            assert_eq!(of("data", &shares), 7);
        }
    }

    #[test]
    fn code_goes_to_its_crate_and_without_names_to_nobody() {
        let named = shares(&module(true), None, "some_function").unwrap();
        // Ten bytes of functions, and the three of the section's head in proportion.
        assert_eq!((of("core", &named), of("std", &named), of("code", &named)), (5, 8, 0));
        let bare = shares(&module(false), None, "some_function").unwrap();
        assert_eq!((of("core", &bare), of("code", &bare), of("names", &bare)), (0, 13, 0));
        let borrowed = shares(&module(false), Some(&module(true)), "some_function").unwrap();
        assert_eq!((of("core", &borrowed), of("std", &borrowed)), (5, 8));
        assert!(has_names(&module(true)) && !has_names(&module(false)));
    }

    #[test]
    fn a_name_tells_its_crate() {
        let cases = [
            ("ihuza_core::json::obj::h10de207364c09094", "core"),
            ("<ihuza_edge::context::Cx as core::clone::Clone>::clone::h1", "edge"),
            ("core::ptr::drop_in_place<[(&str,ihuza_core::json::Part); 1]>::h1", "core"),
            ("core::ptr::drop_in_place<ihuza_core::json::Part>::h1", "core"),
            ("core::ptr::drop_in_place<alloc::vec::Vec<usize>>::h2", "std"),
            ("core[12f89f2d8a73214f]::ptr::drop_in_place::<ihuza_edge[c0f20a6fbb1305f4]::queue::Envelope>", "edge"),
            ("<ihuza_core[1f]::json_text::Reader>::value", "core"),
            ("<T as alloc::string::ToString>::to_string::h7", "std"),
            ("<&T as core::fmt::Debug>::fmt::h7", "std"),
            ("<std[465afff93ac137a0]::panicking::X as core[12f89f2d8a73214f]::panic::PanicPayload>::as_str", "std"),
            ("web_sys::features::gen_Response::status::__wbg_status_cb::h7 externref shim", "worker"),
            ("__wbindgen_malloc", "worker"),
            ("js_sys::futures::future_to_promise::{{closure}}::{{closure}}::hbd3b339b48b025f5", "function"),
            ("post_call_notify::accept::notification::{{closure}}::h3", "function"),
            ("<serde_json::value::Value as core::fmt::Display>::fmt::h4", "serde_json"),
            ("sha2::sha256::compress256::h4", "crypto"),
            ("memcpy", "std"),
            ("somebody::else", "other_code"),
        ];
        for (name, part) in cases {
            // A tuple's first member may be a primitive: then the whole is the standard library's.
            let expected = if name.contains("(&str") { "std" } else { part };
            assert_eq!(part_of(name, "post_call_notify"), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_module_or_is_cut_short_is_an_error() {
        assert!(shares(b"hello", None, "x").is_err());
        let whole = module(true);
        for end in 9..whole.len() - 1 {
            // A cut between two sections leaves a smaller module; all others are errors, and none panics.
            let _ = shares(whole.get(..end).unwrap(), None, "x");
        }
        assert!(shares(whole.get(..whole.len() - 1).unwrap(), None, "x").is_err());
    }
}
