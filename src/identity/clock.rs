//! The clock of a board that may have none (PROTOCOL.md, section 9): what records are stamped with
//! and certificates are checked by.
//!
//! The system clock is trusted when a time service keeps it, or when it agrees with what a hub said
//! in this boot, carried on by the time since the boot, which no step of the system clock touches.
//! Where they disagree the hub is believed. Before either has spoken the time is an estimate, and
//! says so.
//!
//! # The file
//!
//! Only what a hub said that had proved who it is, is kept, in a file of one line: `1`, Unix
//! milliseconds, milliseconds since boot at that moment, how many milliseconds that may be off, the
//! kernel's boot id (`-` if unknown), and the CRC32C of all that in hexadecimal. A damaged file
//! counts as none. In the same boot it gives the time at once; in a later one it is the earliest
//! that it can be.

mod keeper;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use ring::digest::{SHA256, digest};
use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};
use serde_json::{Value, json};

pub(super) use self::keeper::Basis;
use self::keeper::{Anchor, DAY_MS, HOUR_MS, Keeper, Reading, Verdict, chain_time_ms};
pub use self::keeper::{RELEASED_MS, Word};
use super::{calendar::Moment, name};
use crate::record::{Boot, SinceBoot, Timestamp};

/// The file's name, in the spool's directory.
pub const CONFIRMED_TIME: &str = "confirmed-time";

/// systemd-timesyncd(8): there since the first time that it set the clock in this boot.
const TIMESYNCD: &str = "/run/systemd/timesync/synchronized";

/// How often is looked whether a time service has set the clock.
const LOOK_EVERY_MS: u64 = 10_000;

/// What time it is, as far as this board knows.
#[derive(Debug)]
pub struct Clock {
    /// The kernel's name of this boot, and its mark in records.
    boot: Option<(String, u32)>,
    /// The system clock is right whatever is known of it.
    is_system: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keeper: Keeper,
    /// What the file says, and whether it is of this boot.
    kept: Option<(u64, bool)>,
    service: Option<&'static str>,
    look_at_ms: u64,
    told: Told,
}

/// What the log has told: each once, for a clock can go to and fro.
#[derive(Debug, Default)]
struct Told {
    bases: [bool; 4],
    /// That the system clock is wrong.
    warned: bool,
}

/// The time that certificates are checked by.
#[derive(Debug, Clone, Copy)]
pub(super) struct CertificateTime {
    pub(super) unix_ms: u64,
    pub(super) basis: Basis,
    system: Moment,
}

impl Clock {
    /// The clock of this board, with what the file in `directory` knows.
    pub fn open(directory: &Path) -> Arc<Self> {
        let boot_id = name::boot_id().ok();
        let text = fs::read_to_string(directory.join(CONFIRMED_TIME)).unwrap_or_default();
        Arc::new(Self::of_boot(boot_id, &text))
    }

    /// The system clock, trusted: for programs that run where somebody sets it.
    pub fn of_system() -> Arc<Self> {
        Arc::new(Self { boot: None, is_system: true, state: Mutex::default() })
    }

    fn of_boot(boot_id: Option<String>, file: &str) -> Self {
        let (keeper, kept) = match read_line(file) {
            // Less time since boot than then: a container that counts it otherwise.
            Some((anchor, boot))
                if boot_id.as_deref() == Some(boot)
                    && anchor.uptime_ms <= in_ms(clock_gettime(ClockId::Boottime)) =>
            {
                (Keeper::of_this_boot(anchor), Some((anchor.unix_ms, true)))
            }
            Some((anchor, _)) => {
                (Keeper::of_earlier_boot(anchor.unix_ms), Some((anchor.unix_ms, false)))
            }
            None => (Keeper::default(), None),
        };
        let boot = boot_id.map(|id| {
            let mark = digest(&SHA256, format!("fieldgate boot {id}").as_bytes());
            let mark = mark.as_ref()[..4].try_into().expect("four bytes of thirty-two");
            (id, u32::from_le_bytes(mark))
        });
        let state = State { keeper, kept, ..State::default() };
        Self { boot, is_system: false, state: Mutex::new(state) }
    }

    /// What records are stamped with, and when this boot began if a trusted clock can tell.
    pub fn now(&self) -> (Timestamp, Option<Boot>) {
        let mut state = self.state();
        let reading = self.read(&mut state);
        let verdict = state.keeper.time(reading);
        state.told.tell(reading, verdict);
        self.stamp(reading, verdict)
    }

    /// The best word on the time, Unix milliseconds. Nothing of it is logged.
    pub fn unix_ms(&self) -> u64 {
        let mut state = self.state();
        let reading = self.read(&mut state);
        state.keeper.time(reading).unix_ms
    }

    /// The moment by which a certificate that begins then is judged: where nobody knows the time,
    /// the earliest that it can be, for a wrong clock must not make a good one useless.
    pub fn moment_for(&self, begins: Moment) -> Moment {
        self.certificate_time().for_chain([begins].into_iter()).moment()
    }

    fn stamp(&self, reading: Reading, verdict: Verdict) -> (Timestamp, Option<Boot>) {
        let Verdict { unix_ms, basis } = verdict;
        let mark = self.boot.as_ref().map(|(_, mark)| *mark);
        if basis == Basis::Nobody {
            let uptime_ms = reading.uptime_ms;
            let since_boot = mark.map(|boot| SinceBoot { boot, uptime_ms });
            return (Timestamp { unix_ms, synced: false, since_boot }, None);
        }
        let began_ms = unix_ms.saturating_sub(reading.uptime_ms);
        (Timestamp::synced(unix_ms), mark.map(|boot| Boot { boot, began_ms }))
    }

    /// A hub says what the time is. `until_ms` is the end of the certificate that it proved itself
    /// by, `None` without TLS: then records are stamped by it, but no certificate is checked.
    pub fn handle_word(&self, unix_ms: u64, word: Word, until_ms: Option<u64>) {
        let mut state = self.state();
        let reading = self.read(&mut state);
        if let Err(why) = state.keeper.handle_word(reading, unix_ms, word, until_ms) {
            let time = moment(unix_ms);
            tracing::warn!(%time, "what the hub says the time is, is not believed: {why}");
        }
        let verdict = state.keeper.time(reading);
        state.told.tell(reading, verdict);
    }

    /// What the file is to hold, when it is to be written: at the first word of a boot, then once a
    /// day, at a stop if it is an hour old, and when the hub took something back.
    pub fn to_keep(&self, is_stopping: bool) -> Option<String> {
        let mut state = self.state();
        let reading = self.read(&mut state);
        let anchor = state.keeper.to_keep(reading)?;
        let patience_ms = if is_stopping { HOUR_MS } else { DAY_MS };
        let is_due = state.kept.is_none_or(|(kept_ms, of_this_boot)| {
            !of_this_boot
                || anchor.unix_ms >= kept_ms + patience_ms
                || anchor.unix_ms + anchor.slack_ms < kept_ms
        });
        if !is_due {
            return None;
        }
        state.kept = Some((anchor.unix_ms, true));
        Some(line(&anchor, self.boot.as_ref().map(|(id, _)| id.as_str())))
    }

    pub(super) fn certificate_time(&self) -> CertificateTime {
        let mut state = self.state();
        let reading = self.read(&mut state);
        let Verdict { unix_ms, basis } = state.keeper.certificate_time(reading);
        CertificateTime { unix_ms, basis, system: moment(reading.system_ms) }
    }

    /// For `fieldgate status`.
    pub fn status(&self) -> Value {
        let mut state = self.state();
        let reading = self.read(&mut state);
        let Verdict { unix_ms, basis } = state.keeper.time(reading);
        let by = match basis {
            Basis::Service(name) => Some(name),
            Basis::Agreement => Some("system clock and hub"),
            Basis::Hub => Some("hub"),
            Basis::Nobody => None,
        };
        json!({
            "unix_ms": unix_ms,
            "trusted": basis != Basis::Nobody,
            "by": by,
            "system_clock_off_ms": reading.system_ms as i64 - unix_ms as i64,
            "confirmed_ms": state.keeper.confirmed_ms(reading),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, state: &mut State) -> Reading {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let system_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let uptime_ms = in_ms(clock_gettime(ClockId::Boottime));
        if self.is_system {
            return Reading { system_ms, uptime_ms, service: Some("this machine") };
        }
        if uptime_ms >= state.look_at_ms {
            state.look_at_ms = uptime_ms + LOOK_EVERY_MS;
            state.service = time_service();
        }
        Reading { system_ms, uptime_ms, service: state.service }
    }
}

impl CertificateTime {
    /// Where nobody knows the time, a chain that begins later is checked at its beginning.
    pub(super) fn for_chain(self, begins: impl Iterator<Item = Moment>) -> Self {
        if self.basis != Basis::Nobody {
            return self;
        }
        let begins_ms = begins.filter_map(|at| u64::try_from(at.unix_seconds).ok());
        let begins_ms = begins_ms.map(|seconds| seconds.saturating_mul(1000));
        Self { unix_ms: chain_time_ms(self.unix_ms, begins_ms), ..self }
    }

    pub(super) fn moment(self) -> Moment {
        moment(self.unix_ms)
    }

    /// Which time it is, for an error.
    pub(super) fn why(self) -> String {
        let system = self.system;
        match self.basis {
            Basis::Service(name) => format!("the system clock, which is kept by {name}"),
            Basis::Agreement => "the system clock, which agrees with the hub".into(),
            Basis::Hub => format!("the hub's time: the system clock is wrong, it says {system}"),
            Basis::Nobody => format!(
                "the earliest that it can be: nobody vouches for the system clock, which says \
                 {system}"
            ),
        }
    }
}

/// What keeps the system clock right. The kernel knows whether it is synchronised, but there is no
/// safe way to ask it; these are the traces that time services leave.
fn time_service() -> Option<&'static str> {
    if Path::new(TIMESYNCD).exists() {
        return Some("systemd-timesyncd");
    }
    // chronyd, ntpd and ptp4l tell the kernel how far atomic time is ahead (37 s) once they know
    // the time themselves. Until then both clocks are the same.
    let atomic = clock_gettime_dynamic(DynamicClockId::Tai).ok()?;
    let ahead_ms = in_ms(atomic).abs_diff(in_ms(clock_gettime(ClockId::Realtime)));
    (ahead_ms >= 1000).then_some("a time service")
}

fn in_ms(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + time.tv_nsec as u64 / 1_000_000
}

fn moment(unix_ms: u64) -> Moment {
    Moment { unix_seconds: i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX) }
}

impl Told {
    /// Says in the log how the time is known.
    fn tell(&mut self, reading: Reading, verdict: Verdict) {
        let Verdict { unix_ms, basis } = verdict;
        let place = match basis {
            Basis::Service(_) => 0,
            Basis::Agreement => 1,
            Basis::Hub => 2,
            Basis::Nobody => 3,
        };
        if std::mem::replace(&mut self.bases[place], true) {
            return;
        }
        let (time, system) = (moment(unix_ms), moment(reading.system_ms));
        let off_s = reading.system_ms.abs_diff(unix_ms) / 1000;
        match basis {
            Basis::Service(by) => tracing::info!(%time, by, "the system clock is kept"),
            Basis::Agreement => tracing::info!(%time, "the hub confirms the system clock"),
            Basis::Hub if self.warned => {
                tracing::info!(%time, off_s, "the hub says what the time is");
            }
            Basis::Hub => tracing::warn!(
                %time, %system, off_s,
                "the system clock is wrong; the hub's time is used instead; set the clock, or run \
                 a time service"
            ),
            Basis::Nobody if reading.system_ms != unix_ms => tracing::warn!(
                %system,
                "the system clock is wrong; until a hub says what the time is, records are \
                 marked, and get their time when it does"
            ),
            Basis::Nobody => tracing::info!(
                %system,
                "nobody vouches for the system clock; until a hub confirms it, records are marked"
            ),
        }
        self.warned |= basis != Basis::Agreement && reading.system_ms != unix_ms;
    }
}

fn line(anchor: &Anchor, boot_id: Option<&str>) -> String {
    let Anchor { unix_ms, uptime_ms, slack_ms, .. } = anchor;
    let text = format!("1 {unix_ms} {uptime_ms} {slack_ms} {}", boot_id.unwrap_or("-"));
    format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// The time in the file and the boot that it was kept in.
fn read_line(file: &str) -> Option<(Anchor, &str)> {
    let (text, sum) = file.strip_suffix('\n')?.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16) != Ok(crc32c::crc32c(text.as_bytes())) {
        return None;
    }
    let mut words = text.strip_prefix("1 ")?.split(' ');
    let mut number = || words.next()?.parse().ok();
    let (unix_ms, uptime_ms, slack_ms) = (number()?, number()?, number()?);
    let anchor = Anchor { unix_ms, uptime_ms, slack_ms, word: None, verified: true };
    Some((anchor, words.next()?))
}

#[cfg(test)]
impl Clock {
    /// A clock that nobody has said anything to, whatever keeps the clock of the machine that runs
    /// the tests.
    pub(super) fn unset() -> Self {
        let clock = Self::of_boot(None, "");
        clock.state().look_at_ms = u64::MAX;
        clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUE_MS: u64 = RELEASED_MS + 200 * DAY_MS;
    const BOOT: &str = "9e0cf64f-09ba-4279-9551-790d5a33e3a4";
    const OTHER: &str = "00000000-09ba-4279-9551-790d5a33e3a4";

    fn in_boot(id: &str, file: &str) -> Clock {
        let clock = Clock::of_boot(Some(id.into()), file);
        // Whatever keeps the clock of the machine that runs the tests.
        clock.state().look_at_ms = u64::MAX;
        clock
    }

    fn said(clock: &Clock, unix_ms: u64) {
        clock.handle_word(unix_ms, Word::Welcome, Some(unix_ms + DAY_MS));
    }

    #[test]
    fn records_of_before_get_their_time_in_the_same_boot_also_after_a_restart() {
        let clock = in_boot(BOOT, "");
        let (before, boot) = clock.now();
        assert!(!before.synced && boot.is_none(), "{before:?}");
        said(&clock, TRUE_MS);
        let (after, boot) = clock.now();
        assert!(after.synced, "{after:?}");
        let rebased = before.rebased(boot);
        assert!(rebased.synced && rebased.unix_ms.abs_diff(TRUE_MS) < 1000, "{rebased:?}");

        let file = clock.to_keep(false).unwrap();
        let (again, boot) = in_boot(BOOT, &file).now();
        assert!(again.synced && again.unix_ms.abs_diff(TRUE_MS) < 1000, "{again:?}");
        assert!(before.rebased(boot).synced);

        let later = in_boot(OTHER, &file);
        said(&later, TRUE_MS + DAY_MS);
        let (_, boot) = later.now();
        assert_eq!(before.rebased(boot), before, "nobody knows how long the board was off");
    }

    #[test]
    fn without_a_boot_id_no_boot_is_taken_for_another() {
        let clock = Clock::unset();
        assert_eq!(clock.now().0.since_boot, None);
        said(&clock, TRUE_MS);
        let file = clock.to_keep(false).unwrap();
        let again = Clock::of_boot(None, &file);
        again.state().look_at_ms = u64::MAX;
        assert!(!again.now().0.synced);
    }

    #[test]
    fn the_file_is_written_at_the_first_word_of_a_boot_and_seldom_after() {
        let clock = in_boot(BOOT, "");
        assert_eq!(clock.to_keep(true), None);
        said(&clock, TRUE_MS);
        let file = clock.to_keep(false).unwrap();
        assert_eq!((clock.to_keep(false), clock.to_keep(true)), (None, None));
        said(&clock, TRUE_MS + 2 * HOUR_MS);
        assert_eq!(clock.to_keep(false), None);
        assert!(clock.to_keep(true).is_some());
        said(&clock, TRUE_MS + 2 * DAY_MS);
        assert!(clock.to_keep(false).is_some());
        said(&clock, TRUE_MS);
        assert!(clock.to_keep(false).is_some(), "the hub took two days back");

        let restarted = in_boot(BOOT, &file);
        said(&restarted, TRUE_MS + 3000);
        assert_eq!(restarted.to_keep(false), None);
        let rebooted = in_boot(OTHER, &file);
        assert_eq!(rebooted.to_keep(true), None, "no hub has confirmed anything in this boot");
        said(&rebooted, TRUE_MS + 3000);
        assert!(rebooted.to_keep(false).is_some());
    }

    #[test]
    fn no_damage_of_the_file_makes_a_time() {
        let clock = in_boot(BOOT, "");
        said(&clock, TRUE_MS);
        let file = clock.to_keep(false).unwrap();
        assert!(read_line(&file).is_some());
        for at in 0..file.len() {
            assert!(read_line(&file[..at]).is_none(), "cut at {at}");
            let mut bytes = file.clone().into_bytes();
            bytes[at] ^= 1;
            let damaged = String::from_utf8_lossy(&bytes).into_owned();
            assert!(read_line(&damaged).is_none(), "{damaged}");
        }
    }

    #[test]
    fn the_time_of_certificates_says_what_it_is() {
        let clock = in_boot(BOOT, "");
        let time = clock.certificate_time();
        assert!(time.why().contains("earliest"), "{}", time.why());
        let begins = || [moment(TRUE_MS)].into_iter();
        assert_eq!(time.for_chain(begins()).unix_ms, TRUE_MS);
        said(&clock, TRUE_MS + DAY_MS);
        let time = clock.certificate_time().for_chain(begins());
        assert!(time.why().starts_with("the hub's time"), "{}", time.why());
        assert!(time.unix_ms >= TRUE_MS + DAY_MS);
        let system = Clock::of_system().certificate_time();
        assert_eq!(system.for_chain(begins()).basis, Basis::Service("this machine"));
    }
}
