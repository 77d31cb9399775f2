//! What PROTOCOL.md asks of the gateway on the wire: it keeps to the window, goes on where the hub
//! says, does not come back too soon, and finds out when nobody answers.

use std::collections::{BTreeMap, VecDeque};

use fieldgate::protocol::{
    Decoded, Epoch, GatewayMessage, HubMessage, Payload, Position, StreamName, Window, WireBody,
    from_gateway, from_hub,
};

use crate::{
    fate::Fates,
    world::{MS, SECOND, Time},
};

/// More attempts than these in a minute are no back-off.
const DIALS_PER_MINUTE: usize = 50;

/// What is asked of one session, and of the time between two.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    windows: BTreeMap<StreamName, Window>,
    flights: BTreeMap<StreamName, VecDeque<Flight>>,
    acked: BTreeMap<(StreamName, Epoch), u64>,
    wanted: BTreeMap<(StreamName, Epoch), u64>,
    drain: Option<Time>,
    dial_not_before: Time,
    dials: VecDeque<Time>,
}

#[derive(Debug)]
struct Flight {
    epoch: Epoch,
    first: u64,
    end: u64,
    bytes: u64,
}

impl Wire {
    /// A new connection: nothing is under way.
    pub(crate) fn begin(&mut self) {
        self.windows.clear();
        self.flights.clear();
        self.acked.clear();
        self.wanted.clear();
        self.drain = None;
    }

    /// The process is another one: nothing was asked of it.
    pub(crate) fn forget(&mut self) {
        self.begin();
        self.dial_not_before = 0;
        self.dials.clear();
    }

    /// The gateway puts a message on the link.
    pub(crate) fn sent(&mut self, text: &str) {
        let Ok(Decoded::Message(message)) = from_gateway(text) else {
            panic!("the gateway sends what is no message: {text}")
        };
        match message {
            GatewayMessage::Data(data) => {
                let end = data.seq + data.records.len() as u64;
                let bytes = data.records.iter().map(|record| payload_bytes(&record.body)).sum();
                self.check_goes_on(&data.stream, data.epoch, data.seq);
                self.check_window(&data.stream, data.records.len() as u64, bytes);
                let flight = Flight { epoch: data.epoch, first: data.seq, end, bytes };
                self.flights.entry(data.stream).or_default().push_back(flight);
            }
            GatewayMessage::Skip(skip) => self.check_goes_on(&skip.stream, skip.epoch, skip.from),
            _ => {}
        }
    }

    /// The gateway gets a message.
    pub(crate) fn got(&mut self, now: Time, text: &str, fates: &mut Fates) {
        let Ok(Decoded::Message(message)) = from_hub(text) else {
            panic!("the hub sends what is no message: {text}")
        };
        match message {
            HubMessage::Welcome(welcome) => {
                welcome.streams.iter().for_each(|position| self.moved(position));
            }
            HubMessage::Ack(ack) => self.moved(&ack.position),
            HubMessage::Error(error) if error.code == "gap" => {
                if let (Some(stream), Some(epoch), Some(expected)) =
                    (error.stream, error.epoch, error.expected)
                {
                    let flights = self.flights.entry(stream.clone()).or_default();
                    flights.retain(|flight| flight.epoch != epoch);
                    self.wanted.insert((stream, epoch), expected);
                }
            }
            HubMessage::Command(command) => {
                fates.asked(now, command.id.as_str(), command.ttl_ms);
            }
            HubMessage::Drain(drain) => self.drain = Some(drain.retry_after_ms * MS),
            _ => {}
        }
    }

    /// The hub, or the network, ended the connection.
    pub(crate) fn ended(&mut self, now: Time, code: Option<u16>) {
        let asked = match code {
            Some(4009) => Some(60 * SECOND),
            _ => self.drain.take(),
        };
        if let Some(wait) = asked {
            self.dial_not_before = self.dial_not_before.max(now + wait - wait / 1000);
        }
    }

    /// The gateway tries to connect.
    pub(crate) fn dials(&mut self, now: Time) {
        assert!(
            now >= self.dial_not_before,
            "the gateway is back {} ms before the hub wants it",
            (self.dial_not_before - now) / MS
        );
        self.dials.push_back(now);
        while self.dials.front().is_some_and(|at| at + 60 * SECOND < now) {
            self.dials.pop_front();
        }
        assert!(
            self.dials.len() <= DIALS_PER_MINUTE,
            "promise 6: {} attempts within a minute",
            self.dials.len()
        );
    }

    fn moved(&mut self, position: &Position) {
        let (stream, epoch) = (&position.stream, position.epoch);
        self.windows.insert(stream.clone(), position.window.unwrap_or_default());
        let acked = self.acked.entry((stream.clone(), epoch)).or_default();
        *acked = (*acked).max(position.acked);
        let landed = |flight: &Flight| flight.epoch == epoch && flight.end <= position.acked + 1;
        self.flights.entry(stream.clone()).or_default().retain(|flight| !landed(flight));
    }

    fn check_goes_on(&mut self, stream: &StreamName, epoch: Epoch, from: u64) {
        let key = (stream.clone(), epoch);
        let acked = self.acked.get(&key).copied().unwrap_or(0);
        let Some(wanted) = self.wanted.remove(&key) else { return };
        assert!(
            from <= wanted.max(acked + 1),
            "the hub misses {wanted} of {stream} {epoch} and the gateway goes on with {from}"
        );
    }

    fn check_window(&self, stream: &StreamName, records: u64, bytes: u64) {
        let window = self.windows.get(stream).copied().unwrap_or_default();
        let (mut out_records, mut out_bytes) = (0, 0);
        for flight in self.flights.get(stream).into_iter().flatten() {
            let acked = self.acked.get(&(stream.clone(), flight.epoch)).copied().unwrap_or(0);
            out_records += flight.end.saturating_sub(flight.first.max(acked + 1));
            out_bytes += flight.bytes;
        }
        assert!(window.records > 0, "the hub pauses {stream} and the gateway sends");
        let is_alone = out_records == 0 && records == 1;
        let fits = out_records + records <= window.records && out_bytes + bytes <= window.bytes;
        assert!(
            fits || is_alone,
            "{records} records of {bytes} bytes go beside {out_records} of {out_bytes} bytes, \
             against the window of {stream}: {window:?}"
        );
    }
}

fn payload_bytes(body: &WireBody) -> u64 {
    match body {
        WireBody::Reading { payload: Payload::Json(json), .. } => json.len() as u64,
        WireBody::Reading { payload: Payload::Bytes(bytes), .. } => bytes.len() as u64,
        // Its stored form has no time, which the wire adds.
        WireBody::Event { .. } => 0,
    }
}
