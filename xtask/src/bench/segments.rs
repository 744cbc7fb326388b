//! How fast segments are counted.

use std::hint::black_box;
use std::time::Instant;

use ihuza_core::sms;

use super::Figure;

const TEXTS: usize = 400_000;
/// Of both alphabets, from a few words to several segments.
const KINDS: [&str; 4] =
    ["We'll send matches soon. ", "Résumé: votre maison à Kigali. ", "Reçu: ça va être traité. ", "Good 😀 morning "];
const LONGEST: usize = 16;

/// The rule as it is, compiled for this machine and not for the edge.
pub fn measure() -> Figure {
    let texts: Vec<String> = (1..=LONGEST).flat_map(|times| KINDS.map(|words| words.repeat(times))).collect();
    let rounds = TEXTS.div_ceil(texts.len());
    let characters: usize = rounds * texts.iter().map(|text| text.chars().count()).sum::<usize>();
    let begun = Instant::now();
    let mut segments = 0;
    for _ in 0..rounds {
        segments += texts.iter().map(|text| sms::count(black_box(text)).segments).sum::<usize>();
    }
    let seconds = begun.elapsed().as_secs_f64();
    let counted = rounds * texts.len();
    let build = if cfg!(debug_assertions) { "unoptimised" } else { "optimised" };
    let note = format!(
        "{characters} characters in {segments} segments, {:.1} million characters a second, one thread, {build}",
        characters as f64 / seconds / 1e6
    );
    Figure::new("core.sms.texts_counted_per_second", counted as f64 / seconds, "1/s", counted as u64, &note)
}
