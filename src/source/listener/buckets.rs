//! How often something may happen: buckets that each time fills by one, and time drains.
//!
//! A bucket is kept as the time when it will be empty, so that one costs an instant. Pure.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// How many buckets are kept; at the bound the one that is empty first makes room.
const MAX_BUCKETS: usize = 4096;

/// A size and how fast it drains.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    /// How often at once.
    pub(super) size: u32,
    /// How long until one more is allowed.
    pub(super) drain: Duration,
}

impl Bucket {
    /// Whether a bucket that will be empty at `empty_at` has room for one more.
    pub(super) fn has_room(self, now: Instant, empty_at: Option<Instant>) -> bool {
        let most = self.drain * self.size.saturating_sub(1);
        empty_at.is_none_or(|at| at.saturating_duration_since(now) <= most)
    }

    /// When it will be empty, with one more in it.
    pub(super) fn fill(self, now: Instant, empty_at: Option<Instant>) -> Instant {
        empty_at.map_or(now, |at| at.max(now)) + self.drain
    }
}

/// A bucket for each of many.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    empty_at: HashMap<K, Instant>,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self { empty_at: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    /// Whether there is room for one more.
    pub(super) fn has_room(&self, now: Instant, key: K, bucket: Bucket) -> bool {
        bucket.has_room(now, self.empty_at.get(&key).copied())
    }

    /// Puts one in.
    pub(super) fn fill(&mut self, now: Instant, key: K, bucket: Bucket) {
        self.make_room(now, key);
        let empty_at = bucket.fill(now, self.empty_at.get(&key).copied());
        self.empty_at.insert(key, empty_at);
    }

    fn make_room(&mut self, now: Instant, key: K) {
        if self.empty_at.len() < MAX_BUCKETS || self.empty_at.contains_key(&key) {
            return;
        }
        self.empty_at.retain(|_, at| *at > now);
        if self.empty_at.len() >= MAX_BUCKETS {
            let soonest = self.empty_at.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key);
            soonest.and_then(|key| self.empty_at.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_one_more_each_time_it_has_drained() {
        let bucket = Bucket { size: 2, drain: Duration::from_secs(3) };
        let (mut buckets, now) = (Buckets::default(), Instant::now());
        for _ in 0..2 {
            assert!(buckets.has_room(now, 'a', bucket));
            buckets.fill(now, 'a', bucket);
        }
        assert!(!buckets.has_room(now, 'a', bucket) && buckets.has_room(now, 'b', bucket));
        let drained = now + bucket.drain;
        assert!(!buckets.has_room(drained - Duration::from_millis(1), 'a', bucket));
        assert!(buckets.has_room(drained, 'a', bucket));
        buckets.fill(drained, 'a', bucket);
        assert!(!buckets.has_room(drained, 'a', bucket));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_fullest_is_not_forgotten() {
        let bucket = Bucket { size: 2, drain: Duration::from_secs(3) };
        let (mut buckets, now) = (Buckets::default(), Instant::now());
        (0..2).for_each(|_| buckets.fill(now, 0, bucket));
        (1..=2 * MAX_BUCKETS).for_each(|key| buckets.fill(now, key, bucket));
        assert!(buckets.empty_at.len() <= MAX_BUCKETS);
        assert!(!buckets.has_room(now, 0, bucket));
    }
}
