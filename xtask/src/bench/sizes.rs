//! What each function weighs: the wasm and the script that loads it, as they are and as gzip makes them.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Figure;
use crate::functions::{self, Function};

/// The TypeScript functions that these follow weighed this much, uncompressed.
const ANCESTORS: [(&str, f64); 2] = [("post-call-notify", 87_880.0), ("sms-inbound-webhook", 89_000.0)];

pub fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for function in functions::all()? {
        figures.extend(of(&function)?);
    }
    Ok(figures)
}

fn of(function: &Function) -> Result<[Figure; 3]> {
    let [script, wasm] = function
        .outputs()
        .map(|file| std::fs::read(&file).with_context(|| format!("could not read {}: build first", file.display())));
    let (script, wasm) = (script?, wasm?);
    let gzip = gzipped(&wasm)? + gzipped(&script)?;
    let ancestor = ANCESTORS.iter().find(|(name, _)| *name == function.name).map(|(_, bytes)| *bytes);
    let figure = |what: &str, bytes: usize, note: &str| Figure {
        name: format!("edge.{}.{what}", function.name),
        value: bytes as f64,
        unit: "bytes",
        n: 1,
        peer: None,
        peer_value: None,
        ratio: None,
        note: note.to_owned(),
    };
    let mut gzip_bytes = figure("gzip_bytes", gzip, "wasm and script, gzip -9 each");
    if let Some(ancestor) = ancestor {
        gzip_bytes.peer = Some("TypeScript ancestor".to_owned());
        gzip_bytes.peer_value = Some(ancestor);
        gzip_bytes.ratio = Some(gzip as f64 / ancestor);
    }
    Ok([
        figure("wasm_bytes", wasm.len(), "after wasm-opt -Oz"),
        figure("script_bytes", script.len(), "minified"),
        gzip_bytes,
    ])
}

fn gzipped(bytes: &[u8]) -> Result<usize> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).context("could not compress")?;
    Ok(encoder.finish().context("could not compress")?.len())
}
