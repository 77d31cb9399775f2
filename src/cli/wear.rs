//! What the medium has to bear, for `status`: bytes written since start and in the last day, and
//! per byte of records that went to disk.
//!
//! The disk thread notes, the event loop asks. Both hand in the time.

use std::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use serde_json::{Value, json};

/// The hour that runs and those before it.
const HOURS: usize = 24;
const HOUR_S: u64 = 3600;

/// The account.
#[derive(Debug)]
pub(super) struct Wear {
    since: Instant,
    account: Mutex<Account>,
}

/// What the disk thread knows, since start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    /// Bytes on disk.
    pub(super) spool_bytes: u64,
    /// Bytes written: records and what goes with them, positions, the journal.
    pub(super) written_bytes: u64,
    /// Records appended, in bytes.
    pub(super) appended_bytes: u64,
    /// How often the medium was asked to keep something.
    pub(super) syncs: u64,
}

#[derive(Debug, Default)]
struct Account {
    load: Load,
    /// Bytes written in each hour, by the hour since start modulo [`HOURS`].
    by_hour: [u64; HOURS],
    hour: u64,
}

impl Wear {
    pub(super) fn new(since: Instant) -> Self {
        Self { since, account: Mutex::default() }
    }

    /// How it stands now.
    pub(super) fn note(&self, now: Instant, load: Load) {
        let mut account = self.turned(now);
        let place = (account.hour % HOURS as u64) as usize;
        account.by_hour[place] += load.written_bytes.saturating_sub(account.load.written_bytes);
        account.load = load;
    }

    /// The members of `spool` in `status`.
    pub(super) fn to_json(&self, now: Instant) -> Value {
        let account = self.turned(now);
        let Load { spool_bytes, written_bytes, appended_bytes, syncs } = account.load;
        let per_byte = written_bytes as f64 / appended_bytes as f64;
        let per_byte = (appended_bytes > 0).then(|| (per_byte * 1000.0).round() / 1000.0);
        json!({
            "bytes": spool_bytes,
            "written_bytes": written_bytes,
            "written_last_day_bytes": account.by_hour.iter().sum::<u64>(),
            "appended_bytes": appended_bytes,
            "written_per_appended_byte": per_byte,
            "syncs": syncs,
        })
    }

    /// The account, with the hours that have passed since the last look turned over.
    fn turned(&self, now: Instant) -> MutexGuard<'_, Account> {
        let hour = now.saturating_duration_since(self.since).as_secs() / HOUR_S;
        let mut account = self.account.lock().expect("no holder panics");
        let first = (account.hour + 1).max((hour + 1).saturating_sub(HOURS as u64));
        for passed in first..=hour {
            account.by_hour[(passed % HOURS as u64) as usize] = 0;
        }
        account.hour = account.hour.max(hour);
        account
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_day_forgets_its_hours_one_by_one() {
        let start = Instant::now();
        let wear = Wear::new(start);
        let at = |hours: f64| start + Duration::from_secs_f64(hours * 3600.0);
        let written = |written_bytes| Load { written_bytes, ..Load::default() };
        let day = |hours| wear.to_json(at(hours))["written_last_day_bytes"].as_u64().unwrap();
        wear.note(at(0.1), written(100));
        wear.note(at(0.9), written(150));
        wear.note(at(5.5), written(1150));
        assert_eq!(day(6.0), 1150);
        assert_eq!(day(23.9), 1150);
        assert_eq!(day(24.0), 1000, "the first hour is a day ago");
        assert_eq!(day(29.1), 0);
        wear.note(at(200.0), written(1151));
        assert_eq!(day(200.1), 1);
        assert_eq!(wear.to_json(at(200.1))["written_bytes"], 1151);
    }

    #[test]
    fn a_byte_of_records_has_its_price() {
        let start = Instant::now();
        let wear = Wear::new(start);
        assert!(wear.to_json(start)["written_per_appended_byte"].is_null(), "nothing to divide by");
        let load = Load { written_bytes: 1064, appended_bytes: 1000, ..Load::default() };
        wear.note(start, load);
        assert_eq!(wear.to_json(start)["written_per_appended_byte"], 1.064);
    }
}
