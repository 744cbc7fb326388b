//! Takes the classes out of a module that nothing makes an instance of: those of the Workers crate for containers, for R2 and
//! for streams that Rust feeds. Each exports its methods, so that no optimiser can take them for unused; they are 3 KB of every
//! function, gzipped. Their few lines in the script stay, and are never reached.

use anyhow::{Context, Result};

use crate::bench::wasm::{self, EXPORT, Reader, Section};

/// Classes that have no constructor: Rust makes them, and hands them to JavaScript by an import of their own.
const CLASSES: [&str; 6] = [
    "containerstartupoptions",
    "intounderlyingbytesource",
    "intounderlyingsink",
    "intounderlyingsource",
    "minifyconfig",
    "r2range",
];

/// The module without the exports of these classes, but for a class that Rust does make in it.
pub fn without_classes(module: &[u8]) -> Result<Vec<u8>> {
    let made = wasm::imports(module)?;
    let made = |class: &str| made.iter().any(|import| import.starts_with(&format!("__wbg_{class}_new")));
    let gone: Vec<&str> = CLASSES.into_iter().filter(|class| !made(class)).collect();
    let mut out = Vec::with_capacity(module.len());
    let mut copied = 0;
    for section in wasm::sections(module)?.iter().filter(|section| section.id == EXPORT) {
        out.extend(module.get(copied..section.whole.start).context("the wasm module ends too early")?);
        let body = kept(module, section, &gone)?;
        out.push(EXPORT);
        put_number(&mut out, body.len())?;
        out.extend(body);
        copied = section.whole.end;
    }
    out.extend(module.get(copied..).context("the wasm module ends too early")?);
    Ok(out)
}

/// The section of exports without what belongs to these classes.
fn kept(module: &[u8], section: &Section, gone: &[&str]) -> Result<Vec<u8>> {
    let mut reader = Reader { bytes: module, at: section.body.start };
    let mut count = 0;
    let mut entries: Vec<u8> = Vec::new();
    for _ in 0..reader.number()? {
        let start = reader.at;
        let name = reader.text()?;
        reader.byte()?;
        reader.number()?;
        if !gone.iter().any(|class| belongs(name, class)) {
            count += 1;
            entries.extend(module.get(start..reader.at).context("the wasm module ends too early")?);
        }
    }
    let mut body = Vec::new();
    put_number(&mut body, count)?;
    body.extend(entries);
    Ok(body)
}

/// `r2range_…`, `__wbg_r2range_free`, `__wbg_get_r2range_…` and `__wbg_set_r2range_…` belong to `r2range`.
fn belongs(export: &str, class: &str) -> bool {
    let member = ["", "__wbg_", "__wbg_get_", "__wbg_set_"].into_iter().find_map(|mark| {
        let rest = export.strip_prefix(mark)?.strip_prefix(class)?;
        rest.strip_prefix('_')
    });
    member.is_some()
}

/// An unsigned LEB128 number of 32 bits.
fn put_number(out: &mut Vec<u8>, number: usize) -> Result<()> {
    let mut rest = u32::try_from(number).context("the wasm module is too large")?;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]
mod tests {
    use super::*;

    /// A module of one function that imports `imported` and exports that function under these names.
    fn module(imported: &str, exports: &[&str]) -> Vec<u8> {
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        let mut section = |id: u8, body: &[u8]| {
            module.push(id);
            put_number(&mut module, body.len()).unwrap();
            module.extend(body);
        };
        section(1, &[1, 0x60, 0, 0]);
        section(2, &[&[1, 1, b'm', imported.len() as u8], imported.as_bytes(), &[0, 0]].concat());
        section(3, &[1, 0]);
        let mut body = vec![exports.len() as u8];
        for name in exports {
            body.extend([&[name.len() as u8], name.as_bytes(), &[0, 1]].concat());
        }
        section(7, &body);
        section(10, &[1, 2, 0, 0x0b]);
        module
    }

    const R2: [&str; 4] = ["__wbg_r2range_free", "__wbg_get_r2range_length", "__wbg_set_r2range_length", "r2range_x"];

    #[test]
    fn only_what_belongs_to_a_class_that_nobody_makes_goes() {
        let [free, get, set, method] = R2;
        let before = module("__wbg_fetch", &["memory", free, get, "fetch", set, method, "r2ranges", "sipcall_new"]);
        assert_eq!(
            without_classes(&before).unwrap(),
            module("__wbg_fetch", &["memory", "fetch", "r2ranges", "sipcall_new"])
        );
    }

    #[test]
    fn a_class_that_rust_makes_stays() {
        let made = module("__wbg_r2range_new_0123", &R2);
        assert_eq!(without_classes(&made).unwrap(), made);
    }

    #[test]
    fn many_exports_are_counted_right_and_a_module_that_is_cut_is_an_error() {
        let names: Vec<String> = (0..20).map(|n| format!("an_export_with_a_long_name_{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let whole = module("m", &names);
        assert_eq!(without_classes(&whole).unwrap(), whole);
        assert!(without_classes(whole.get(..whole.len() - 1).unwrap()).is_err());
    }
}
