//! What the link brings: it comes up, the hub speaks, it ends.

use std::time::Duration;

use super::{
    DiskRequest, EVENTS, Ended, Gateway, Now, Output, Transmit,
    lane::{Landed, Lane},
    live::Session,
    uplink::{NEVER_TOO_BIG, Phase, Then, Uplink},
};
use crate::{
    command::Command,
    protocol::{
        Decoded, ErrorMessage, GatewayMessage, HubLimits, HubMessage, Position, Token, Welcome,
        Window, close, from_hub,
    },
};

impl Gateway {
    /// The upgrade succeeded.
    pub fn handle_up(&mut self, now: Now, subprotocol: Option<&str>) {
        let Some(uplink) = &mut self.uplink else { return };
        let Phase::Dialing { managed, .. } = uplink.phase else { return };
        tracing::debug!(managed, subprotocol, "the link is up");
        if managed {
            uplink.greet(now);
            let hello = self.hello(now);
            self.control.push_back(Transmit::Text(hello.to_json()));
        } else {
            self.begin_plain(now);
        }
    }

    /// A text message.
    pub fn handle_text(&mut self, now: Now, text: &str) {
        self.handle_heard(now);
        let greeting = match self.uplink.as_ref().map(|uplink| &uplink.phase) {
            Some(Phase::Greeting { .. }) => true,
            Some(Phase::Live(session)) if session.managed => false,
            Some(Phase::Live(_)) => return self.handle_plain_text(now, text),
            _ => return,
        };
        match from_hub(text) {
            Ok(Decoded::Message(HubMessage::Welcome(welcome))) if greeting => {
                self.handle_welcome(now, welcome);
            }
            // A hub that stops before it said welcome is to be left alone for as long all the same.
            Ok(Decoded::Message(message @ HubMessage::Drain(_))) if greeting => {
                self.handle_message(now, message);
            }
            // Our own hello coming back: an echo, not a hub.
            Ok(Decoded::Unknown(kind)) if greeting && kind == "hello" => {
                self.give_up_greeting(now, "the server sends back what it gets");
            }
            Ok(Decoded::Message(message)) if !greeting => self.handle_message(now, message),
            Ok(Decoded::MustUnderstand(kind)) => {
                let why =
                    format!("the hub sent a message of type {kind:?} that must be understood");
                self.close(now, close::UNSUPPORTED, Then::Slow, why);
            }
            Ok(_) => self.counters.ignored_frames += 1,
            Err(error) if greeting => {
                tracing::debug!(%error, "not a welcome");
                self.counters.ignored_frames += 1;
            }
            Err(error) => {
                self.counters.ignored_frames += 1;
                let session = self.uplink.as_mut().and_then(Uplink::session_mut);
                // Once: a hub that floods us with them is not to fill our memory and log.
                if session
                    .is_none_or(|session| std::mem::replace(&mut session.has_complained, true))
                {
                    return self.settle(now);
                }
                tracing::info!(%error, "a message of the hub is malformed");
                let message = ErrorMessage::new("bad_message", error.to_string());
                let reply = GatewayMessage::Error(message).to_json();
                self.control.push_back(Transmit::Text(reply));
            }
        }
        self.settle(now);
    }

    /// A frame that carries nothing for the gateway: it shows that the peer lives.
    pub fn handle_frame(&mut self, now: Now) {
        self.handle_heard(now);
    }

    /// Part of a frame has come.
    pub fn handle_bytes(&mut self, now: Now) {
        self.uplink.iter_mut().for_each(|uplink| uplink.handle_greeting_comes(now.instant));
        self.note_heard(now);
    }

    /// A binary message, which this version has no use for.
    pub fn handle_binary(&mut self, now: Now) {
        self.handle_heard(now);
        self.counters.ignored_frames += 1;
    }

    /// A Pong.
    pub fn handle_pong(&mut self, now: Now, payload: &[u8]) {
        self.handle_heard(now);
        let Some(session) = self.uplink.as_mut().and_then(Uplink::session_mut) else { return };
        let reached = if session.managed { Vec::new() } else { session.handle_pong(payload) };
        for position in reached {
            self.handle_position(now, &position, false);
        }
        self.settle(now);
    }

    /// Bytes left the socket.
    pub fn handle_progress(&mut self, now: Now) {
        self.uplink.iter_mut().for_each(|uplink| uplink.handle_greeting_leaves(now.instant));
        if let Some(session) = self.uplink.as_mut().and_then(Uplink::session_mut) {
            session.handle_progress(now.instant);
        }
    }

    /// The link ended.
    pub fn handle_ended(&mut self, now: Now, ended: &Ended) {
        let Some(uplink) = &mut self.uplink else { return };
        let is_suspicious = match ended {
            Ended::Closed { code, .. } => !close::is_of_session(*code),
            Ended::Cut(_) => true,
            Ended::Dial(_) | Ended::Http { .. } | Ended::WrongTime | Ended::Lost(_) => false,
        };
        let was_live = uplink.session().is_some();
        let hub = uplink.hubs.current();
        if let Phase::Closing { then, .. } = uplink.phase {
            uplink.after_close(now, then);
        } else {
            let wait = uplink.handle_ended(now, ended);
            let retry_ms = wait.as_millis() as u64;
            tracing::info!(reason = %ended, retry_ms, "the link is down");
        }
        if matches!(ended, Ended::Closed { code: close::TOO_BIG, .. }) {
            self.handle_too_big(now, hub);
        } else if was_live && is_suspicious {
            let lanes = self.lanes.iter_mut();
            lanes.for_each(|lane| lane.handle_session_ended_by_peer(now.instant));
        }
        self.forget_session();
        self.settle(now);
    }

    /// A message was too big for the peer: the batches are halved, and in the end it is known which
    /// record can't be sent.
    fn handle_too_big(&mut self, now: Now, hub: usize) {
        let Some(uplink) = &mut self.uplink else { return };
        let shapes = self.lanes.iter().map(Lane::flight_shape);
        let shape = shapes
            .fold((0, 0, 0), |sum, lane| (sum.0 + lane.0, sum.1 + lane.1, u64::max(sum.2, lane.2)));
        if uplink.handle_too_big(now.instant, hub, shape) {
            self.lanes.iter_mut().for_each(Lane::handle_too_big);
        }
    }

    /// A fresh token, which [`Output::Token`] asked for.
    pub fn handle_token(&mut self, token: &str) {
        if self.uplink.as_ref().and_then(Uplink::session).is_some_and(|session| session.managed) {
            let message = GatewayMessage::Auth { token: Token(token.into()) };
            self.control.push_back(Transmit::Text(message.to_json()));
        }
    }

    /// When the session's token ends, by the hub's clock.
    fn handle_token_expires(&mut self, now: Now, expires_ms: u64) {
        let hub_ms = match self.hub_clock {
            Some((at, ms)) => ms.saturating_add((now.instant - at).as_millis() as u64),
            None if now.wall.synced => now.wall.unix_ms,
            None => return,
        };
        let left = Duration::from_millis(expires_ms.saturating_sub(hub_ms));
        if let Some(session) = self.uplink.as_mut().and_then(Uplink::session_mut) {
            session.handle_token_life(now.instant, left);
        }
    }

    /// An address or a default route came or went.
    pub fn handle_network_change(&mut self, now: Now) {
        if let Some(uplink) = &mut self.uplink {
            uplink.handle_network_change(now);
        }
        self.settle(now);
    }

    /// The configuration was read anew, and with it what proves who we are.
    pub fn handle_reload(&mut self, now: Now) {
        if let Some(uplink) = &mut self.uplink {
            uplink.handle_reload(now);
        }
        self.settle(now);
    }

    /// The hub that [`Output::Named`] spoke of, by its place in the settings: after the wait that
    /// was asked for it is the first to be tried.
    pub fn handle_named(&mut self, hub: usize) {
        self.uplink.iter_mut().for_each(|uplink| uplink.handle_named(hub));
    }

    /// Whether the first hub can be reached, which [`Output::Probe`] asked.
    pub fn handle_probed(&mut self, now: Now, reachable: bool) {
        if let Some(uplink) = &mut self.uplink {
            uplink.hubs.handle_asked(now.instant, reachable, uplink.settings.return_after);
        }
        self.settle(now);
    }

    /// A whole frame or message has come: that of a `welcome` ends the greetings, and every other
    /// is none.
    fn handle_heard(&mut self, now: Now) {
        self.uplink.iter_mut().for_each(Uplink::handle_other_greeting);
        self.note_heard(now);
    }

    fn note_heard(&mut self, now: Now) {
        let Some(uplink) = &mut self.uplink else { return };
        let interval = uplink.settings.ping_interval;
        if let Some(session) = uplink.session_mut() {
            session.handle_heard(now.instant, interval);
        }
    }

    fn handle_welcome(&mut self, now: Now, welcome: Welcome) {
        let frame_bytes = welcome.limits.frame_bytes;
        // To take it at its word would be to leave out every record for good.
        if (frame_bytes as u64) < NEVER_TOO_BIG {
            let why = format!(
                "limits.frame_bytes of the hub is {frame_bytes}, which holds no record; \
                 set it there to {NEVER_TOO_BIG} at least"
            );
            return self.close(now, close::PROTOCOL_ERROR, Then::Slow, why);
        }
        let Some(uplink) = &mut self.uplink else { return };
        if !uplink.hubs.is_proven_managed() {
            self.outputs.push_back(Output::RememberManaged { hub: uplink.hubs.current() });
        }
        let Welcome { session, hub, limits, streams, time, token_expires, .. } = welcome;
        self.outputs.extend(time.map(|unix_ms| Output::TimeHeard { unix_ms }));
        tracing::info!(hub, session, "the session with the hub is on");
        uplink.go_live(now, true, session, limits);
        self.hub_clock = time.map(|ms| (now.instant, ms));
        if let Some(expires) = token_expires {
            self.handle_token_expires(now, expires);
        }
        for lane in &mut self.lanes {
            lane.begin(now.instant, Window::default());
        }
        for position in streams {
            self.handle_position(now, &position, true);
        }
        // A fresh epoch begins behind what is on disk.
        self.disk.flush |= self.lanes.iter().any(Lane::wants_epoch);
    }

    fn begin_plain(&mut self, now: Now) {
        let Some(uplink) = &mut self.uplink else { return };
        tracing::info!("plain mode: records go as text frames, the pong barrier confirms them");
        uplink.go_live(now, false, String::new(), HubLimits::default());
        for lane in &mut self.lanes {
            lane.begin(now.instant, Window::default());
        }
        self.commands.handle_no_resend(now);
        self.settle(now);
    }

    fn handle_message(&mut self, now: Now, message: HubMessage) {
        match message {
            HubMessage::Ack(ack) => {
                for (seq, reason) in &ack.rejected {
                    self.counters.rejected += 1;
                    let stream = &ack.position.stream;
                    tracing::info!(%stream, seq, reason, "the hub rejected a record for good");
                }
                self.handle_position(now, &ack.position, false);
            }
            // Without its journal the gateway can't know what ran already. Nothing could be
            // delivered now anyway, and the session that begins with the disk brings it again.
            HubMessage::Command(_) if self.disk.is_missing && self.is_managed() => {}
            HubMessage::Command(command) => {
                let command = Command {
                    id: command.id,
                    device: command.device,
                    name: command.name,
                    params: command.params,
                    ttl: Duration::from_millis(command.ttl_ms),
                    timeout: Duration::from_millis(command.timeout_ms.max(1)),
                    idempotent: command.idempotent,
                    hub_holds: command.state.map(|state| (state.n, state.state)),
                };
                self.commands.handle_command(now, command);
            }
            HubMessage::Cancel { id } => self.commands.handle_cancel(now, &id),
            HubMessage::Error(error) => self.handle_error(now, error),
            HubMessage::Drain(mut drain) => {
                self.outputs.extend(drain.url.take().map(|url| Output::Named { url }));
                if let Some(uplink) = &mut self.uplink {
                    uplink.handle_drain(drain);
                }
            }
            HubMessage::AuthOk { token_expires: Some(expires) } => {
                self.handle_token_expires(now, expires);
            }
            HubMessage::AuthOk { token_expires: None } => {
                let session = self.uplink.as_mut().and_then(Uplink::session_mut);
                session.into_iter().for_each(Session::handle_endless_token);
            }
            HubMessage::Welcome(_) => {}
        }
    }

    fn is_managed(&self) -> bool {
        let session = self.uplink.as_ref().and_then(Uplink::session);
        session.is_some_and(|session| session.managed)
    }

    fn handle_error(&mut self, now: Now, error: ErrorMessage) {
        if let (Some(after_ms), Some(uplink)) = (error.retry_after_ms, &mut self.uplink) {
            uplink.handle_retry_after(Duration::from_millis(after_ms));
        }
        match (error.code.as_str(), error.stream, error.epoch, error.expected) {
            ("gap", Some(stream), Some(epoch), Some(expected)) => {
                tracing::info!(%stream, %epoch, expected, "the hub misses records; sending on from there");
                if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.name == stream) {
                    lane.handle_gap(now.instant, epoch, expected);
                }
            }
            (code, ..) => tracing::warn!(code, message = error.message, "the hub reports an error"),
        }
    }

    /// Echoes, greetings, broadcasts: counted and dropped. A command is obeyed if the configuration
    /// says so.
    fn handle_plain_text(&mut self, now: Now, text: &str) {
        let obeys = self.uplink.as_ref().is_some_and(|uplink| uplink.settings.plain_commands);
        match from_hub(text) {
            Ok(Decoded::Message(
                message @ (HubMessage::Command(_) | HubMessage::Cancel { .. }),
            )) if obeys => {
                self.handle_message(now, message);
            }
            _ => self.counters.ignored_frames += 1,
        }
        self.settle(now);
    }

    fn handle_position(&mut self, now: Now, position: &Position, resume: bool) {
        let lane = self.lanes.iter_mut().position(|lane| lane.name == position.stream);
        let Some(lane) = lane else { return };
        let (mut safe, mut landed) = (Vec::new(), Landed::default());
        let trim = self.lanes[lane].handle_position(position, resume, &mut safe, &mut landed);
        if let Some(session) = self.uplink.as_mut().and_then(Uplink::session_mut) {
            if landed.goes_on {
                session.handle_acked(now.instant);
                self.standstill.handle_moved(now.instant);
            }
            if let Some(sent) = landed.sent {
                session.pace.handle_acked(now.instant, sent, landed.wire_bytes);
            }
        }
        self.outputs.extend(safe.into_iter().map(Output::Safe));
        if lane == EVENTS {
            let events = &self.lanes[lane];
            self.commands.handle_acked(|place| events.is_acked(place), |place| landed.skips(place));
        }
        if let Some((epoch, acked)) = trim {
            self.outputs.push_back(Output::Disk(DiskRequest::Trim { lane, epoch, acked }));
        }
    }

    pub(super) fn give_up_greeting(&mut self, now: Now, why: &str) {
        let Some(uplink) = &mut self.uplink else { return };
        let then = uplink.handle_no_welcome(now, why);
        if then == Then::Plain {
            tracing::info!(why, "the server is no hub; going on in plain mode");
        } else {
            tracing::warn!(why, "the hub gave no welcome");
        }
        self.control.clear();
        self.control.push_back(Transmit::Close { code: close::NORMAL, reason: String::new() });
    }

    pub(super) fn close(&mut self, now: Now, code: u16, then: Then, why: String) {
        let Some(uplink) = &mut self.uplink else { return };
        tracing::info!(why, "closing the link");
        self.control.clear();
        self.control.push_back(Transmit::Close { code, reason: why.clone() });
        uplink.close(now, then, why);
    }

    pub(super) fn forget_session(&mut self) {
        self.control.clear();
        for lane in &mut self.lanes {
            lane.rewind();
        }
    }
}
