//! What `fieldgate status` shows.

use serde::Serialize;

use super::{Gateway, Now, uplink::Phase};

/// The gateway's state at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// The gateway's id.
    pub gateway: String,
    /// The link to the hub.
    pub uplink: UplinkStatus,
    /// The streams, in the order of their priority.
    pub streams: Vec<StreamStatus>,
    /// What became of what was heard, since start.
    pub counters: CounterStatus,
    /// Commands under way, and ids in the journal.
    pub commands: CommandStatus,
    /// The disk.
    pub disk: DiskStatus,
}

/// The link to the hub.
#[derive(Debug, Clone, Serialize)]
pub struct UplinkStatus {
    /// `off`, `waiting`, `connecting`, `greeting`, `connected`, `closing` or `stopped`.
    pub state: &'static str,
    /// `managed` or `plain`, while connected.
    pub mode: Option<&'static str>,
    /// The hub's name for the session.
    pub session: Option<String>,
    /// Seconds until the next attempt.
    pub retry_in_s: Option<u64>,
    /// Seconds since the session began.
    pub connected_for_s: Option<u64>,
    /// Attempts since start.
    pub attempts: u64,
    /// Why the last link ended or never came up.
    pub last_error: Option<String>,
}

/// One stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamStatus {
    /// Its name.
    pub stream: String,
    /// Records that the hub does not hold yet.
    pub held: u64,
    /// The last record of this start that the hub holds.
    pub acked: u64,
    /// Records that the hub was told are lost, since start.
    pub skipped: u64,
}

/// Counted since start.
#[derive(Debug, Clone, Serialize)]
pub struct CounterStatus {
    /// Publishes that are telemetry.
    pub received: u64,
    /// Records put on the link; a record sent again counts again.
    pub sent: u64,
    /// Publishes refused, as `refused` events tell.
    pub refused: u64,
    /// Records that the hub refused for good.
    pub rejected: u64,
    /// Records evicted from the spool.
    pub evicted: u64,
    /// Frames of the server that meant nothing to us.
    pub ignored_frames: u64,
    /// Replies for which no command waited.
    pub unexpected_replies: u64,
    /// Publishes that were sent again and recognised as kept already.
    pub recognised: u64,
    /// Publishes that may have been sent before and were kept, for that could not be told.
    pub doubtful: u64,
}

/// Commands.
#[derive(Debug, Clone, Serialize)]
pub struct CommandStatus {
    /// Accepted, not yet final.
    pub under_way: usize,
    /// Ids that the journal keeps.
    pub journalled: usize,
}

/// The disk, as the core knows it.
#[derive(Debug, Clone, Serialize)]
pub struct DiskStatus {
    /// What is wrong with it, if anything.
    pub error: Option<String>,
    /// Bytes of records in memory.
    pub memory_bytes: usize,
}

impl Gateway {
    /// The state at this moment.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let (under_way, journalled) = self.commands.counts();
        let streams = self.lanes.iter().map(|lane| StreamStatus {
            stream: lane.name.to_string(),
            held: lane.held_records(),
            acked: lane.acked(),
            skipped: lane.skipped,
        });
        Snapshot {
            gateway: self.settings.id.clone(),
            uplink: self.uplink_status(now),
            streams: streams.collect(),
            counters: CounterStatus {
                received: self.counters.received,
                sent: self.counters.sent,
                refused: self.reports.refused,
                rejected: self.counters.rejected,
                evicted: self.disk.evicted,
                ignored_frames: self.counters.ignored_frames,
                unexpected_replies: self.counters.unexpected_replies,
                recognised: self.redelivery.recognised,
                doubtful: self.redelivery.doubtful,
            },
            commands: CommandStatus { under_way, journalled },
            disk: DiskStatus { error: self.disk.error.clone(), memory_bytes: self.memory_bytes() },
        }
    }

    fn uplink_status(&self, now: Now) -> UplinkStatus {
        let mut status = UplinkStatus {
            state: "off",
            mode: None,
            session: None,
            retry_in_s: None,
            connected_for_s: None,
            attempts: 0,
            last_error: None,
        };
        let Some(uplink) = &self.uplink else { return status };
        status.attempts = uplink.attempts;
        status.last_error.clone_from(&uplink.last_error);
        status.state = match &uplink.phase {
            Phase::Waiting { until } => {
                status.retry_in_s = Some(until.saturating_duration_since(now.instant).as_secs());
                "waiting"
            }
            Phase::Dialing { .. } => "connecting",
            Phase::Greeting { .. } => "greeting",
            Phase::Live(session) => {
                status.mode = Some(if session.managed { "managed" } else { "plain" });
                status.session = session.managed.then(|| session.name.clone());
                status.connected_for_s = Some((now.instant - session.since).as_secs());
                "connected"
            }
            Phase::Closing { .. } => "closing",
            Phase::Stopped => "stopped",
        };
        status
    }
}
