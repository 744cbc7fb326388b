//! What each function weighs: the wasm and the script that loads it, as they are and as gzip makes them, and what the
//! weight consists of.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Figure;
use super::wasm;
use crate::functions::{self, Function};
use crate::places;

/// The TypeScript functions that these follow weighed this much, as their deployment printed it.
const ANCESTORS: [(&str, f64); 2] = [("post-call-notify", 87_880.0), ("sms-inbound-webhook", 89_000.0)];
/// The third and largest of them: the limit of functions that had none.
const LARGEST_ANCESTOR: f64 = 122_400.0;

pub fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for function in functions::all()? {
        figures.extend(of(&function)?);
    }
    Ok(figures)
}

fn of(function: &Function) -> Result<Vec<Figure>> {
    let [glue, wasm] = function
        .outputs()
        .map(|file| std::fs::read(&file).with_context(|| format!("could not read {}: build first", file.display())));
    let (glue, wasm) = (glue?, wasm?);
    let name = |what: &str| format!("edge.{}.{what}_bytes", function.name);
    let figure = |what: &str, bytes: usize, note: &str| Figure::new(name(what), bytes as f64, "bytes", 1, note);
    let ancestor = ANCESTORS.iter().find(|(name, _)| *name == function.name).map(|(_, bytes)| *bytes);
    let (peer, bytes) = match ancestor {
        Some(bytes) => ("typescript ancestor", bytes),
        None => ("largest typescript ancestor", LARGEST_ANCESTOR),
    };
    let mut figures = vec![
        figure("wasm", wasm.len(), "after wasm-opt"),
        figure("glue", glue.len(), "the script around the wasm, minified"),
        figure("raw", wasm.len() + glue.len(), "wasm and glue as they are").beside(peer, bytes),
        figure(
            "gzip",
            gzipped(&wasm)? + gzipped(&glue)?,
            "wasm and glue, gzip -9 each; whether the ancestors were counted before or after gzip is not known",
        )
        .beside(peer, bytes),
    ];
    let crate_name = function.name.replace('-', "_");
    // What is deployed has no names; the build keeps the same module with them.
    let kept = places::edge_target().join("names").join(&function.name).with_extension("wasm");
    let named = std::fs::read(kept).ok().filter(|module| wasm::has_names(module));
    let note = if named.is_some() || wasm::has_names(&wasm) {
        "code by the crate that the name of each function begins with; what the compiler inlined counts where it went"
    } else {
        "no module with the names of functions was found, so code is not divided: build with `cargo xtask build --force`"
    };
    let shares = wasm::shares(&wasm, named.as_deref(), &crate_name).with_context(|| name("share"))?;
    for (part, bytes) in shares {
        figures.push(figure(&format!("share.{part}"), usize::try_from(bytes)?, note));
    }
    Ok(figures)
}

fn gzipped(bytes: &[u8]) -> Result<usize> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).context("could not compress")?;
    Ok(encoder.finish().context("could not compress")?.len())
}
