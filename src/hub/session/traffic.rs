//! How much a gateway may send: so that one that runs wild does not take the hub from the others.
//!
//! It must never wait: a gateway that sends too much is told so and sent away, not slowed down.

use std::time::{Duration, Instant};

/// What one gateway may send; two seconds' worth may come at once.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Messages and control frames.
    pub messages_per_second: u64,
    /// Bytes of messages.
    pub bytes_per_second: u64,
}

/// How many seconds' worth may come at once.
const BURST_S: u64 = 2;

#[derive(Debug)]
pub(super) struct Meter {
    messages: Bucket,
    bytes: Bucket,
}

impl Meter {
    pub(super) fn new(now: Instant, traffic: Traffic) -> Self {
        Self {
            messages: Bucket::full(now, traffic.messages_per_second),
            bytes: Bucket::full(now, traffic.bytes_per_second),
        }
    }

    /// A message came; an error says how long the gateway should have waited.
    pub(super) fn take(&mut self, now: Instant, bytes: usize) -> Result<(), Duration> {
        self.messages.take(now, 1)?;
        self.bytes.take(now, bytes as u64)
    }
}

/// Holds thousandths, so that a millisecond's share is a whole number.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    milli: u64,
    since: Instant,
}

impl Bucket {
    fn full(now: Instant, per_second: u64) -> Self {
        let mut bucket = Self { per_second, milli: 0, since: now };
        bucket.milli = bucket.capacity();
        bucket
    }

    fn capacity(&self) -> u64 {
        self.per_second.saturating_mul(1000 * BURST_S)
    }

    fn take(&mut self, now: Instant, count: u64) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.since);
        let passed_ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let gained = passed_ms.saturating_mul(self.per_second);
        self.milli = self.milli.saturating_add(gained).min(self.capacity());
        // What is left of a millisecond counts at the next look.
        self.since += Duration::from_millis(passed_ms);
        let wanted = count.saturating_mul(1000);
        match self.milli.checked_sub(wanted) {
            Some(rest) => {
                self.milli = rest;
                Ok(())
            }
            None => Err(Duration::from_millis((wanted - self.milli).div_ceil(self.per_second))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAFFIC: Traffic = Traffic { messages_per_second: 10, bytes_per_second: 1000 };

    #[test]
    fn two_seconds_worth_may_come_at_once_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut meter = Meter::new(start, TRAFFIC);
        for _ in 0..20 {
            assert_eq!(meter.take(start, 10), Ok(()));
        }
        assert_eq!(meter.take(start, 10), Err(Duration::from_millis(100)));
        let mut now = start;
        for _ in 0..100 {
            now += Duration::from_millis(100);
            assert_eq!(meter.take(now, 10), Ok(()));
        }
        assert!(meter.take(now, 10).is_err());
    }

    #[test]
    fn bytes_count_as_well_as_messages() {
        let start = Instant::now();
        let mut meter = Meter::new(start, TRAFFIC);
        assert_eq!(meter.take(start, 2000), Ok(()));
        assert_eq!(meter.take(start, 500), Err(Duration::from_millis(500)));
        assert_eq!(meter.take(start + Duration::from_millis(500), 500), Ok(()));
    }
}
