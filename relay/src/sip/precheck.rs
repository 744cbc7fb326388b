//! What a datagram must be before the SIP stack sees it (RFC 3261 §7, §8.2, §25).
//!
//! The stack reads leniently what makes two elements disagree about one message (two `Content-Length`s, an unclosed
//! quote, a `CSeq` of another method) and drops without a word what the sender should hear of. Both are settled here:
//! a message passes, perhaps written in a plainer form that means the same, or it is answered at once and without state,
//! or it is nothing that could be answered. `tests/torture.rs` shows the outcome for every message of RFC 4475.

use std::borrow::Cow;
use std::net::{Ipv6Addr, SocketAddr};

use super::admission::{Refusal, unsupported};

/// More headers than any call of ours needs; what has more is an attack on somebody's memory.
const MOST_HEADERS: usize = 100;
/// A sequence number lies below 2^31 (§8.1.1.5).
const MOST_CSEQ: u32 = 0x7fff_ffff;
const TOO_LONG: &str = "longer than is read";
/// Methods that are known; what the relay makes of each is the stack's part.
const METHODS: [&str; 14] = [
    "INVITE",
    "ACK",
    "BYE",
    "CANCEL",
    "OPTIONS",
    "UPDATE",
    "INFO",
    "NOTIFY",
    "PRACK",
    "REFER",
    "REGISTER",
    "MESSAGE",
    "SUBSCRIBE",
    "PUBLISH",
];

/// What becomes of a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'d> {
    /// For the stack; borrowed where nothing had to be written differently.
    Pass(Cow<'d, [u8]>),
    /// Answered with `answer`, to where it came from.
    Refuse {
        /// For metric and status.
        refusal: Refusal,
        /// What is wrong with it, for the log.
        fault: &'static str,
        /// A header that the answer has besides the copied ones.
        header: Option<(&'static str, String)>,
        /// The whole answer.
        answer: Vec<u8>,
    },
    /// No request that could be answered.
    Ignore(&'static str),
}

/// A reason not to pass, with a header that its answer has besides the copied ones.
struct Fault {
    refusal: Refusal,
    what: &'static str,
    header: Option<(&'static str, String)>,
}

impl Fault {
    fn new(refusal: Refusal, what: &'static str) -> Fault {
        Fault { refusal, what, header: None }
    }
}

impl From<&'static str> for Fault {
    fn from(what: &'static str) -> Fault {
        Fault::new(Refusal::Malformed, what)
    }
}

/// A header: its name in full and small letters, and its value with folds undone.
struct Header<'d> {
    name: Cow<'d, str>,
    value: Cow<'d, str>,
}

/// Settles one datagram; `from` is where it came from, `room` how long what is passed on may be.
pub fn settle(datagram: &[u8], from: SocketAddr, room: usize) -> Verdict<'_> {
    // Kept alive by blank lines (RFC 5626 §3.5.1): the stack answers them.
    if datagram.iter().all(u8::is_ascii_whitespace) {
        return Verdict::Pass(Cow::Borrowed(datagram));
    }
    let end = find(datagram, b"\r\n\r\n");
    let (head, body) = match end {
        Some(end) => datagram.split_at(end),
        None => (datagram, &[][..]),
    };
    // A name in some older alphabet costs nobody the call, but a few marks in place of its letters.
    let head = String::from_utf8_lossy(head);
    let body = body.get(4..).unwrap_or_default();
    let (start, rest) = head.split_once("\r\n").unwrap_or((&head, ""));
    if let Some(status) = start.strip_prefix("SIP/") {
        return match status.split(' ').nth(1).map(|code| (code.len(), code.parse())) {
            Some((3, Ok(100..=699_u16))) => Verdict::Pass(Cow::Borrowed(datagram)),
            _ => Verdict::Ignore("a response without a status"),
        };
    }
    let Some((method, version)) = outline(start) else { return Verdict::Ignore("no request") };
    let headers: Vec<Header> = unfolded(rest).take(MOST_HEADERS + 1).collect();
    let checked = match version {
        "SIP/2.0" if end.is_none() => Err("the blank line after the headers is missing".into()),
        "SIP/2.0" if has_lone_break(&head) => Err("a line ends with less than CR and LF".into()),
        "SIP/2.0" => check(method, start, &headers, body.len()),
        _ => Err(Fault::new(Refusal::UnsupportedVersion, "another version of SIP")),
    };
    match checked {
        Ok(length) => plain(datagram, start, &headers, body, length, room)
            .unwrap_or_else(|| refuse(method, &headers, from, Fault::new(Refusal::TooLarge, TOO_LONG))),
        Err(fault) => refuse(method, &headers, from, fault),
    }
}

/// Refuses a datagram that did not fit into the buffer, so that nobody knows how it goes on.
pub fn too_large(datagram: &[u8], from: SocketAddr) -> Verdict<'_> {
    let head = datagram.get(..find(datagram, b"\r\n\r\n").unwrap_or(datagram.len())).unwrap_or_default();
    // A character may be cut in two.
    let head = String::from_utf8_lossy(head);
    let (start, rest) = head.split_once("\r\n").unwrap_or((&head, ""));
    let Some((method, _)) = outline(start) else { return Verdict::Ignore("no request") };
    let headers: Vec<Header> = unfolded(rest).take(MOST_HEADERS).collect();
    refuse(method, &headers, from, Fault::new(Refusal::TooLarge, TOO_LONG))
}

/// Method and version of a request line that is one at all.
fn outline(start: &str) -> Option<(&str, &str)> {
    let start = start.trim_end();
    let (method, _) = start.split_once(' ')?;
    let (_, version) = start.rsplit_once(' ')?;
    (is_token(method) && version.starts_with("SIP/")).then_some((method, version))
}

/// The length of the body, if all is well.
fn check(method: &str, start: &str, headers: &[Header], body: usize) -> Result<usize, Fault> {
    if headers.len() > MOST_HEADERS {
        return Err("more headers than anybody needs".into());
    }
    if headers.iter().any(|header| !is_token(&header.name)) {
        return Err("a header without a name".into());
    }
    for name in ["from", "to", "call-id", "cseq", "max-forwards", "content-length", "content-type"] {
        if all(headers, name).nth(1).is_some() {
            return Err("a header twice that may come once".into());
        }
    }
    let missing = "a header is missing that every request has";
    let address = |name| match one(headers, name) {
        Some(value) => check_address(value, false),
        None => Err(missing),
    };
    address("from")?;
    address("to")?;
    if !has_tag(one(headers, "from").unwrap_or_default()) {
        return Err("no tag in From".into());
    }
    if one(headers, "call-id").is_none_or(str::is_empty) {
        return Err(missing.into());
    }
    let (number, of) = one(headers, "cseq").ok_or(missing)?.split_once([' ', '\t']).ok_or("a broken CSeq")?;
    if number.parse::<u32>().map_or(true, |number| number > MOST_CSEQ) {
        return Err("a sequence number out of range".into());
    }
    if of.trim() != method {
        return Err("a CSeq of another method".into());
    }
    if all(headers, "via").next().is_none() {
        return Err(missing.into());
    }
    all(headers, "via").try_for_each(check_via)?;
    // The topmost says by which way it was sent: one that telephones have.
    let sent_by = one(headers, "via").unwrap_or_default().splitn(3, '/').nth(2).unwrap_or_default();
    let transport = sent_by.split_whitespace().next().unwrap_or_default();
    if !["UDP", "TCP", "TLS", "SCTP", "WS", "WSS"].iter().any(|known| transport.eq_ignore_ascii_case(known)) {
        return Err("a Via of another transport".into());
    }
    if method == "INVITE" {
        all(headers, "contact").try_for_each(|value| check_address(value, true))?;
    }
    if let Some(hops) = one(headers, "max-forwards")
        && hops.parse::<u32>().map_or(true, |hops| hops > 255)
    {
        return Err("a broken Max-Forwards".into());
    }
    let length = match one(headers, "content-length") {
        // To the end of the datagram (§18.3).
        None => body,
        Some(length) => length.parse().map_err(|_| "a broken Content-Length")?,
    };
    if length > body {
        return Err("a body shorter than its Content-Length".into());
    }
    check_request_line(start)?;
    if !METHODS.contains(&method) {
        return Err(Fault::new(Refusal::UnknownMethod, "an unknown method"));
    }
    check_extensions(method, headers)?;
    Ok(length)
}

/// Everything between method and version: one address without brackets, blanks or headers (§7.1, §19.1.1).
fn check_request_line(start: &str) -> Result<(), Fault> {
    let parts: Vec<&str> = start.trim_end().split(' ').collect();
    let [_, uri, _] = parts[..] else { return Err("blanks in the request line".into()) };
    let Some((scheme, rest)) = uri.split_once(':') else { return Err("no scheme in the request address".into()) };
    if uri.contains(['<', '>', '"', '\t']) || rest.is_empty() {
        return Err("a broken request address".into());
    }
    let is = |known: &&str| scheme.eq_ignore_ascii_case(known);
    if !["sip", "sips", "tel"].iter().any(is) {
        return Err(Fault::new(Refusal::UnsupportedScheme, "a scheme that leads to no telephone"));
    }
    // A question mark in the user part is one; behind the host it begins headers, which a request address may not have.
    let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    if user.contains('@') {
        return Err("a broken request address".into());
    }
    if host.contains('?') {
        return Err("headers in the request address".into());
    }
    if !scheme.eq_ignore_ascii_case("tel") && !is_host(host.split(';').next().unwrap_or_default()) {
        return Err("a request address without a host".into());
    }
    Ok(())
}

/// `host` or `host:port` (§25.1).
fn is_host(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<Ipv6Addr>().is_ok() && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    is_name && port.is_none_or(is_port)
}

/// What a request requires or accepts. An INVITE's `Require` is its admission's matter.
fn check_extensions(method: &str, headers: &[Header]) -> Result<(), Fault> {
    if method == "INVITE" {
        let ranges: Vec<&str> = all(headers, "accept").flat_map(|value| value.split(',')).map(str::trim).collect();
        let is_ours = |range: &&str| {
            let kind = range.split(';').next().unwrap_or_default().trim();
            kind.is_empty() || ["application/sdp", "application/*", "*/*"].iter().any(|k| kind.eq_ignore_ascii_case(k))
        };
        if !ranges.is_empty() && !ranges.iter().any(is_ours) {
            let header = Some(("Accept", "application/sdp".to_owned()));
            return Err(Fault { refusal: Refusal::NotAcceptable, what: "an answer that is not accepted", header });
        }
    } else if !["ACK", "CANCEL"].contains(&method) {
        let required: Vec<&str> = all(headers, "require").flat_map(|value| value.split(',')).map(str::trim).collect();
        let unsupported = unsupported(&required);
        if !unsupported.is_empty() {
            let header = Some(("Unsupported", unsupported.join(", ")));
            return Err(Fault { refusal: Refusal::UnsupportedExtension, what: "an extension we do not have", header });
        }
    }
    Ok(())
}

/// `From`, `To` and, as a list, `Contact` (§20.10, §25.1): balanced, with a display name that is one.
fn check_address(value: &str, list: bool) -> Result<(), &'static str> {
    let values = split(value, ',').ok_or("quotes or brackets that do not close")?;
    if values.len() > 1 && !list {
        return Err("more than one address where one belongs");
    }
    for value in values {
        let parts = split(value, ';').ok_or("quotes or brackets that do not close")?;
        let (address, parameters) = parts.split_first().ok_or("an empty address")?;
        if parameters.iter().any(|parameter| parameter.trim().is_empty()) {
            return Err("a parameter without a name");
        }
        // A display name in quotes may hold brackets; what else is in it without quotes harms nobody.
        match address.rsplit_once('<') {
            Some((_, rest)) => check_addr_spec(rest.trim_end().strip_suffix('>').unwrap_or_default())?,
            None if list && address.trim() == "*" => {}
            // Without brackets a question mark could belong to the address or to the header (§20).
            None if address.contains('?') => return Err("an address that needs brackets"),
            None => check_addr_spec(address.trim())?,
        }
    }
    Ok(())
}

fn check_addr_spec(address: &str) -> Result<(), &'static str> {
    let (scheme, rest) = address.split_once(':').unwrap_or_default();
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if address.contains([' ', '\t', '<', '>']) || !is_scheme || rest.is_empty() || rest.starts_with([';', '?']) {
        return Err("a broken address");
    }
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host).split([';', '?']).next().unwrap_or_default();
    let is_sip = ["sip", "sips"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    if is_sip && !is_host(host) { Err("an address without a host") } else { Ok(()) }
}

/// `Via` (§20.42), which says where the answer goes.
fn check_via(value: &str) -> Result<(), &'static str> {
    for value in split(value, ',').ok_or("quotes that do not close in Via")? {
        let parts = split(value, ';').ok_or("quotes that do not close in Via")?;
        let (hop, parameters) = parts.split_first().ok_or("an empty Via")?;
        if parameters.iter().any(|parameter| parameter.trim().is_empty()) {
            return Err("a Via with a parameter without a name");
        }
        let mut protocol = hop.splitn(3, '/').map(str::trim);
        let sent = match (protocol.next(), protocol.next(), protocol.next()) {
            (Some("SIP"), Some("2.0"), Some(sent)) => sent,
            _ => return Err("a Via of another protocol"),
        };
        let by = sent.split_once([' ', '\t']).map(|(transport, by)| (is_token(transport), by.replace([' ', '\t'], "")));
        if by.is_none_or(|(is_transport, by)| !is_transport || !is_host(&by)) {
            return Err("a Via that leads nowhere");
        }
    }
    Ok(())
}

/// The message as the stack reads it best: folds undone, one blank where several are allowed or none are needed, its
/// length named, nothing behind the body. None if that does not fit.
fn plain<'d>(
    datagram: &'d [u8],
    start: &str,
    headers: &[Header],
    body: &[u8],
    length: usize,
    room: usize,
) -> Option<Verdict<'d>> {
    let tightened: Vec<Cow<str>> = headers.iter().map(tighten).collect();
    let changed = headers.iter().zip(&tightened).any(|(header, tight)| {
        matches!(header.value, Cow::Owned(_)) || matches!(tight, Cow::Owned(text) if *text != header.value)
    });
    let named = one(headers, "content-length").is_some();
    let line = plain_line(start);
    let is_text = std::str::from_utf8(datagram.get(..datagram.len() - body.len())?).is_ok();
    if !changed && is_text && length == body.len() && named && line == start {
        return Some(Verdict::Pass(Cow::Borrowed(datagram)));
    }
    let mut text = String::with_capacity(datagram.len());
    text.push_str(&line);
    for (header, value) in headers.iter().zip(&tightened) {
        text.push_str("\r\n");
        text.push_str(&header.name);
        text.push_str(": ");
        text.push_str(value);
    }
    if !named {
        text.push_str(&format!("\r\ncontent-length: {length}"));
    }
    text.push_str("\r\n\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body.get(..length)?);
    (bytes.len() <= room).then_some(Verdict::Pass(Cow::Owned(bytes)))
}

/// The request line with a user part that nobody takes for something else: a number's own parameters
/// (`+250788000100;npdi@`, RFC 3966 §5) are left out, and a question mark is escaped.
fn plain_line(start: &str) -> Cow<'_, str> {
    let start = start.trim_end();
    let parts = start.split_once(':').and_then(|(before, rest)| {
        let (user, host) = rest.rsplit_once('@')?;
        Some((before, user, host))
    });
    let Some((before, user, host)) = parts.filter(|(_, user, _)| user.contains([';', '?'])) else {
        return Cow::Borrowed(start);
    };
    let number = user.split(';').next().filter(|number| !number.is_empty());
    let user = number.unwrap_or(user).replace(';', "%3B").replace('?', "%3F");
    Cow::Owned(format!("{before}:{user}@{host}"))
}

/// Blanks around the marks that divide a value are allowed (`SEMI`, `EQUAL`, `SLASH`, §25.1) and mean nothing.
fn tighten<'h>(header: &'h Header) -> Cow<'h, str> {
    let marks = match &*header.name {
        "via" => ";=/,:",
        "from" | "to" | "contact" => ";=",
        _ => return Cow::Borrowed(&header.value),
    };
    let mut text = String::with_capacity(header.value.len());
    let (mut quoted, mut escaped, mut bracketed) = (false, false, false);
    let mut after_mark = false;
    for c in header.value.chars() {
        let outside = !quoted && !bracketed;
        if outside && c.is_ascii_whitespace() && after_mark {
            continue;
        }
        if outside && marks.contains(c) {
            text.truncate(text.trim_end().len());
        }
        after_mark = outside && marks.contains(c);
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if !bracketed => quoted = !quoted,
            '<' if !quoted => bracketed = true,
            '>' if !quoted => bracketed = false,
            _ => {}
        }
        text.push(c);
    }
    Cow::Owned(text)
}

/// An answer without state (§8.2.7): the same for every copy of the request. An ACK is never answered.
fn refuse<'d>(method: &str, headers: &[Header], from: SocketAddr, fault: Fault) -> Verdict<'d> {
    let Some(status) = fault.refusal.status() else { return Verdict::Ignore(fault.what) };
    if method == "ACK" || all(headers, "via").next().is_none() {
        return Verdict::Ignore(fault.what);
    }
    let mut text = format!("SIP/2.0 {status} {}\r\n", phrase(status));
    for (n, via) in all(headers, "via").enumerate() {
        let via = if n == 0 { with_rport(via, from) } else { via.to_owned() };
        text.push_str(&format!("Via: {via}\r\n"));
    }
    for (name, key) in [("From", "from"), ("To", "to"), ("Call-ID", "call-id"), ("CSeq", "cseq")] {
        let Some(value) = all(headers, key).next() else { continue };
        text.push_str(&format!("{name}: {value}"));
        if key == "to" && !has_tag(value) {
            let call = all(headers, "call-id").next().unwrap_or_default();
            text.push_str(&format!(";tag={:08x}", crc32fast::hash(call.as_bytes())));
        }
        text.push_str("\r\n");
    }
    if let Some((name, value)) = &fault.header {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("Content-Length: 0\r\n\r\n");
    let answer = text.into_bytes();
    Verdict::Refuse { refusal: fault.refusal, fault: fault.what, header: fault.header, answer }
}

fn phrase(status: u16) -> &'static str {
    match status {
        406 => "Not Acceptable",
        416 => "Unsupported URI Scheme",
        420 => "Bad Extension",
        501 => "Not Implemented",
        505 => "Version Not Supported",
        513 => "Message Too Large",
        _ => "Bad Request",
    }
}

/// Who asks for it learns from where it was heard (RFC 3581 §4).
fn with_rport(via: &str, from: SocketAddr) -> String {
    let wish = via.split(',').next().unwrap_or_default();
    let asked = wish.split(';').skip(1).find(|parameter| parameter.trim().eq_ignore_ascii_case("rport"));
    match asked {
        Some(asked) => {
            let told = format!("rport={};received={}", from.port(), from.ip());
            via.replacen(&format!(";{asked}"), &format!(";{told}"), 1)
        }
        None => via.to_owned(),
    }
}

/// Splits at a mark outside quotes and brackets; none if one of them does not close.
fn split(value: &str, mark: char) -> Option<Vec<&str>> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    let (mut quoted, mut escaped, mut bracketed) = (false, false, false);
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if !bracketed => quoted = !quoted,
            '<' if !quoted && bracketed => return None,
            '<' if !quoted => bracketed = true,
            '>' if !quoted && !bracketed => return None,
            '>' if !quoted => bracketed = false,
            c if c == mark && !quoted && !bracketed => {
                parts.push(value.get(begin..at)?);
                begin = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(value.get(begin..)?);
    (!quoted && !bracketed).then_some(parts)
}

fn has_tag(value: &str) -> bool {
    let parameters = split(value, ';').unwrap_or_default();
    parameters.iter().skip(1).any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        name.trim().eq_ignore_ascii_case("tag") && !value.trim().is_empty()
    })
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.!%*_+`'~".contains(c))
}

fn has_lone_break(head: &str) -> bool {
    let lines = head.split("\r\n");
    lines.into_iter().any(|line| line.contains(['\r', '\n']))
}

fn all<'h>(headers: &'h [Header], name: &str) -> impl Iterator<Item = &'h str> {
    headers.iter().filter(move |header| header.name == name).map(|header| &*header.value)
}

fn one<'h>(headers: &'h [Header], name: &str) -> Option<&'h str> {
    all(headers, name).next()
}

/// Header lines with their folds undone (§7.3.1) and their short names written out (§7.3.3).
fn unfolded(text: &str) -> impl Iterator<Item = Header<'_>> {
    let mut lines = text.split("\r\n").filter(|line| !line.is_empty()).peekable();
    std::iter::from_fn(move || {
        let line = lines.next()?;
        let (name, value) = line.split_once(':').unwrap_or(("", line));
        let mut value = Cow::Borrowed(value.trim());
        while let Some(more) = lines.next_if(|line| line.starts_with([' ', '\t'])) {
            let whole = format!("{value} {}", more.trim());
            value = Cow::Owned(whole.trim().to_owned());
        }
        Some(Header { name: full_name(name.trim()), value })
    })
}

fn full_name(name: &str) -> Cow<'_, str> {
    let name = name.to_ascii_lowercase();
    Cow::Borrowed(match &*name {
        "v" => "via",
        "f" => "from",
        "t" => "to",
        "m" => "contact",
        "i" => "call-id",
        "l" => "content-length",
        "c" => "content-type",
        "s" => "subject",
        "k" => "supported",
        "e" => "content-encoding",
        "u" => "allow-events",
        "o" => "event",
        "r" => "refer-to",
        "b" => "referred-by",
        "x" => "session-expires",
        _ => return Cow::Owned(name),
    })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOUND: &str = "INVITE sip:+250788000100@192.0.2.1 SIP/2.0\r\n\
        Via: SIP/2.0/UDP 192.0.2.3:5060;branch=z9hG4bK1;rport\r\n\
        From: \"Keza, M.\" <sip:+250788123456@mtn.example>;tag=1\r\n\
        To: <sip:+250788000100@192.0.2.1>\r\n\
        Call-ID: a@mtn\r\n\
        CSeq: 1 INVITE\r\n\
        Contact: <sip:192.0.2.3:5060;transport=udp>\r\n\
        Max-Forwards: 70\r\n\
        Content-Type: application/sdp\r\n\
        Content-Length: 3\r\n\
        \r\n\
        v=0";

    fn from() -> SocketAddr {
        "192.0.2.3:5080".parse().unwrap()
    }

    /// What becomes of the message, as a word or as what is passed on or answered.
    fn settled(text: &str) -> String {
        match settle(text.as_bytes(), from(), 8192) {
            Verdict::Pass(Cow::Borrowed(_)) => "as it is".into(),
            Verdict::Pass(Cow::Owned(plain)) => String::from_utf8(plain).unwrap(),
            Verdict::Refuse { answer, .. } => String::from_utf8(answer).unwrap(),
            Verdict::Ignore(fault) => fault.into(),
        }
    }

    #[track_caller]
    fn check(old: &str, new: &str, expected: &str) {
        assert!(SOUND.contains(old), "nothing to replace: {old}");
        let found = settled(&SOUND.replace(old, new));
        assert!(found.contains(expected), "{old:?} -> {new:?}: {found}");
    }

    #[test]
    fn a_sound_message_passes_untouched() {
        assert_eq!(settled(SOUND), "as it is");
        assert_eq!(settled("\r\n\r\n"), "as it is");
        assert_eq!(settled("SIP/2.0 200 OK\r\nVia: x\r\n\r\n"), "as it is");
        check("Contact: <sip:192.0.2.3:5060;transport=udp>", "m: *, \"a;,b\" <sip:c@d>;q=0.1", "as it is");
        check("From: \"Keza, M.\" <", "F: Keza Mutoni<", "as it is");
    }

    #[test]
    fn what_may_be_written_in_many_ways_is_written_in_one() {
        check("Call-ID: a@mtn", "I:\r\n a@mtn", "call-id: a@mtn\r\n");
        check(
            "SIP/2.0/UDP 192.0.2.3:5060;branch",
            "SIP / 2.0\r\n\t/ UDP  192.0.2.3:5060 ; branch",
            "via: SIP/2.0/UDP  192.0.2.3:5060;branch",
        );
        check(
            "100@192.0.2.1 SIP",
            "100;npdi;rn=+25078@192.0.2.1;user=phone SIP",
            "INVITE sip:+250788000100@192.0.2.1;user=phone SIP",
        );
        check(">;tag=1", "> ; tag = 1", "\"Keza, M.\" <sip:+250788123456@mtn.example>;tag=1\r\n");
        check("Content-Length: 3\r\n", "", "content-length: 3\r\n\r\nv=0");
        check("v=0", "v=0 and more", "Content-Length: 3\r\n\r\nv=0".to_ascii_lowercase().as_str());
        let plain = settled(&SOUND.replace(": a@mtn", ":\r\n a@mtn"));
        assert_eq!(settled(&plain), "as it is", "what is plain stays");
    }

    #[test]
    fn each_fault_is_answered_with_its_own_status() {
        for (old, new, status) in [
            ("SIP/2.0\r\nVia", "SIP/3.0\r\nVia", "505 Version Not Supported"),
            ("Content-Length: 3", "Content-Length: 4", "400"),
            ("Content-Length: 3", "Content-Length: 3\r\nl: 3", "400"),
            ("CSeq: 1 INVITE", "CSeq: 1 OPTIONS", "400"),
            ("CSeq: 1 INVITE", "CSeq: 2147483648 INVITE", "400"),
            ("To: <sip:+250788000100@192.0.2.1>\r\n", "", "400"),
            (";tag=1", "", "400"),
            ("\"Keza, M.\" <", "\"Keza, M. <", "400"),
            ("\"Keza, M.\" <", "Keza, M. <", "400"),
            ("INVITE sip:+250788000100", "INVITE  sip:+250788000100", "400"),
            ("100@192.0.2.1 SIP/2.0", "100@192.0.2.1?a=b SIP/2.0", "400"),
            ("INVITE sip:", "INVITE fax:", "416 Unsupported URI Scheme"),
            ("Max-Forwards: 70", "Max-Forwards: 256", "400"),
            ("Max-Forwards: 70", "nonsense", "400"),
            ("Call-ID: a@mtn\r\n", "Call-ID: a@mtn\n", "400"),
            ("Max-Forwards: 70", "Accept: text/plain", "406 Not Acceptable"),
        ] {
            check(old, new, &format!("SIP/2.0 {status}"));
        }
        let unknown = SOUND.replace("INVITE", "DANCE");
        assert!(settled(&unknown).starts_with("SIP/2.0 501 Not Implemented"));
        let required = SOUND.replace("INVITE", "BYE").replace("Max-Forwards: 70", "Require: timer, flying");
        assert!(settled(&required).contains("420 Bad Extension") && settled(&required).contains("Unsupported: flying"));
        let many = SOUND.replace("Max-Forwards: 70", &vec!["A: b"; 100].join("\r\n"));
        assert!(settled(&many).starts_with("SIP/2.0 400"));
    }

    #[test]
    fn an_answer_says_whose_it_is_and_is_the_same_for_every_copy() {
        let answer = settled(&SOUND.replace("CSeq: 1 INVITE", "CSeq: 1 BYE"));
        assert!(
            answer.contains("Via: SIP/2.0/UDP 192.0.2.3:5060;branch=z9hG4bK1;rport=5080;received=192.0.2.3\r\n"),
            "{answer}"
        );
        assert!(answer.contains("Call-ID: a@mtn\r\nCSeq: 1 BYE\r\n"), "{answer}");
        let to = answer.lines().find(|line| line.starts_with("To: ")).unwrap();
        assert!(to.starts_with("To: <sip:+250788000100@192.0.2.1>;tag="), "{to}");
        assert_eq!(answer, settled(&SOUND.replace("CSeq: 1 INVITE", "CSeq: 1 BYE")));
    }

    #[test]
    fn what_nobody_waits_for_an_answer_to_gets_none() {
        let ack = SOUND.replace("INVITE", "ACK").replace("Call-ID: a@mtn\r\n", "");
        assert_eq!(settled(&ack), "a header is missing that every request has");
        for junk in
            ["\u{1}\u{2}", "GET / HTTP/1.1\r\n\r\n", "SIP/2.0 4294967301 no\r\n\r\n", "INVITE sip:a SIP/2.0\r\n\r\n"]
        {
            assert!(matches!(settle(junk.as_bytes(), from(), 8192), Verdict::Ignore(_)), "{junk:?}");
        }
        assert!(matches!(settle(&[0xff; 40], from(), 8192), Verdict::Ignore(_)));
    }

    #[test]
    fn addresses_of_ipv6_stand_in_brackets() {
        // RFC 5118 §4.1 to §4.5.
        for host in [
            "[2001:db8::10]",
            "[2001:db8::10]:5070",
            "[2001:db8::10:5070]",
            "[::ffff:192.0.2.2]",
            "host",
            "192.0.2.1:5060",
        ] {
            assert!(is_host(host), "{host}");
            check("@192.0.2.1 SIP", &format!("@{host} SIP"), "as it is");
        }
        for host in
            ["2001:db8::10", "[2001:db8::10", "[2001:db8::10]5070", "[2001:db8::10]:", "[]", "", "host:99999", "a b"]
        {
            assert!(!is_host(host), "{host}");
        }
        check("192.0.2.3:5060;branch", "[2001:db8::9:1]:6050;received=2001:db8::9:255;branch", "as it is");
    }

    #[test]
    fn a_name_in_an_older_alphabet_costs_nobody_the_call() {
        let at = SOUND.find("Keza").unwrap();
        let mut latin = SOUND.as_bytes().to_vec();
        latin.splice(at..at + 4, *b"Ren\xe9");
        let Verdict::Pass(Cow::Owned(plain)) = settle(&latin, from(), 8192) else { panic!("refused") };
        assert!(
            String::from_utf8(plain)
                .unwrap()
                .contains("from: \"Ren\u{fffd}, M.\" <sip:+250788123456@mtn.example>;tag=1")
        );
    }

    #[test]
    fn what_does_not_fit_is_too_large() {
        let folded = SOUND.replace("Content-Length: 3\r\n", "");
        let verdict = settle(folded.as_bytes(), from(), folded.len());
        assert!(matches!(verdict, Verdict::Refuse { refusal: Refusal::TooLarge, .. }), "{verdict:?}");
        let verdict = too_large(SOUND.as_bytes(), from());
        assert!(matches!(verdict, Verdict::Refuse { refusal: Refusal::TooLarge, .. }), "{verdict:?}");
    }

    /// What holds for everything that comes: nothing is longer than its buffer, what is plain stays as it is, and an
    /// answer is one.
    fn holds(bytes: &[u8]) {
        match settle(bytes, from(), 8192) {
            Verdict::Pass(plain) => {
                assert!(plain.len() <= 8192.max(bytes.len()));
                assert_eq!(settle(&plain, from(), 8192), Verdict::Pass(Cow::Borrowed(&plain)));
            }
            Verdict::Refuse { answer, .. } => assert!(answer.starts_with(b"SIP/2.0 ") && answer.ends_with(b"\r\n\r\n")),
            Verdict::Ignore(_) => {}
        }
        let _ = too_large(bytes, from());
    }

    proptest! {
        #[test]
        fn any_bytes_are_settled(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            holds(&bytes);
        }

        #[test]
        fn any_text_like_sip_is_settled(text in "(INVITE|BYE|SIP/2.0) [ -~]{0,20}( SIP/2.0)?\r\n((v|Via|f|From|t|To|CSeq|i|m|l): ?[ -~]{0,30}\r\n){0,9}(\r\n)?\\PC{0,9}") {
            holds(text.as_bytes());
        }

        #[test]
        fn any_mutation_is_settled(at in 0..SOUND.len(), take in 0_usize..9, put in "[\r\n <>\";:,=/?@%\\\\a0]{0,4}") {
            let mut bytes = SOUND.as_bytes().to_vec();
            let end = (at + take).min(bytes.len());
            bytes.splice(at..end, put.bytes());
            holds(&bytes);
        }
    }
}
