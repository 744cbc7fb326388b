//! Transcriptions: strict on the form, and what is "spoken" stands in the file behind a mark.

use serde_json::{Value, json};

use super::check::Refusal;
use crate::http::Request;

pub const PATH: &str = "/v1/audio/transcriptions";

/// What a file begins with; the words follow. The first four bytes are those of every Ogg page.
pub const OGG: &[u8] = b"OggS\0ihuza:";

/// Formats by the ending of the file's name.
const ENDINGS: [&str; 9] = ["flac", "mp3", "mp4", "mpeg", "mpga", "m4a", "ogg", "wav", "webm"];
const MODELS: [&str; 2] = ["gpt-transcribe", "gpt-4o-mini-transcribe"];
const FIELDS: [&str; 3] = ["model", "response_format", "languages[]"];

struct Part {
    name: String,
    file_name: Option<String>,
    content: Vec<u8>,
}

/// The words in the file, whatever else is wrong with the request.
pub fn words(request: &Request) -> Option<String> {
    let file = parts(request)?.into_iter().find(|part| part.name == "file")?;
    Some(String::from_utf8_lossy(file.content.strip_prefix(OGG)?).into_owned())
}

pub fn answer(request: &Request) -> Result<Value, Refusal> {
    let parts = parts(request).ok_or_else(|| refusal("invalid_form", "body", "Could not parse multipart form"))?;
    let field = |name: &str| parts.iter().find(|part| part.name == name && part.file_name.is_none());
    if let Some(stranger) = parts.iter().find(|part| part.name != "file" && !FIELDS.contains(&part.name.as_str())) {
        return Err(refusal("unknown_parameter", &stranger.name, "Unknown parameter"));
    }
    let model = field("model").map(|part| String::from_utf8_lossy(&part.content).into_owned()).unwrap_or_default();
    if !MODELS.contains(&model.as_str()) {
        return Err(Refusal { status: 404, ..refusal("model_not_found", "model", "The model does not exist") });
    }
    let named = parts.iter().filter(|part| part.name == "languages[]");
    if named.clone().any(|part| !part.content.is_ascii() || part.content.len() != 2) {
        return Err(refusal("invalid_language", "languages", "Languages are given as ISO-639-1"));
    }
    let file = parts.iter().find(|part| part.name == "file").and_then(|part| Some((part, part.file_name.as_ref()?)));
    let Some((file, name)) = file else { return Err(refusal("missing_file", "file", "No file was given")) };
    if !name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending)) {
        return Err(refusal("unsupported_format", "file", "Invalid file format"));
    }
    let Some(spoken) = file.content.strip_prefix(OGG) else {
        return Err(refusal("invalid_value", "file", "Audio file might be corrupted or unsupported"));
    };
    let text = String::from_utf8_lossy(spoken).into_owned();
    let seconds = text.split_whitespace().count().div_ceil(2);
    Ok(json!({"text": text, "usage": {"type": "duration", "seconds": seconds}}))
}

fn refusal(code: &'static str, param: &str, message: &str) -> Refusal {
    Refusal { status: 400, code, message: message.to_owned(), param: param.to_owned() }
}

/// A form of RFC 7578.
fn parts(request: &Request) -> Option<Vec<Part>> {
    let (kind, boundary) = request.header("content-type")?.split_once("boundary=")?;
    if !kind.starts_with("multipart/form-data") {
        return None;
    }
    let mark = format!("\r\n--{}", boundary.trim_matches('"'));
    let body = [b"\r\n", &*request.body].concat();
    let mut rest = body.strip_prefix(mark.as_bytes())?;
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = find(part, mark.as_bytes())?;
        let (whole, after) = part.split_at_checked(end)?;
        let blank = find(whole, b"\r\n\r\n")?;
        let (head, content) = whole.split_at_checked(blank)?;
        let head = String::from_utf8_lossy(head).into_owned();
        let value = |of: &str| {
            let (_, rest) = head.split_once(&format!(" {of}=\""))?;
            rest.split('"').next().map(str::to_owned)
        };
        parts.push(Part {
            name: value("name")?,
            file_name: value("filename"),
            content: content.get(4..).unwrap_or_default().to_vec(),
        });
        rest = after.get(mark.len()..)?;
    }
    rest.starts_with(b"--").then_some(parts)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
