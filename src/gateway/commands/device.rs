//! A command at the device: delivered once, answered, or not.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Commands, Live, MAX_RESULT_BYTES, MAX_TTL, News, Out, RETRY, Reply, Step};
use crate::{
    command::{Command, CommandId, Failure, State},
    gateway::Now,
    planted::{Bug, planted},
    record::{self, Receipt},
};

impl Commands {
    pub(super) fn send(&mut self, now: Now, command: Command) {
        let id = command.id.clone();
        let ttl = if planted(Bug::ExpiredCommandRuns) { MAX_TTL } else { command.ttl };
        let expires = now.instant + ttl.min(MAX_TTL);
        if expires <= now.instant {
            self.finish(now, &id, News::of(State::Expired));
            return;
        }
        self.live.insert(id.clone(), Live { command, step: Step::Journalling { expires } });
        self.write_sending(&id, !planted(Bug::CommandNotJournalled));
        self.unjournalled.push(id);
    }

    /// Changes for the journal, to be put on the medium and answered with
    /// [`Commands::handle_journalled`] before the next are taken.
    pub(in crate::gateway) fn take_journal(&mut self) -> Vec<(String, Bytes)> {
        if self.has_journal_changes() {
            std::mem::take(&mut self.shed).iter().for_each(|id| self.write(id));
        }
        self.journalling = std::mem::take(&mut self.unjournalled);
        self.reporting = std::mem::take(&mut self.unreported);
        std::mem::take(&mut self.journal)
    }

    pub(in crate::gateway) fn has_journal_changes(&self) -> bool {
        !self.journal.is_empty()
    }

    /// The journal's changes are on the medium, or it could not be told.
    pub(in crate::gateway) fn handle_journalled(&mut self, now: Now, kept: bool) {
        for (status, receipts) in std::mem::take(&mut self.reporting) {
            if kept {
                self.out.push_back(Out::Report(status, receipts));
            } else {
                self.write(&status.id);
                self.unreported.push((status, receipts));
            }
        }
        for id in std::mem::take(&mut self.journalling) {
            let Some(Live { command, step }) = self.live.get_mut(&id) else { continue };
            let Step::Journalling { expires } = *step else { continue };
            if kept {
                *step = Step::Sending { until: now.instant + command.timeout.max(RETRY), expires };
                self.hand_over(now, id);
            } else {
                // It was not sent, so that it may be tried as long as its time lasts.
                *step = Step::Waiting { expires, retry: now.instant + RETRY };
                self.write_sending(&id, false);
            }
        }
    }

    /// Hands a command to the device's source, and reports it accepted if that is news.
    fn hand_over(&mut self, now: Now, id: CommandId) {
        let command = &self.live[&id].command;
        let topic = self.rules.topic.fill("{device}, {command} and {id}", |name| match name {
            "device" => Some(&command.device),
            "command" => Some(&command.name),
            "id" => Some(id.as_str()),
            _ => None,
        });
        let (device, payload) = (command.device.clone(), payload_of(command));
        if self.known.get(&id).is_some_and(|kept| kept.last.is_none()) {
            self.advance(&id, News::of(State::Accepted));
        }
        match topic {
            Ok(topic) => {
                let token = self.next_token;
                self.next_token += 1;
                self.deliveries.insert(token, id);
                self.out.push_back(Out::Deliver { token, device, topic, payload });
            }
            Err(error) => {
                let why = error.to_string();
                self.finish(now, &id, News::because(State::Failed, "bad_params", why));
            }
        }
    }

    /// The device's transport took it.
    pub(in crate::gateway) fn handle_delivered(&mut self, now: Now, token: u64) {
        let Some(id) = self.deliveries.remove(&token) else { return };
        let Some(live) = self.live.get_mut(&id) else { return };
        if let Step::Sending { .. } = live.step {
            live.step = Step::Delivered { until: now.instant + live.command.timeout };
            self.advance(&id, News::of(State::Delivered));
        }
    }

    /// Nothing was sent: it waits for the device.
    pub(in crate::gateway) fn handle_undelivered(&mut self, now: Now, token: u64) {
        let Some(id) = self.deliveries.remove(&token) else { return };
        let Some(live) = self.live.get_mut(&id) else { return };
        let Step::Sending { expires, .. } = live.step else { return };
        live.step = Step::Waiting { expires, retry: now.instant + RETRY };
        self.write_sending(&id, false);
    }

    /// The connection ended before the device's transport answered.
    pub(in crate::gateway) fn handle_interrupted(&mut self, now: Now, token: u64) {
        let Some(id) = self.deliveries.remove(&token) else { return };
        let Some(live) = self.live.get_mut(&id) else { return };
        let Step::Sending { expires, .. } = live.step else { return };
        if live.command.idempotent {
            live.step = Step::Waiting { expires, retry: now.instant + RETRY };
            if let Some(kept) = self.known.get_mut(&id) {
                kept.may_have_run = true;
            }
        } else {
            let why = "the device's connection ended before it confirmed the command";
            self.finish(now, &id, News::because(State::Unknown, "interrupted", why));
        }
    }

    /// A device is here: what waits for it is tried now.
    pub(in crate::gateway) fn handle_device_seen(&mut self, now: Now, device: &str) {
        for Live { command, step } in self.live.values_mut() {
            if let Step::Waiting { retry, .. } = step
                && command.device == device
            {
                *retry = now.instant;
            }
        }
    }

    /// Whether a topic is that of replies; if so the reply is taken, and `receipt` waits for its
    /// report.
    pub(in crate::gateway) fn handle_reply(
        &mut self,
        now: Now,
        topic: &str,
        payload: &[u8],
        receipt: Option<Receipt>,
    ) -> Result<Reply, Option<Receipt>> {
        let Some(captures) = self.rules.reply.matches(topic) else { return Err(receipt) };
        let id = captures.get("id").and_then(|id| CommandId::try_from(id.to_owned()).ok());
        let waiting = id.and_then(|id| {
            let live = self.live.get(&id)?;
            let fits = captures.get("device").is_none_or(|device| device == live.command.device);
            (fits && matches!(live.step, Step::Sending { .. } | Step::Delivered { .. }))
                .then_some(id)
        });
        let Some(id) = waiting else { return Ok(Reply::Unexpected(receipt)) };
        self.finish(now, &id, News { receipts: receipt.into(), ..outcome(payload) });
        Ok(Reply::Taken)
    }
}

/// The MQTT payload of a command: `{"id","name","params"}`.
fn payload_of(command: &Command) -> Bytes {
    #[derive(Serialize)]
    struct Payload<'a> {
        id: &'a CommandId,
        name: &'a str,
        params: &'a RawValue,
    }
    let payload = Payload { id: &command.id, name: &command.name, params: &command.params };
    serde_json::to_vec(&payload).expect("a command has string keys only").into()
}

/// What a reply means: `{"ok":true,"result":…}`, `{"ok":false,"error":{"code","message"}}`, or any
/// object without `ok`.
fn outcome(payload: &[u8]) -> News {
    #[derive(Deserialize)]
    struct Answer {
        ok: Option<bool>,
        result: Option<Box<RawValue>>,
        error: Option<Failure>,
    }
    if payload.len() > MAX_RESULT_BYTES {
        let why = format!(
            "the reply has {} bytes; at most {MAX_RESULT_BYTES} are reported",
            payload.len()
        );
        return News::because(State::Failed, "too_large", why);
    }
    let whole = || std::str::from_utf8(payload).ok().map(str::to_owned).map(RawValue::from_string);
    match (record::is_plain_json(payload), serde_json::from_slice::<Answer>(payload)) {
        (true, Ok(Answer { ok: Some(true), result, .. })) => {
            News { result, ..News::of(State::Succeeded) }
        }
        (true, Ok(Answer { ok: Some(false), error: Some(error), .. })) => {
            News { error: Some(error), ..News::of(State::Failed) }
        }
        (true, Ok(Answer { ok: Some(false), error: None, .. })) => {
            News::because(State::Failed, "failed", "the device gave no reason")
        }
        (true, _) if payload.trim_ascii_start().starts_with(b"{") => {
            News { result: whole().and_then(Result::ok), ..News::of(State::Succeeded) }
        }
        _ => News::because(State::Failed, "bad_reply", "the device's reply is not a JSON object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_mean_what_the_contract_says() {
        let state = |payload: &str| outcome(payload.as_bytes()).state;
        assert_eq!(state(r#"{"ok":true,"result":1}"#), State::Succeeded);
        assert_eq!(state(r#"{"ok":false,"error":{"code":"jammed","message":"x"}}"#), State::Failed);
        assert_eq!(state(r#"{"position":3}"#), State::Succeeded);
        assert_eq!(state("done"), State::Failed);
        assert_eq!(state("[1]"), State::Failed);
        let News { result, .. } = outcome(br#"{"position":3}"#);
        assert_eq!(result.unwrap().get(), r#"{"position":3}"#);
    }
}
