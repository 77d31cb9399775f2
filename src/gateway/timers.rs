//! The one timer: when something is due, and what.
//!
//! What is due must never be due still when it was served, without something else having happened:
//! the driver would turn for nothing else. What follows is never decided here: each deadline is its
//! owner's, who says what is due.

use std::time::Instant;

use super::{
    EVENTS, Ended, FORGET_EVERY, Gateway, Now, Output,
    hubs::Home,
    lane::Lane,
    live::{Due, UnderWay},
    uplink::{Phase, Then},
};
use crate::{
    planted::{Bug, planted},
    protocol::close,
};

impl Gateway {
    /// When [`Gateway::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let under_way = self.under_way();
        [
            self.uplink.as_ref().and_then(|uplink| uplink.deadline(under_way)),
            self.write_due()
                .filter(|_| self.disk.appending.is_none() && self.disk.retry_at.is_none()),
            self.reports.next_due(),
            self.commands.next_deadline(),
            self.redelivery.next_deadline(),
            self.disk.retry_at,
            self.lanes.iter().filter_map(Lane::quiet_until).min(),
            Some(self.forget_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.standstill.handle_served(now.instant);
        if self.disk.retry_at.is_some_and(|at| at <= now.instant) {
            self.disk.retry_at = None;
        }
        if self.forget_at <= now.instant {
            self.forget_at = now.instant + FORGET_EVERY;
            // A hub that lacks a report may ask for its command again, whatever a clock says: one
            // that jumped by years once had an end forgotten that the hub had yet to hear of.
            if self.lanes[EVENTS].held_records() == 0 && !self.disk.is_missing {
                self.commands.forget_old(now);
            }
        }
        self.lanes.iter_mut().for_each(|lane| lane.handle_timeout(now.instant));
        self.commands.handle_deadline(now);
        self.take_overdue(now);
        self.handle_uplink_timeout(now);
        self.settle(now);
    }

    fn handle_uplink_timeout(&mut self, now: Now) {
        let under_way = self.under_way();
        self.begin_anew_when_due(now);
        let Some(uplink) = &mut self.uplink else { return };
        match &mut uplink.phase {
            Phase::Waiting { until } if *until <= now.instant => {
                let managed = uplink.dial(now.instant);
                self.outputs.push_back(Output::Dial { hub: uplink.hubs.current(), managed });
            }
            Phase::Dialing { until, .. } if *until <= now.instant => {
                self.outputs.push_back(Output::Hangup);
                self.handle_ended(now, &Ended::Lost("the dial did not end in its time".into()));
            }
            Phase::Greeting { deadline, .. } if *deadline <= now.instant => {
                self.give_up_greeting(now, "none came within 5 s of hello");
            }
            Phase::Closing { until, then } if *until <= now.instant => {
                let then = *then;
                uplink.after_close(now, then);
                self.outputs.push_back(Output::Hangup);
                self.forget_session();
            }
            Phase::Live(session) => match session.due(now.instant, &uplink.settings, under_way) {
                Some(Due::Ping) => self.ping(now),
                Some(Due::Token) => {
                    session.handle_token_asked(now.instant);
                    self.outputs.push_back(Output::Token);
                }
                Some(Due::Dead(_)) if planted(Bug::DeadLinkNeverFound) => {
                    session.handle_acked(now.instant);
                    self.handle_progress(now);
                    self.handle_frame(now);
                }
                Some(Due::Dead(why)) => {
                    tracing::info!(why, "the link is dead");
                    uplink.close(now, Then::BackOff, why.into());
                    uplink.after_close(now, Then::BackOff);
                    self.outputs.push_back(Output::Hangup);
                    self.forget_session();
                }
                None => self.handle_home_due(now),
            },
            _ => {}
        }
    }

    /// The ground changed beneath an attempt: it is dropped, and the next one begun.
    fn begin_anew_when_due(&mut self, now: Now) {
        let Some(uplink) = &mut self.uplink else { return };
        if uplink.anew_at().is_some_and(|at| at <= now.instant) {
            tracing::debug!("an attempt is begun anew: network or configuration changed");
            uplink.begin_anew(now.instant);
            self.outputs.push_back(Output::Hangup);
            self.forget_session();
        }
    }

    /// On a later hub: is it time to see after the first, or to go back to it?
    fn handle_home_due(&mut self, now: Now) {
        let quiet = self.is_drained();
        let Some(uplink) = &mut self.uplink else { return };
        match uplink.hubs.home_due(now.instant, quiet) {
            Some(Home::Ask) => {
                let managed = uplink.offers_managed(0);
                self.outputs.push_back(Output::Probe { managed });
            }
            Some(Home::Leave) => {
                let why = "the first hub can be reached again".into();
                self.close(now, close::NORMAL, Then::FirstHub, why);
            }
            None => {}
        }
    }

    /// What the hub has yet to acknowledge, of the streams that it does not pause.
    pub(super) fn under_way(&self) -> Option<UnderWay> {
        let sent = self.lanes.iter().filter_map(Lane::oldest_flight).min()?;
        let since = self.lanes.iter().filter_map(Lane::waits_since).min()?;
        let wire_bytes = self.lanes.iter().map(Lane::flight_wire_bytes).sum();
        Some(UnderWay { sent, since, wire_bytes })
    }
}
