//! Who takes how much: under pressure a device that floods is refused before its records push out
//! those of others.
//!
//! What each device sent is counted in bytes and halved every ten minutes. Under pressure a device
//! is over its share when it has sent more than four times what the others did on average. One that
//! is alone never is. Bounded: of more than [`MAX_DEVICES`] devices the rest are counted as one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How often what was counted is halved.
const HALF_LIFE: Duration = Duration::from_secs(600);

/// How many times what the others sent on average a device may send.
const GENEROSITY: u64 = 4;

/// So much is never too much.
const ALWAYS_BYTES: u64 = 64 * 1024;

/// Devices that are counted apart.
const MAX_DEVICES: usize = 4096;

#[derive(Debug)]
pub(super) struct Shares {
    devices: HashMap<String, u64>,
    total: u64,
    halve_at: Instant,
}

impl Shares {
    pub(super) fn new(now: Instant) -> Self {
        Self { devices: HashMap::new(), total: 0, halve_at: now + HALF_LIFE }
    }

    /// A device's record of this size was taken in.
    pub(super) fn note(&mut self, now: Instant, device: &str, bytes: usize) {
        self.halve(now);
        let bytes = bytes as u64;
        self.total += bytes;
        if let Some(sent) = self.devices.get_mut(self.name(device)) {
            *sent += bytes;
        } else {
            self.devices.insert(self.name(device).into(), bytes);
        }
    }

    /// Whether a device has had more than its share.
    pub(super) fn is_over(&mut self, now: Instant, device: &str) -> bool {
        self.halve(now);
        let sent = self.devices.get(self.name(device)).copied().unwrap_or(0);
        let others = self.devices.len() as u64 - u64::from(sent > 0);
        sent > ALWAYS_BYTES && others > 0 && sent > (self.total - sent) / others * GENEROSITY
    }

    /// Where a device is counted.
    fn name<'a>(&self, device: &'a str) -> &'a str {
        let known = self.devices.len() < MAX_DEVICES || self.devices.contains_key(device);
        if known { device } else { "" }
    }

    fn halve(&mut self, now: Instant) {
        while self.halve_at <= now {
            self.halve_at += HALF_LIFE;
            self.devices.retain(|_, sent| {
                *sent /= 2;
                *sent > 0
            });
            if self.devices.is_empty() {
                self.halve_at = now + HALF_LIFE;
            }
            self.total = self.devices.values().sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooding_device_is_over_and_its_quiet_neighbours_never_are() {
        let start = Instant::now();
        let mut shares = Shares::new(start);
        let mut taken = 0;
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            for quiet in 0..9 {
                let device = format!("quiet-{quiet}");
                assert!(!shares.is_over(now, &device));
                shares.note(now, &device, 200);
            }
            for _ in 0..100 {
                if !shares.is_over(now, "flood") {
                    shares.note(now, "flood", 200);
                    taken += 200;
                }
            }
        }
        let fair = 3600 * 200;
        assert!(taken > fair && taken < 5 * fair, "{taken} against {fair} of a quiet one");
    }

    #[test]
    fn a_device_that_is_alone_has_everything() {
        let now = Instant::now();
        let mut shares = Shares::new(now);
        for _ in 0..10_000 {
            assert!(!shares.is_over(now, "only"));
            shares.note(now, "only", 1000);
        }
    }

    #[test]
    fn what_is_counted_is_bounded_and_forgotten() {
        let now = Instant::now();
        let mut shares = Shares::new(now);
        for device in 0..10_000 {
            shares.note(now, &device.to_string(), 1000);
        }
        assert_eq!(shares.devices.len(), MAX_DEVICES + 1);
        shares.halve(now + HALF_LIFE * 40);
        assert_eq!((shares.devices.len(), shares.total), (0, 0));
    }
}
