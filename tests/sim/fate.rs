//! What became of each command: it runs at most once, ends in one final state, and the hub learns
//! which (promise 4).

use std::collections::BTreeMap;

use fieldgate::command::{State, Status};

use crate::{
    coverage::{Coverage, Seen},
    world::{MS, Time},
};

/// A clock may run so much apart from another over a command's life.
const SLACK: Time = 300 * MS;

#[derive(Debug, Default)]
pub(crate) struct Fates(BTreeMap<String, Fate>);

#[derive(Debug, Default)]
struct Fate {
    is_idempotent: bool,
    runs: u32,
    /// As the gateway reported, and as the hub holds it.
    reported: Option<State>,
    at_hub: Option<State>,
    /// Until when the last frame of it lets it be delivered.
    deliver_by: Time,
}

impl Fates {
    pub(crate) fn created(&mut self, id: &str, is_idempotent: bool) {
        self.0.insert(id.into(), Fate { is_idempotent, ..Fate::default() });
    }

    /// The gateway got a frame with the command.
    pub(crate) fn asked(&mut self, now: Time, id: &str, ttl_ms: u64) {
        let fate = self.fate(id);
        fate.deliver_by = fate.deliver_by.max(now + ttl_ms * MS + SLACK * u64::from(ttl_ms > 0));
    }

    /// The gateway hands the command on to its device.
    pub(crate) fn handed_over(&mut self, now: Time, id: &str) {
        let fate = self.fate(id);
        assert!(
            now <= fate.deliver_by,
            "promise 4: {id} goes to its device after its time to live was over"
        );
    }

    /// The device runs it.
    pub(crate) fn ran(&mut self, id: &str, coverage: &mut Coverage) {
        coverage.note(Seen::CommandRan);
        let fate = self.fate(id);
        fate.runs += 1;
        assert!(fate.runs == 1 || fate.is_idempotent, "promise 4: {id} runs again");
        fate.check(id);
    }

    /// A status of the gateway is durable at the hub.
    pub(crate) fn reported(&mut self, status: &Status, coverage: &mut Coverage) {
        if !status.state.is_final() {
            return;
        }
        let fate = self.fate(status.id.as_str());
        let old = fate.reported.replace(status.state);
        let id = &status.id;
        assert!(
            old.is_none_or(|old| old == status.state),
            "promise 4: {id} ended {old:?} and {}",
            status.state
        );
        fate.check(id.as_str());
        if old.is_none() {
            match status.state {
                State::Succeeded => coverage.note(Seen::CommandSucceeded),
                State::Failed => coverage.note(Seen::CommandFailed),
                State::Expired => coverage.note(Seen::CommandExpired),
                State::Cancelled => coverage.note(Seen::CommandCancelled),
                State::TimedOut => coverage.note(Seen::CommandTimedOut),
                State::Unknown => coverage.note(Seen::CommandUnknown),
                _ => {}
            }
        }
    }

    /// The hub holds this as the end.
    pub(crate) fn ended(&mut self, id: &str, state: State) {
        let fate = self.fate(id);
        assert!(fate.at_hub.is_none(), "promise 4: {id} ends twice at the hub");
        fate.at_hub = Some(state);
        let unsent = fate.reported.is_none().then_some(state);
        fate.reported = fate.reported.or(unsent);
        fate.check(id);
    }

    /// Every command has ended.
    pub(crate) fn check_end(&self) {
        for (id, fate) in &self.0 {
            assert!(fate.at_hub.is_some(), "promise 4: the hub never learns how {id} ended");
        }
    }

    fn fate(&mut self, id: &str) -> &mut Fate {
        self.0.get_mut(id).unwrap_or_else(|| panic!("{id} is no command of ours"))
    }
}

impl Fate {
    fn check(&self, id: &str) {
        let never_ran = [State::Expired, State::Cancelled, State::Rejected];
        let did_run = [State::Succeeded, State::Failed];
        let Some(state) = self.reported else { return };
        assert!(
            self.runs == 0 || !never_ran.contains(&state),
            "promise 4: {id} ran, and ended {state}"
        );
        assert!(
            self.runs > 0 || !did_run.contains(&state),
            "promise 4: {id} never ran, and ended {state}"
        );
    }
}
