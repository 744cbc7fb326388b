//! The little SIP that a telephone in a measurement needs: it calls, is answered, and hangs up, over UDP.

use std::net::SocketAddr;

/// One end of a call.
pub struct Dialog {
    /// Also tells which call it is: `load-`, the epoch, and a number.
    pub call_id: String,
    pub number: String,
    pub local: SocketAddr,
    pub relay: SocketAddr,
    pub to_tag: String,
}

impl Dialog {
    /// With the offer of one A-law stream to this port.
    pub fn invite(&self, rtp_port: u16) -> String {
        let body = format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {rtp_port} RTP/AVP 8 101\r\n\
             a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=ptime:20\r\n"
        );
        self.request("INVITE", "Content-Type: application/sdp\r\n", &body)
    }

    pub fn ack(&self) -> String {
        self.request("ACK", "", "")
    }

    pub fn bye(&self) -> String {
        self.request("BYE", "", "")
    }

    fn request(&self, method: &str, headers: &str, body: &str) -> String {
        let Dialog { call_id, number, local, relay, to_tag } = self;
        let to_tag = if to_tag.is_empty() { String::new() } else { format!(";tag={to_tag}") };
        let (cseq, length) = (if method == "BYE" { 2 } else { 1 }, body.len());
        format!(
            "{method} sip:+250788000100@{relay} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bK{call_id}{method}\r\n\
             From: <sip:{number}@load>;tag={call_id}\r\nTo: <sip:+250788000100@{relay}>{to_tag}\r\nCall-ID: {call_id}\r\n\
             CSeq: {cseq} {method}\r\nContact: <sip:load@{local}>\r\nMax-Forwards: 70\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
    }
}

/// A message, as far as it is looked at.
#[derive(Debug, PartialEq)]
pub enum Message<'a> {
    /// An answer: status, method of its request, tag of the relay, port of its media.
    Answer { call: usize, status: u16, method: &'a str, to_tag: &'a str, media: Option<u16> },
    /// A request of the relay's.
    Request { call: usize, method: &'a str },
}

/// Reads a message of one of our calls of this epoch.
pub fn read(text: &str, epoch: u32) -> Option<Message<'_>> {
    let (of, call) = header(text, "Call-ID")?.strip_prefix("load-")?.split_once('-')?;
    let call = call.parse().ok().filter(|_| of.parse() == Ok(epoch))?;
    let line = text.lines().next()?;
    let Some(status) = line.strip_prefix("SIP/2.0 ") else {
        return Some(Message::Request { call, method: line.split(' ').next()? });
    };
    let to_tag = header(text, "To")?.split_once("tag=").map_or("", |(_, tag)| tag);
    let media = text.lines().find_map(|line| line.strip_prefix("m=audio "));
    Some(Message::Answer {
        call,
        status: status.get(..3)?.parse().ok()?,
        method: header(text, "CSeq")?.split(' ').nth(1)?,
        to_tag,
        media: media.and_then(|media| media.split(' ').next()?.parse().ok()),
    })
}

/// "I have heard you" to a request.
pub fn ok(request: &str) -> String {
    let mut answer = String::from("SIP/2.0 200 OK\r\n");
    for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
        answer.push_str(&format!("{name}: {}\r\n", header(request, name).unwrap_or_default()));
    }
    answer + "Content-Length: 0\r\n\r\n"
}

fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().take_while(|line| !line.is_empty()).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read() {
        let text = "SIP/2.0 200 OK\r\nVia: x\r\nTo: <sip:a@b>;tag=abc\r\nCall-ID: load-2-17\r\nCSeq: 1 INVITE\r\n\r\nm=audio 20002 RTP/AVP 8\r\n";
        assert_eq!(read(text, 1), None, "a call of before");
        let read = read(text, 2);
        assert_eq!(
            read,
            Some(Message::Answer { call: 17, status: 200, method: "INVITE", to_tag: "abc", media: Some(20_002) })
        );
    }
}
