//! Which final states were reported and the hub has yet to acknowledge, and what is kept of their
//! results.
//!
//! An id is kept for days, and its result may have 64 KiB: thousands of them are more than a board
//! has. So a large result is kept until the hub has acknowledged the event that carries it, and a
//! repeated id is then answered with the state and the word that the result is gone. Must never let
//! go of the state itself, for by that a command is known not to run again.

use bytes::Bytes;

use super::{Commands, Kept, Out, Receipts};
use crate::{
    command::{CommandId, Failure, State, Status},
    gateway::lane::Place,
    protocol::Epoch,
};

/// Up to this size a result, or an error, is kept as long as its id.
const SMALL_BYTES: usize = 256;

/// Large results that are kept, in all. At the bound a new command is answered `busy`; what is
/// under way then may still end with one each.
const MAX_RESULTS_BYTES: usize = 1 << 20;

/// Reports that the hub has yet to acknowledge. At the bound what it asks again, and what could not
/// be kept anyway, is not answered in this session.
const MAX_REPORTED: usize = 2048;

/// The last report of an id.
#[derive(Debug)]
pub(super) struct Report {
    place: Place,
    n: u32,
    state: State,
}

impl Commands {
    /// A status went to `place` in the stream `events`.
    pub(in crate::gateway) fn handle_reported(
        &mut self,
        id: CommandId,
        n: u32,
        state: State,
        place: Place,
    ) {
        if state.is_final() {
            self.reported.insert(id, Report { place, n, state });
        }
    }

    /// The hub acknowledged events. A report that the spool lost, so that a skip went in its place,
    /// is made again: the hub, which asks only when a session begins, would wait for it in vain.
    /// Once: it may have been skipped because the hub can't bear it.
    pub(in crate::gateway) fn handle_acked(
        &mut self,
        is_acked: impl Fn(Place) -> bool,
        is_skipped: impl Fn(Place) -> bool,
    ) {
        let (known, shed, out) = (&mut self.known, &mut self.shed, &mut self.out);
        self.reported.retain(|id, report| {
            if !is_acked(report.place) {
                return true;
            }
            let Some(Kept { last: Some(last), was_skipped, .. }) = known.get_mut(id) else {
                return false;
            };
            if (last.n, last.state) != (report.n, report.state) {
                return false;
            }
            if is_skipped(report.place) && !*was_skipped {
                *was_skipped = true;
                out.push_back(Out::Report(last.clone(), Receipts::None));
            } else if shed_bulk(last) {
                shed.push(id.clone());
            }
            false
        });
    }

    /// The records of the stream from `from` on are numbered anew, from 1, in `to`.
    pub(in crate::gateway) fn handle_renumbered(&mut self, from: Place, to: Epoch) {
        self.reported.values_mut().for_each(|report| report.place.renumber(from, to));
    }

    /// How many reports the hub has yet to acknowledge, and what large results take.
    #[cfg(test)]
    pub(in crate::gateway) fn unacknowledged(&self) -> (usize, usize) {
        (self.reported.len(), self.known.values().map(Kept::bulk_bytes).sum())
    }

    /// Whether to answer what the hub asks again: not while an answer is on its way that is news to
    /// a hub that holds `held`.
    pub(super) fn may_answer(&self, id: &CommandId, held: u32) -> bool {
        let is_coming = self.reported.get(id).is_some_and(|report| report.n > held);
        !is_coming && self.reported.len() < MAX_REPORTED
    }

    pub(super) fn answer(&mut self, status: Status) {
        self.out.push_back(Out::Report(status, Receipts::None));
    }

    /// Whether another command may end with a large result. Where not, those go that nothing is
    /// under way of: they are of an earlier start, and what of them the hub lacked it has asked
    /// for when the session began.
    pub(super) fn has_room_for_result(&mut self) -> bool {
        let mut bytes: usize = self.known.values().map(Kept::bulk_bytes).sum();
        for (id, kept) in &mut self.known {
            if bytes < MAX_RESULTS_BYTES {
                return true;
            }
            let is_untold =
                (self.unreported.iter().chain(&self.reporting)).any(|(status, _)| status.id == *id);
            if is_untold || self.reported.contains_key(id) {
                continue;
            }
            let before = kept.bulk_bytes();
            if kept.last.as_mut().is_some_and(shed_bulk) {
                self.shed.push(id.clone());
                bytes -= before;
            }
        }
        bytes < MAX_RESULTS_BYTES
    }
}

impl Kept {
    /// What a large result takes; 0 for none.
    fn bulk_bytes(&self) -> usize {
        self.last.as_ref().map_or(0, bulk_bytes)
    }
}

/// A journal's entry without its large result; `None` where it has none. For a journal that an
/// earlier version let grow beyond what can be held.
pub fn without_result(entry: &[u8]) -> Option<Bytes> {
    let mut kept: Kept = serde_json::from_slice(entry).ok()?;
    let is_shed = kept.last.as_mut().is_some_and(shed_bulk);
    is_shed.then(|| serde_json::to_vec(&kept).expect("a status has string keys only").into())
}

fn bulk_bytes(status: &Status) -> usize {
    let result = status.result.as_ref().map_or(0, |result| result.get().len());
    let error = status.error.as_ref().map_or(0, |error| error.code.len() + error.message.len());
    let bytes = result + error;
    if bytes > SMALL_BYTES { bytes } else { 0 }
}

/// Lets a large result go and says so in its place. Says whether there was one.
fn shed_bulk(status: &mut Status) -> bool {
    let bytes = bulk_bytes(status);
    if bytes == 0 {
        return false;
    }
    status.result = None;
    let code = status.error.take().map(|error| error.code).filter(|code| code.len() <= 64);
    let why = format!("its {bytes} bytes went out in an earlier report and are not kept");
    status.error = Some(Failure::new(code.unwrap_or_else(|| "reported".into()), why));
    true
}
