//! A hub for the tests of the core.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A hub that keeps to the protocol, and checks that the gateway does.
#[derive(Debug, Default)]
pub(super) struct SimHub {
    pub(super) positions: BTreeMap<(String, Epoch), u64>,
    /// The number in the payload of each record applied, in order.
    pub(super) applied: Vec<u64>,
    pub(super) statuses: BTreeMap<CommandId, Vec<State>>,
    pub(super) lost: u64,
    pause: bool,
    /// It acknowledges all, at once.
    pub(super) steady: bool,
    /// The last payload applied of each epoch, and whether one came after a later one.
    last: BTreeMap<(String, Epoch), u64>,
    pub(super) disorder: bool,
}

impl SimHub {
    pub(super) fn handle(&mut self, text: &str, random: &mut Random) -> Vec<HubMessage> {
        let Ok(Decoded::Message(message)) = from_gateway(text) else { panic!("not ours: {text}") };
        match message {
            GatewayMessage::Hello(hello) => vec![HubMessage::Welcome(self.welcome(&hello.streams))],
            GatewayMessage::Data(data) => {
                let key = (data.stream.to_string(), data.epoch);
                let next = self.positions.entry(key.clone()).or_insert(1);
                if data.seq > *next {
                    return vec![HubMessage::Error(ErrorMessage::gap(
                        data.stream,
                        data.epoch,
                        *next,
                    ))];
                }
                for (seq, record) in (data.seq..).zip(&data.records) {
                    if seq >= *next {
                        *next = seq + 1;
                        match &record.body {
                            WireBody::Reading { payload, .. } => {
                                let crate::protocol::Payload::Json(json) = payload else {
                                    panic!()
                                };
                                let number = json.parse().expect("a number");
                                let before = self.last.insert(key.clone(), number);
                                self.disorder |= before > Some(number);
                                self.applied.push(number);
                            }
                            WireBody::Event { kind, json } if kind == "command_status" => {
                                let status: crate::command::Status =
                                    serde_json::from_str(json.get()).unwrap();
                                self.statuses.entry(status.id).or_default().push(status.state);
                            }
                            WireBody::Event { .. } => {}
                        }
                    }
                }
                let acked = *next - 1;
                self.ack(data.stream, data.epoch, acked, random)
            }
            GatewayMessage::Skip(Skip { stream, epoch, from, to, .. }) => {
                let next = self.positions.entry((stream.to_string(), epoch)).or_insert(1);
                assert!(from <= *next, "a skip with a hole before it");
                self.lost += to.saturating_sub(*next);
                *next = to.max(*next);
                let acked = *next - 1;
                self.ack(stream, epoch, acked, random)
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn welcome(&mut self, held: &[crate::protocol::HeldEpoch]) -> Welcome {
        let listed: BTreeSet<(String, Epoch)> =
            held.iter().map(|held| (held.stream.to_string(), held.epoch)).collect();
        self.positions.retain(|key, _| listed.contains(key));
        let streams = held.iter().map(|held| {
            let key = (held.stream.to_string(), held.epoch);
            let next = *self.positions.entry(key).or_insert(held.first);
            let window = Some(Window { records: 50, bytes: 4000 });
            Position { stream: held.stream.clone(), epoch: held.epoch, acked: next - 1, window }
        });
        Welcome {
            session: "s".into(),
            hub: "sim".into(),
            time: None,
            limits: crate::protocol::HubLimits { batch_records: 20, ..Default::default() },
            features: Vec::new(),
            token_expires: None,
            streams: streams.collect(),
        }
    }

    fn ack(
        &mut self,
        stream: StreamName,
        epoch: Epoch,
        acked: u64,
        random: &mut Random,
    ) -> Vec<HubMessage> {
        if !self.steady && random.next().is_multiple_of(4) {
            return Vec::new();
        }
        self.pause = !self.steady && random.next().is_multiple_of(10);
        let window = Some(Window { records: if self.pause { 0 } else { 50 }, bytes: 4000 });
        let position = Position { stream, epoch, acked, window };
        vec![HubMessage::Ack(Ack { position, rejected: Vec::new() })]
    }
}
