//! How fast the link carries records, as the hub's acks show it, and so how much is put on it.
//!
//! A batch is no larger than what the link carries in about a second, and no more is under way than
//! in a few: a slow link then shows its progress, answers a Ping in time, and lets an alarm pass a
//! backlog. It must never starve a fast link: each round trip may double what is under way.

use std::time::{Duration, Instant};

/// The largest batch: large enough for the cost of a frame not to count, small enough to be quick.
const LARGEST_BATCH: u64 = 64 * 1024;

/// The first batches, and the smallest later ones: a second of 64 kbit/s, and of half of that.
const FIRST_BATCH: u64 = 8 * 1024;
const SMALLEST_BATCH: u64 = 4 * 1024;

/// What may be under way: as long as nothing is known, at least, and in seconds of the measured
/// rate.
const FIRST_FLIGHT: u64 = 64 * 1024;
const SMALLEST_FLIGHT: u64 = 16 * 1024;
const FLIGHT_SECONDS: u64 = 4;

/// The rate of one session.
#[derive(Debug, Default)]
pub(super) struct Pace {
    bytes_per_s: Option<u64>,
    acked_at: Option<Instant>,
}

impl Pace {
    /// The hub has `bytes` more, of messages the oldest of which was sent at `sent`.
    pub(super) fn handle_acked(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let was_busy = self.acked_at.filter(|acked_at| *acked_at >= sent);
        let took = now.saturating_duration_since(was_busy.unwrap_or(sent));
        let micros = took.max(Duration::from_micros(100)).as_micros() as u64;
        let sample = bytes.saturating_mul(1_000_000) / micros;
        // A link that was idle before, or had little to carry, can do more than this shows.
        let is_full = was_busy.is_some() && bytes >= self.batch_bytes() / 2;
        self.bytes_per_s = Some(match self.bytes_per_s {
            None => sample,
            // Down at once, for what is too much lies in the way of all else; up is quick anyway.
            Some(known) if is_full => known.min(sample.saturating_mul(2)).midpoint(sample),
            Some(known) => known.max(sample),
        });
        self.acked_at = Some(now);
    }

    /// How large the next batch may be, in bytes on the link.
    pub(super) fn batch_bytes(&self) -> u64 {
        let batch = self.bytes_per_s.unwrap_or(FIRST_BATCH);
        batch.clamp(SMALLEST_BATCH, LARGEST_BATCH)
    }

    /// How much may be under way, in bytes on the link, for another batch to be sent.
    pub(super) fn flight_bytes(&self) -> u64 {
        match self.bytes_per_s {
            None => FIRST_FLIGHT,
            Some(rate) => rate.saturating_mul(FLIGHT_SECONDS).max(SMALLEST_FLIGHT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of this rate and round trip over which batches go, one behind another.
    fn sends(pace: &mut Pace, rate: u64, round_trip: Duration, batches: u32) -> Duration {
        let start = Instant::now();
        let (mut now, mut free) = (start, start);
        let mut under_way: Vec<(Instant, Instant, u64)> = Vec::new();
        for _ in 0..batches {
            let most = pace.flight_bytes().min(1 << 20);
            while under_way.iter().map(|(.., bytes)| bytes).sum::<u64>() >= most {
                let (sent, acked, bytes) = under_way.remove(0);
                now = now.max(acked);
                pace.handle_acked(now, sent, bytes);
            }
            let bytes = pace.batch_bytes();
            free = free.max(now) + Duration::from_micros(bytes * 1_000_000 / rate);
            under_way.push((now, free + round_trip, bytes));
        }
        free - start
    }

    #[test]
    fn on_a_slow_link_a_batch_is_about_a_second_and_little_is_under_way() {
        let mut pace = Pace::default();
        sends(&mut pace, 8_000, Duration::from_millis(600), 40);
        assert!((4_000..=12_000).contains(&pace.batch_bytes()), "{pace:?}");
        assert!(pace.flight_bytes() <= 48_000, "{pace:?}");
    }

    #[test]
    fn a_fast_link_far_away_is_filled_within_a_few_round_trips() {
        let mut pace = Pace::default();
        let round_trip = Duration::from_millis(600);
        sends(&mut pace, 1_250_000, round_trip, 400);
        assert_eq!(pace.batch_bytes(), LARGEST_BATCH);
        assert!(pace.flight_bytes() > 1_000_000, "{pace:?}");
    }

    #[test]
    fn a_link_that_slows_down_is_noticed_and_one_that_gets_fast_again_too() {
        let mut pace = Pace::default();
        let round_trip = Duration::from_millis(50);
        sends(&mut pace, 10_000_000, round_trip, 200);
        sends(&mut pace, 8_000, round_trip, 60);
        assert!(pace.batch_bytes() <= 16_000, "{pace:?}");
        sends(&mut pace, 10_000_000, round_trip, 100);
        assert_eq!(pace.batch_bytes(), LARGEST_BATCH, "{pace:?}");
    }

    #[test]
    fn a_trickle_says_nothing_against_the_link() {
        let mut pace = Pace::default();
        let start = Instant::now();
        sends(&mut pace, 10_000_000, Duration::from_millis(20), 200);
        let known = pace.batch_bytes();
        for second in 0..100 {
            let sent = start + Duration::from_secs(60 + second);
            pace.handle_acked(sent + Duration::from_millis(20), sent, 300);
        }
        assert_eq!(pace.batch_bytes(), known);
    }
}
