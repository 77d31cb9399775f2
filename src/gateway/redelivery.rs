//! Publishes that a session sends again, after a crash of the gateway or a lost connection: those
//! that are kept already are acknowledged and not kept twice.
//!
//! Only where it can't be mistaken. The session outlives its connections; its packet identifiers
//! have only increased over its last 16 publishes or more, wrapping at 65535 alone; and what it
//! sends again, first thing on a new connection and marked DUP, is an ordered run of the same
//! identifiers and bytes as the last publishes that are kept, up to the very last. Until the run
//! has got there nothing is decided and nothing acknowledged. A device that reuses identifiers and
//! payloads may be doubled; a loss is never the price.
//!
//! Must never take a publish for a known one that is not kept.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::lane::Place;
use crate::{
    planted::{Bug, planted},
    record::{Packet, Publish},
    spool::{Origin, Tail},
};

/// So many publishes in a row must have had increasing identifiers.
const RISING: usize = 16;

/// How long a run may take to get to its end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sessions that are followed; the publishes of more are always kept.
const MAX_SESSIONS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Redelivery {
    sessions: BTreeMap<u64, Session>,
    /// How many publishes of a session are remembered.
    window: usize,
    /// Of what waits for its run to end.
    held_bytes: usize,
    /// Since start: publishes that were known, and those marked DUP that were kept nonetheless.
    pub(super) recognised: u64,
    pub(super) doubtful: u64,
}

#[derive(Debug, Default)]
struct Session {
    /// The last publishes that were kept, oldest first.
    recent: VecDeque<Recent>,
    next_order: u32,
    connection: Option<u64>,
    /// Nothing but what was sent before has come on this connection.
    resends: bool,
    run: Option<Run>,
}

#[derive(Debug)]
struct Recent {
    packet_id: u16,
    digest: u32,
    /// Where it is; `None`: on disk since before this start.
    place: Option<Place>,
}

/// Publishes sent again that are as the remembered ones so far.
#[derive(Debug)]
struct Run {
    held: Vec<Publish>,
    /// Which remembered one comes next.
    at: usize,
    deadline: Instant,
}

/// What is to become of publishes.
#[derive(Debug)]
pub(super) enum Verdict {
    /// They are new, or may be: they are kept, in this order.
    Keep(Vec<Publish>),
    /// They wait until more is known.
    Wait,
    /// They are kept already, each at its place.
    Known(Vec<(Publish, Option<Place>)>),
}

impl Redelivery {
    /// `tails`: what of each session is on disk.
    pub(super) fn new<'a>(window: usize, tails: impl Iterator<Item = (u64, &'a Tail)>) -> Self {
        let mut redelivery = Self { window: window.max(RISING + 1), ..Self::default() };
        redelivery.inherit(tails);
        redelivery
    }

    /// Takes over what is on disk of sessions that nothing is known of yet.
    pub(super) fn inherit<'a>(&mut self, tails: impl Iterator<Item = (u64, &'a Tail)>) {
        for (key, tail) in tails {
            if self.sessions.len() >= MAX_SESSIONS || self.sessions.contains_key(&key) {
                continue;
            }
            let recent = tail.iter().map(|origin| Recent {
                packet_id: origin.packet_id,
                digest: origin.digest,
                place: None,
            });
            let next_order = tail.back().map_or(0, |last| last.order.wrapping_add(1));
            let session = Session { recent: recent.collect(), next_order, ..Session::default() };
            self.sessions.insert(key, session);
        }
    }

    /// Looks at a publish of a session that outlives its connections.
    pub(super) fn handle_publish(
        &mut self,
        now: Instant,
        packet: Packet,
        publish: Publish,
    ) -> Verdict {
        if planted(Bug::DupTakenForKnown) && packet.dup {
            return Verdict::Known(vec![(publish, None)]);
        }
        let Some(session) = self.sessions.get_mut(&packet.session) else {
            self.doubtful += u64::from(packet.dup);
            return Verdict::Keep(vec![publish]);
        };
        let held_before = session.held_bytes();
        let connection = publish.receipt.map(|receipt| receipt.connection);
        if session.connection != connection {
            // Whatever of a run came on the last connection is not acknowledged, so it comes again.
            session.run = None;
            session.connection = connection;
            session.resends = true;
        }
        session.resends &= packet.dup;
        let verdict = session.judge(now, packet, publish);
        self.held_bytes = self.held_bytes - held_before + session.held_bytes();
        match &verdict {
            Verdict::Known(known) => self.recognised += known.len() as u64,
            Verdict::Keep(kept) => {
                self.doubtful += kept.iter().filter(|p| is_dup(p)).count() as u64
            }
            Verdict::Wait => {}
        }
        verdict
    }

    /// A publish is kept at `place`: from now on it is known. Says what goes to the disk with it.
    pub(super) fn note_kept(&mut self, packet: Packet, digest: u32) -> Option<Origin> {
        if !self.sessions.contains_key(&packet.session) && self.sessions.len() >= MAX_SESSIONS {
            return None;
        }
        let session = self.sessions.entry(packet.session).or_default();
        let order = session.next_order;
        session.next_order = order.wrapping_add(1);
        session.recent.push_back(Recent { packet_id: packet.id, digest, place: None });
        if session.recent.len() > self.window {
            session.recent.pop_front();
        }
        Some(Origin { session: packet.session, order, packet_id: packet.id, digest })
    }

    /// Where the last publish of a session went.
    pub(super) fn note_place(&mut self, session: u64, place: Place) {
        let session = self.sessions.get_mut(&session);
        if let Some(last) = session.and_then(|session| session.recent.back_mut()) {
            last.place = Some(place);
        }
    }

    /// The records of a lane from `from` on are numbered anew, from 1, in `to`'s epoch.
    pub(super) fn handle_renumbered(&mut self, from: Place, to: crate::protocol::Epoch) {
        let recent = self.sessions.values_mut().flat_map(|session| &mut session.recent);
        let places = recent.filter_map(|recent| recent.place.as_mut());
        places.for_each(|place| place.renumber(from, to));
    }

    /// When a run has lasted too long.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let runs = self.sessions.values().filter_map(|session| session.run.as_ref());
        runs.map(|run| run.deadline).min()
    }

    /// The publishes of runs that did not get to their end in time: they are to be kept.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<Publish> {
        let overdue = self.sessions.values_mut().filter_map(|session| {
            let run = session.run.take_if(|run| run.deadline <= now)?;
            session.resends = false;
            Some(run.held)
        });
        let held: Vec<Publish> = overdue.flatten().collect();
        self.held_bytes -= held.iter().map(bytes_of).sum::<usize>();
        self.doubtful += held.len() as u64;
        held
    }

    /// The bytes of what waits for its run to end.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }
}

impl Session {
    fn judge(&mut self, now: Instant, packet: Packet, publish: Publish) -> Verdict {
        let digest = digest(&publish);
        let is_this = |recent: &Recent| (recent.packet_id, recent.digest) == (packet.id, digest);
        let mut run = match self.run.take() {
            Some(mut run) if packet.dup && is_this(&self.recent[run.at]) => {
                run.held.push(publish);
                run.at += 1;
                run
            }
            Some(mut run) => {
                self.resends = false;
                run.held.push(publish);
                return Verdict::Keep(run.held);
            }
            None => {
                let begins = self.resends && self.is_rising();
                let at = self.recent.iter().rposition(is_this).filter(|_| begins);
                let Some(at) = at else { return Verdict::Keep(vec![publish]) };
                Run { held: vec![publish], at: at + 1, deadline: now + PATIENCE }
            }
        };
        if run.at < self.recent.len() {
            self.run = Some(run);
            return Verdict::Wait;
        }
        let first = self.recent.len() - run.held.len();
        let places = self.recent.range(first..).map(|recent| recent.place);
        Verdict::Known(run.held.drain(..).zip(places).collect())
    }

    fn held_bytes(&self) -> usize {
        self.run.iter().flat_map(|run| &run.held).map(bytes_of).sum()
    }

    /// Whether the identifiers of the last publishes only increased.
    fn is_rising(&self) -> bool {
        let from = self.recent.len().saturating_sub(RISING + 1);
        let ids = self.recent.range(from..).map(|recent| recent.packet_id);
        let rises = |(before, after): (u16, u16)| before < after || before == u16::MAX;
        self.recent.len() > RISING && ids.clone().zip(ids.skip(1)).all(rises)
    }
}

fn bytes_of(publish: &Publish) -> usize {
    publish.topic.len() + publish.payload.len()
}

fn is_dup(publish: &Publish) -> bool {
    publish.packet.is_some_and(|packet| packet.dup)
}

/// Of what a publish says; two that differ have the same one in four billion times.
pub(super) fn digest(publish: &Publish) -> u32 {
    let topic = crc32c::crc32c(publish.topic.as_bytes());
    let retained = [u8::from(publish.retained)];
    crc32c::crc32c_append(crc32c::crc32c_append(topic, &retained), &publish.payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Receipt, SourceId};

    const SESSION: u64 = 7;

    struct Bench {
        redelivery: Redelivery,
        now: Instant,
        connection: u64,
    }

    impl Bench {
        /// A session whose publishes had these identifiers, after a restart.
        fn restarted(ids: impl IntoIterator<Item = u16>) -> Self {
            let origin = |(order, packet_id): (u32, u16)| {
                let digest = digest(&publish(packet_id, false, 0));
                Origin { session: SESSION, order, packet_id, digest }
            };
            let tail: Tail = (0..).zip(ids).map(origin).collect();
            let redelivery = Redelivery::new(100, [(SESSION, &tail)].into_iter());
            Self { redelivery, now: Instant::now(), connection: 1 }
        }

        fn hear(&mut self, id: u16, dup: bool) -> Verdict {
            let publish = publish(id, dup, self.connection);
            let packet = publish.packet.unwrap();
            let verdict = self.redelivery.handle_publish(self.now, packet, publish);
            self.check_held_bytes();
            if let Verdict::Keep(kept) = &verdict {
                for publish in kept {
                    self.redelivery.note_kept(publish.packet.unwrap(), digest(publish));
                }
            }
            verdict
        }

        /// The sum that is carried on is that of what is there.
        fn check_held_bytes(&self) {
            let held: usize = self.redelivery.sessions.values().map(Session::held_bytes).sum();
            assert_eq!(self.redelivery.held_bytes(), held);
        }

        /// How many of these publishes, all sent again, are kept, and how many known.
        fn resend(&mut self, ids: impl IntoIterator<Item = u16>) -> (usize, usize) {
            let mut counts = (0, 0);
            for id in ids {
                match self.hear(id, true) {
                    Verdict::Keep(kept) => counts.0 += kept.len(),
                    Verdict::Known(known) => counts.1 += known.len(),
                    Verdict::Wait => {}
                }
            }
            counts
        }
    }

    fn publish(id: u16, dup: bool, connection: u64) -> Publish {
        Publish {
            topic: "t".into(),
            payload: format!("payload {id}").into(),
            retained: false,
            source: SourceId(0),
            receipt: Some(Receipt { source: SourceId(0), connection, number: 0 }),
            packet: Some(Packet { session: SESSION, id, dup }),
        }
    }

    #[test]
    fn what_is_on_disk_is_known_and_what_follows_is_kept() {
        let mut bench = Bench::restarted(1..=40);
        assert_eq!(bench.resend(31..=45), (5, 10));
        assert_eq!((bench.redelivery.recognised, bench.redelivery.doubtful), (10, 5));
        assert!(matches!(bench.hear(46, false), Verdict::Keep(kept) if kept.len() == 1));
    }

    #[test]
    fn known_ones_are_known_again_after_another_crash_of_the_link() {
        let mut bench = Bench::restarted(1..=40);
        assert_eq!(bench.resend(38..=42), (2, 3));
        bench.connection = 2;
        assert_eq!(bench.resend(38..=42), (0, 5));
    }

    #[test]
    fn identifiers_wrap_at_65535_alone() {
        let wrapped = (65_520..=65_535).chain(1..=5);
        assert_eq!(Bench::restarted(wrapped).resend([3, 4, 5]), (0, 3));
        let reused = (1..=20).chain(1..=5);
        assert_eq!(Bench::restarted(reused).resend([3, 4, 5]), (3, 0));
    }

    #[test]
    fn a_run_that_does_not_end_at_the_last_kept_publish_is_kept() {
        let mut bench = Bench::restarted(1..=40);
        assert_eq!(bench.resend([35, 36, 41]), (3, 0), "37 is missing");
        let mut bench = Bench::restarted(1..=40);
        bench.resend([39]);
        assert!(matches!(bench.hear(40, false), Verdict::Keep(kept) if kept.len() == 2), "no DUP");
        let mut bench = Bench::restarted(1..=40);
        bench.resend([39]);
        bench.now += PATIENCE;
        assert_eq!(bench.redelivery.next_deadline(), Some(bench.now));
        assert_eq!(bench.redelivery.take_overdue(bench.now).len(), 1);
        bench.check_held_bytes();
        assert_eq!(bench.resend([40]), (1, 0), "too late");
    }

    #[test]
    fn a_young_session_or_one_with_other_bytes_is_never_trusted() {
        assert_eq!(Bench::restarted(1..=16).resend([16]), (1, 0));
        assert_eq!(Bench::restarted(1..=17).resend([17]), (0, 1));
        let mut bench = Bench::restarted(1..=40);
        let other = Publish { payload: "other".into(), ..publish(40, true, 1) };
        let verdict = bench.redelivery.handle_publish(bench.now, other.packet.unwrap(), other);
        assert!(matches!(verdict, Verdict::Keep(_)));
    }

    #[test]
    fn only_what_comes_first_on_a_connection_can_be_a_resend() {
        let mut bench = Bench::restarted(1..=40);
        bench.hear(41, false);
        assert_eq!(bench.resend([41]), (1, 0));
    }

    #[test]
    fn a_connection_that_ends_within_a_run_leaves_nothing_behind() {
        let mut bench = Bench::restarted(1..=40);
        assert_eq!(bench.resend([37, 38]), (0, 0));
        bench.connection = 2;
        assert_eq!(bench.resend(37..=41), (1, 4));
        assert_eq!(bench.redelivery.held_bytes(), 0);
    }
}
