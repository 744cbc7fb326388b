//! The media: what is heard and said, by RTP or through a gateway.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::super::announcements::Announcement;
use super::super::gateway::{Arrived, Line, Stuck};
use super::offers::policy_of;
use super::{GATEWAY, Running, dice};
use crate::backend;
use crate::journal::entry::Entry;
use crate::media::playout::Heard;
use crate::media::session::{self, Session};
use crate::sip::call;

impl Running {
    pub(super) fn start_media(&mut self) {
        let Some(agreed) = self.start.agreed.filter(|_| self.media.is_none()) else { return };
        let now = self.now();
        let settings = &self.shared.config.media;
        let (_, allowed) = policy_of(&self.start.trunk);
        let mut media = Session::new(
            now,
            session::Setup {
                law: agreed.codec.law(),
                payload_type: agreed.payload_type,
                telephone_event: agreed.telephone_event,
                remote: agreed.remote,
                remote_control: agreed.remote_control,
                allowed,
                echo_db: settings.echo.decibels(),
                silence_limit: Some(Duration::from_secs(settings.silence_limit_s)),
                dice: [dice(), dice(), dice(), dice()],
                cname: format!("{:08x}{:08x}", dice(), dice()),
                ntp_at_start: self.shared.clock.ntp_at_start(),
            },
        );
        if self.start.line.is_some() {
            media.keep_silence();
        }
        if agreed.on_hold {
            media.redescribe(now, agreed.remote, agreed.remote_control, true);
        }
        self.media = Some(media);
        // A call without an agent is an apology: there is nothing to record.
        if self.start.trunk.record && self.model.is_some() {
            self.ask_consent();
        }
        // What the agent says first waits behind the announcement.
        for output in std::mem::take(&mut self.early) {
            self.do_for_model(output);
        }
    }

    pub(super) fn do_for_media(&mut self, output: session::Output) {
        let send = |socket: Option<&UdpSocket>, datagram: &[u8], to: SocketAddr| {
            // A full socket buffer is loss like any other: the next packet is 20 ms away.
            let _ = socket.map(|socket| socket.try_send_to(datagram, to));
        };
        let now = self.now();
        let pair = self.start.pair.as_ref();
        match output {
            session::Output::Rtp { to, datagram } => match &mut self.start.line {
                Some(line) => {
                    let said = line.say(now, &datagram);
                    self.unless_stuck(said);
                }
                None => send(pair.map(|pair| &pair.media), &datagram, to),
            },
            session::Output::Rtcp { to, datagram } => send(pair.map(|pair| &pair.control), &datagram, to),
            // The announcement cannot be interrupted.
            session::Output::Audio(_) if self.is_announcing_consent() => {}
            session::Output::Audio(audio) if self.law() == self.model_law => {
                self.tell_model(backend::Input::Audio(audio));
            }
            session::Output::Audio(audio) => {
                let audio = self.law().convert(self.model_law, &audio);
                self.tell_model(backend::Input::Audio(audio));
            }
            session::Output::Recorded(sound) => self.recorded(sound),
            session::Output::Digit(digit) => {
                self.write(Entry::Digit { at_ms: self.at_ms() });
                let (answered, output) = self.consent.as_mut().map_or((false, None), |consent| consent.key(digit));
                if let Some(output) = output {
                    self.do_for_consent(output);
                }
                if answered {
                    return;
                }
                self.tell_model(backend::Input::Digit(digit));
            }
            session::Output::Spoken(heard) => match &mut self.start.line {
                // What has left is not heard yet.
                Some(line) => {
                    let marked = line.ended(now, heard);
                    self.unless_stuck(marked);
                }
                None => self.spoken(heard),
            },
            session::Output::Dead => self.tell_call(call::Input::MediaLost),
        }
    }

    /// The caller has heard an item to its end.
    fn spoken(&mut self, heard: Heard) {
        let now = self.now();
        let is_notice = *heard.item == *Announcement::Consent.as_str();
        if let Some(output) = self.consent.as_mut().filter(|_| is_notice).and_then(|asked| asked.announced(now)) {
            self.do_for_consent(output);
        }
        self.tell_model(backend::Input::Spoken(heard));
        if self.media.is_some() && !self.is_speaking() {
            self.tell_call(call::Input::Silent);
            self.refer_when_silent();
        }
    }

    /// Whether there is something to say that was not heard yet.
    pub(super) fn is_speaking(&self) -> bool {
        self.media.as_ref().is_some_and(|media| media.queued_ms() > 0)
            || self.start.line.as_ref().is_some_and(Line::is_speaking)
    }

    /// Throws away what the agent has still to say, and tells the model how far it was heard. Whether there was any.
    pub(super) fn silence(&mut self) -> bool {
        let heard = self.cut_off();
        let was_speaking = !heard.is_empty();
        if was_speaking {
            self.tell_model(backend::Input::Cut(heard));
        }
        was_speaking
    }

    /// Silences the agent at once; what was heard of each item that was cut off.
    pub(super) fn cut_off(&mut self) -> Vec<Heard> {
        let now = self.now();
        let heard = self.media.as_mut().map(Session::flush).unwrap_or_default();
        let is_announcing = self.is_announcing_consent();
        let Some(line) = self.start.line.as_mut().filter(|_| !is_announcing) else { return heard };
        let (heard, cleared) = line.cut(now, heard);
        self.unless_stuck(cleared);
        self.heard_by_caller();
        heard
    }

    pub(super) fn line_brings(&mut self, arrived: Arrived) {
        let now = self.now();
        match (arrived, &mut self.media, &mut self.start.line) {
            (Arrived::Packet(packet), Some(media), _) => media.handle_datagram(now, GATEWAY, &packet),
            (Arrived::Digit(digit), Some(media), _) => media.info_digit(now, digit),
            (Arrived::Mark(name), _, Some(line)) => line.echoed(now, &name),
            (Arrived::Packet(_) | Arrived::Digit(_), None, _) | (Arrived::Mark(_), _, None) => {}
        }
        self.heard_by_caller();
    }

    /// What a gateway says that it has played.
    pub(super) fn heard_by_caller(&mut self) {
        while let Some(heard) = self.start.line.as_mut().and_then(Line::poll_heard) {
            self.spoken(heard);
        }
    }

    /// A gateway that does not take what is said to it is as good as gone.
    fn unless_stuck(&mut self, sent: Result<(), Stuck>) {
        if sent.is_err() {
            self.tell_call(call::Input::MediaLost);
        }
    }
}

/// The figures of a call's media, as they go into its record.
pub(super) fn figures(report: &session::Report) -> Value {
    json!({
        "packets_received": report.received, "packets_sent": report.sent, "packets_foreign": report.foreign,
        "packets_unknown": report.unknown, "packets_lost": report.counts.lost, "packets_late": report.counts.late,
        "packets_duplicate": report.counts.duplicate, "packets_reordered": report.counts.reordered,
        "longest_gap": report.counts.longest_gap, "concealed_ms": report.concealed_ms, "echo_muted": report.echo_muted,
        "loss_percent": report.loss_percent, "remote_loss_percent": report.remote_loss_percent,
        "jitter_ms": report.jitter_ms, "round_trip_ms": report.round_trip.map(|trip| trip.as_secs_f64() * 1000.0),
        "mos": report.mean_opinion_score,
    })
}

/// What a gateway brings next, if there is one.
pub(super) async fn from_line(line: &mut Option<Line>) -> Option<Arrived> {
    match line {
        Some(line) => line.next().await,
        None => std::future::pending().await,
    }
}

/// A datagram: its length, and where it came from; never one where there is no socket.
pub(super) fn receive(
    socket: Option<&UdpSocket>,
    buffer: &mut [u8],
    context: &mut Context<'_>,
) -> Poll<io::Result<(usize, SocketAddr)>> {
    let Some(socket) = socket else { return Poll::Pending };
    let mut buffer = ReadBuf::new(buffer);
    let from = ready!(socket.poll_recv_from(context, &mut buffer));
    Poll::Ready(from.map(|from| (buffer.filled().len(), from)))
}
