//! What time it is, from what the clocks say and what a hub said (PROTOCOL.md, section 9). Pure.

/// No clock that was ever right is before this version was: 2026-11-22T00:00:00Z, in Unix
/// milliseconds. A constant, so that the same sources always give the same bytes; it is raised with
/// each release.
pub const RELEASED_MS: u64 = 1_795_305_600_000;

/// Nor twenty years after it: no version is in use for so long. What says so is not believed, so
/// that no mistake of a hub's keeps a board from its hub for good.
const LATEST_MS: u64 = RELEASED_MS + 20 * 365 * DAY_MS;

/// A `welcome` that comes later than 5 s after `hello` is none, so what it says is at most so old.
pub(super) const WELCOME_SLACK_MS: u64 = 5_000;

/// An answer to the upgrade comes within `connect_timeout`, 10 s, and its date is in whole seconds.
pub(super) const DATE_SLACK_MS: u64 = 11_000;

/// How far a board's crystal is off, at most: 100 parts in a million.
const DRIFT_PARTS: u64 = 10_000;

pub(super) const HOUR_MS: u64 = 3_600_000;
pub(super) const DAY_MS: u64 = 24 * HOUR_MS;

/// What the clocks say at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// The system clock, Unix milliseconds.
    pub(super) system_ms: u64,
    /// Since the board was started.
    pub(super) uptime_ms: u64,
    /// What keeps the system clock right, if something does.
    pub(super) service: Option<&'static str>,
}

/// Where a hub said what the time is, the less precise first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// In the `Date` of its answer to the upgrade.
    Date,
    /// In its `welcome`.
    Welcome,
}

/// A hub's time, and the same moment since the board was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) unix_ms: u64,
    pub(super) uptime_ms: u64,
    /// How old the hub's word may have been when it came.
    pub(super) slack_ms: u64,
    /// `None`: by an earlier run of the gateway, in this boot.
    pub(super) word: Option<Word>,
    /// The hub had proved by its certificate who it is.
    pub(super) verified: bool,
}

/// Whose word a time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::identity) enum Basis {
    /// The system clock's, which a time service keeps.
    Service(&'static str),
    /// The system clock's, which agrees with the hub.
    Agreement,
    /// The hub's, carried on by the time since boot; the system clock is wrong.
    Hub,
    /// Nobody's: an estimate.
    Nobody,
}

/// A time, and whose word it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) unix_ms: u64,
    pub(super) basis: Basis,
}

/// Why a hub's time is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Disbelief {
    #[error("it is before this version of the program was made")]
    TooEarly,
    #[error("it is more than twenty years after this version of the program was made")]
    TooLate,
    #[error("by it the certificate that it was said under has expired")]
    Expired,
}

/// What is known of the time in this boot.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    anchor: Option<Anchor>,
    /// A hub's time in an earlier boot: it is later than that now.
    earlier_ms: Option<u64>,
}

impl Anchor {
    /// What the hub would say now.
    fn carried(&self, uptime_ms: u64) -> u64 {
        self.unix_ms + uptime_ms.saturating_sub(self.uptime_ms)
    }

    /// How far that may be off.
    fn slack_at(&self, uptime_ms: u64) -> u64 {
        self.slack_ms + uptime_ms.saturating_sub(self.uptime_ms) / DRIFT_PARTS
    }
}

impl Keeper {
    /// What an earlier run of this boot knew.
    pub(super) fn of_this_boot(anchor: Anchor) -> Self {
        let sensible = (RELEASED_MS..=LATEST_MS).contains(&anchor.unix_ms);
        Self { anchor: Some(anchor).filter(|_| sensible), earlier_ms: None }
    }

    /// What is left of an earlier boot. A time that makes no sense counts as none.
    pub(super) fn of_earlier_boot(confirmed_ms: u64) -> Self {
        let earlier_ms = Some(confirmed_ms).filter(|ms| (RELEASED_MS..=LATEST_MS).contains(ms));
        Self { anchor: None, earlier_ms }
    }

    /// The hub says what the time is; `until_ms` is the end of the certificate that it proved
    /// itself by, `None` without one.
    pub(super) fn handle_word(
        &mut self,
        reading: Reading,
        unix_ms: u64,
        word: Word,
        until_ms: Option<u64>,
    ) -> Result<(), Disbelief> {
        if unix_ms < RELEASED_MS {
            return Err(Disbelief::TooEarly);
        }
        if unix_ms > LATEST_MS {
            return Err(Disbelief::TooLate);
        }
        // Else a hub that is ahead by mistake could not be reached any more to be put right by.
        if until_ms.is_some_and(|until_ms| unix_ms > until_ms) {
            return Err(Disbelief::Expired);
        }
        let slack_ms = match word {
            Word::Date => DATE_SLACK_MS,
            Word::Welcome => WELCOME_SLACK_MS,
        };
        let anchor = Anchor {
            unix_ms,
            uptime_ms: reading.uptime_ms,
            slack_ms,
            word: Some(word),
            verified: until_ms.is_some(),
        };
        let worth = |anchor: &Anchor| (anchor.verified, anchor.word);
        if self.anchor.is_none_or(|known| worth(&anchor) >= worth(&known)) {
            self.anchor = Some(anchor);
        }
        Ok(())
    }

    /// The time that records are stamped with.
    pub(super) fn time(&self, reading: Reading) -> Verdict {
        self.known(reading, self.anchor).unwrap_or_else(|| {
            let unix_ms = match reading.system_ms {
                // It may be right.
                ms if (self.floor_ms(reading)..=LATEST_MS).contains(&ms) => ms,
                // It is not; what was heard first is to look older than what was heard last.
                _ => self.earlier_ms.unwrap_or(RELEASED_MS) + reading.uptime_ms,
            };
            Verdict { unix_ms, basis: Basis::Nobody }
        })
    }

    /// The time that certificates are checked by: with the basis `Nobody` it is the earliest that
    /// it can be.
    pub(super) fn certificate_time(&self, reading: Reading) -> Verdict {
        let verified = self.anchor.filter(|anchor| anchor.verified);
        let earliest = Verdict { unix_ms: self.floor_ms(reading), basis: Basis::Nobody };
        self.known(reading, verified).unwrap_or(earliest)
    }

    /// The latest time that a verified hub confirmed, carried on.
    pub(super) fn confirmed_ms(&self, reading: Reading) -> Option<u64> {
        let anchor = self.anchor.filter(|anchor| anchor.verified);
        anchor.map(|anchor| anchor.carried(reading.uptime_ms)).or(self.earlier_ms)
    }

    /// What the next run of this boot is to know.
    pub(super) fn to_keep(&self, reading: Reading) -> Option<Anchor> {
        let anchor = self.anchor.filter(|anchor| anchor.verified)?;
        Some(Anchor {
            unix_ms: anchor.carried(reading.uptime_ms),
            uptime_ms: reading.uptime_ms,
            slack_ms: anchor.slack_at(reading.uptime_ms),
            ..anchor
        })
    }

    fn known(&self, reading: Reading, anchor: Option<Anchor>) -> Option<Verdict> {
        let Reading { system_ms, uptime_ms, service } = reading;
        let system = |basis| Verdict { unix_ms: system_ms, basis };
        if let Some(service) = service
            && (RELEASED_MS..=LATEST_MS).contains(&system_ms)
        {
            return Some(system(Basis::Service(service)));
        }
        let anchor = anchor?;
        let carried = anchor.carried(uptime_ms);
        if system_ms.abs_diff(carried) <= anchor.slack_at(uptime_ms) {
            return Some(system(Basis::Agreement));
        }
        Some(Verdict { unix_ms: carried, basis: Basis::Hub })
    }

    fn floor_ms(&self, reading: Reading) -> u64 {
        // That was in an earlier boot, so all of this one has passed since.
        let earlier = self.earlier_ms.map_or(0, |ms| ms + reading.uptime_ms);
        earlier.max(RELEASED_MS)
    }
}

/// The time that a chain is checked by where nobody knows the time: the chain's own beginning if
/// that is later than `earliest_ms`, as far as it makes sense.
pub(super) fn chain_time_ms(earliest_ms: u64, begins_ms: impl Iterator<Item = u64>) -> u64 {
    begins_ms.filter(|ms| *ms <= LATEST_MS).fold(earliest_ms, u64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUE_MS: u64 = RELEASED_MS + 200 * DAY_MS;
    const YEAR_MS: u64 = 365 * DAY_MS;
    const UNTIL: Option<u64> = Some(TRUE_MS + YEAR_MS);

    fn at(system_ms: u64, uptime_ms: u64) -> Reading {
        Reading { system_ms, uptime_ms, service: None }
    }

    fn told(system_ms: u64) -> Keeper {
        let mut keeper = Keeper::default();
        keeper.handle_word(at(system_ms, 1000), TRUE_MS, Word::Welcome, UNTIL).unwrap();
        keeper
    }

    #[test]
    fn a_clock_that_nobody_vouches_for_is_an_estimate_and_certificates_get_the_earliest() {
        let keeper = Keeper::default();
        for (system_ms, estimate) in [
            (0, RELEASED_MS + 7),
            (TRUE_MS, TRUE_MS),
            (TRUE_MS + 14 * YEAR_MS, TRUE_MS + 14 * YEAR_MS),
            (LATEST_MS + 1, RELEASED_MS + 7),
        ] {
            let reading = at(system_ms, 7);
            let expected = Verdict { unix_ms: estimate, basis: Basis::Nobody };
            assert_eq!(keeper.time(reading), expected);
            let earliest = Verdict { unix_ms: RELEASED_MS, basis: Basis::Nobody };
            assert_eq!(keeper.certificate_time(reading), earliest);
        }
    }

    #[test]
    fn a_time_service_is_believed_but_for_times_that_make_no_sense() {
        let kept = |system_ms| Reading { service: Some("ntpd"), ..at(system_ms, 7) };
        let keeper = told(TRUE_MS);
        let right = Verdict { unix_ms: TRUE_MS + DAY_MS, basis: Basis::Service("ntpd") };
        assert_eq!(keeper.time(kept(right.unix_ms)), right);
        assert_eq!(keeper.certificate_time(kept(right.unix_ms)), right);
        assert_eq!(keeper.time(kept(0)).basis, Basis::Hub);
        assert_eq!(Keeper::default().time(kept(0)).basis, Basis::Nobody);
    }

    #[test]
    fn the_hubs_time_goes_on_whatever_the_system_clock_does() {
        let keeper = told(0);
        for system_ms in [0, TRUE_MS + 14 * YEAR_MS, u64::MAX] {
            for verdict in
                [keeper.time(at(system_ms, 61_000)), keeper.certificate_time(at(system_ms, 61_000))]
            {
                let expected = Verdict { unix_ms: TRUE_MS + 60_000, basis: Basis::Hub };
                assert_eq!(verdict, expected);
            }
        }
        let nearly = TRUE_MS + 60_000 - WELCOME_SLACK_MS;
        let agreed = Verdict { unix_ms: nearly, basis: Basis::Agreement };
        assert_eq!(keeper.time(at(nearly, 61_000)), agreed);
        assert_eq!(keeper.time(at(nearly - 10, 61_000)).basis, Basis::Hub);
        // In ten days a crystal may have gone wrong by so much.
        let days = 10 * DAY_MS;
        let drifted = at(TRUE_MS + days + WELCOME_SLACK_MS + 80_000, 1000 + days);
        assert_eq!(keeper.time(drifted).basis, Basis::Agreement);
    }

    #[test]
    fn a_hub_that_proved_nothing_stamps_records_and_checks_no_certificate() {
        let mut keeper = Keeper::default();
        keeper.handle_word(at(0, 0), TRUE_MS, Word::Welcome, None).unwrap();
        assert_eq!(keeper.time(at(0, 5)).unix_ms, TRUE_MS + 5);
        assert_eq!(keeper.certificate_time(at(0, 5)).unix_ms, RELEASED_MS);
        assert_eq!((keeper.to_keep(at(0, 5)), keeper.confirmed_ms(at(0, 5))), (None, None));
        // And it takes nothing from what one that did had said.
        let mut keeper = told(0);
        keeper.handle_word(at(0, 1000), TRUE_MS + DAY_MS, Word::Welcome, None).unwrap();
        assert_eq!(keeper.time(at(0, 1000)).unix_ms, TRUE_MS);
    }

    #[test]
    fn a_later_word_counts_unless_it_is_less_precise() {
        let mut keeper = told(0);
        keeper.handle_word(at(0, 1000), TRUE_MS + 9000, Word::Date, UNTIL).unwrap();
        assert_eq!(keeper.time(at(0, 1000)).unix_ms, TRUE_MS);
        keeper.handle_word(at(0, 1000), TRUE_MS - 9000, Word::Welcome, UNTIL).unwrap();
        assert_eq!(keeper.time(at(0, 1000)).unix_ms, TRUE_MS - 9000);
    }

    #[test]
    fn nonsense_is_not_believed() {
        let mut keeper = Keeper::default();
        for (unix_ms, fault) in [
            (0, Disbelief::TooEarly),
            (RELEASED_MS - 1, Disbelief::TooEarly),
            (LATEST_MS + 1, Disbelief::TooLate),
            (u64::MAX, Disbelief::TooLate),
            (TRUE_MS + YEAR_MS + 1, Disbelief::Expired),
        ] {
            let heard = keeper.handle_word(at(0, 0), unix_ms, Word::Welcome, UNTIL);
            assert_eq!(heard, Err(fault));
        }
        assert_eq!(keeper.time(at(TRUE_MS, 0)).basis, Basis::Nobody);
        for unix_ms in [0, LATEST_MS + 1] {
            let earlier = Keeper::of_earlier_boot(unix_ms);
            assert_eq!(earlier.certificate_time(at(0, 0)).unix_ms, RELEASED_MS);
            let anchor = Anchor { unix_ms, ..told(0).to_keep(at(0, 0)).unwrap() };
            assert_eq!(Keeper::of_this_boot(anchor).time(at(0, 0)).basis, Basis::Nobody);
        }
    }

    #[test]
    fn what_an_earlier_boot_knew_is_the_earliest_that_it_can_be() {
        let keeper = Keeper::of_earlier_boot(TRUE_MS);
        assert_eq!(keeper.certificate_time(at(0, 70)).unix_ms, TRUE_MS + 70);
        let wakes_in_1970 = keeper.time(at(0, 70));
        let expected = Verdict { unix_ms: TRUE_MS + 70, basis: Basis::Nobody };
        assert_eq!(wakes_in_1970, expected);
        let later = TRUE_MS + DAY_MS;
        assert_eq!(keeper.time(at(later, 70)).unix_ms, later);
    }

    #[test]
    fn a_restart_in_the_same_boot_goes_on_where_it_was() {
        let kept = told(0).to_keep(at(0, 1000 + HOUR_MS)).unwrap();
        assert_eq!(kept.slack_ms, WELCOME_SLACK_MS + 360);
        let keeper = Keeper::of_this_boot(Anchor { word: None, ..kept });
        let expected = Verdict { unix_ms: TRUE_MS + 2 * HOUR_MS, basis: Basis::Hub };
        assert_eq!(keeper.time(at(0, 1000 + 2 * HOUR_MS)), expected);
    }

    #[test]
    fn a_chain_is_checked_at_its_beginning_at_the_earliest() {
        let begins = [RELEASED_MS - DAY_MS, TRUE_MS, LATEST_MS + 1].into_iter();
        assert_eq!(chain_time_ms(RELEASED_MS, begins), TRUE_MS);
        assert_eq!(chain_time_ms(TRUE_MS + 1, [TRUE_MS].into_iter()), TRUE_MS + 1);
    }
}
