//! Any bytes as what a client sends: what must hold whatever they are.

use std::{collections::VecDeque, time::Instant};

use bytes::BytesMut;
use rumqttc::{Packet, QoS, Subscribe, mqttbytes::v4};

use super::{
    access::{Holder, Principal, Topics},
    broker::{Broker, End},
    wire::{self, MAX_PACKET_BYTES},
};
use crate::{identity::is_user_name, record::SourceId, source::Notice};

const CONNECTION: u64 = 1;

/// A connection on which a client sends `bytes`, and an observer that hears all that it may.
///
/// # Panics
/// When the broker writes what is no packet, forgets a publish that it owes an acknowledgement for,
/// or takes a command, or a publish in the name of another device than the client's own.
pub fn client(bytes: &[u8]) {
    let now = Instant::now();
    let mut broker = Broker::new(SourceId(0), Topics::of_defaults(&["devices/#"]), 4, 3);
    observe(&mut broker, now);
    let mut buffer = BytesMut::from(bytes);
    let Ok(Some(mut connect)) = wire::take_connect(&mut buffer) else { return };
    // Whoever says a name is believed here, and held to it.
    let name = connect.login.take().map(|login| login.user).filter(|name| is_user_name(name));
    let own = name.as_ref().map(|name| format!("devices/{name}/"));
    let principal = name.map_or(Principal::Anonymous, |name| Principal::Device(name.into()));
    if broker.handle_connect(now, CONNECTION, connect, principal).is_err() {
        return;
    }
    let mut heard = VecDeque::new();
    // Each packet takes at least two bytes, so that this ends.
    while let Ok(Some(packet)) = wire::take_packet(&mut buffer) {
        assert!(buffer.len() < bytes.len(), "a packet of no bytes");
        if !broker.may_read(CONNECTION) {
            broker.take_heard(&mut heard);
            for publish in heard.drain(..) {
                let is_own = own.as_ref().is_none_or(|own| publish.topic.starts_with(own));
                let is_command = broker.routes.topics.holder(&publish.topic) == Holder::Gateway;
                assert!(is_own && !is_command, "{}", publish.topic);
                publish.receipt.into_iter().for_each(|receipt| broker.handle_safe(receipt));
            }
            take_all(&mut broker);
            for notice in broker.take_notices() {
                if let Notice::Refused { receipt: Some(receipt), .. } = notice {
                    broker.handle_safe(receipt);
                }
            }
        }
        if broker.handle_packet(CONNECTION, packet).is_err() {
            break;
        }
    }
    take_all(&mut broker);
    broker.handle_end(now, CONNECTION, End::Lost);
    take_all(&mut broker);
}

fn observe(broker: &mut Broker, now: Instant) {
    let connect = wire::Connect {
        client_id: "observer".into(),
        clean_session: true,
        keep_alive: 0,
        will: None,
        login: None,
    };
    let service = Principal::Service("observer".into());
    broker.handle_connect(now, 0, connect, service).expect("there is room for a first client");
    let mut subscribe = Subscribe::new("#", QoS::AtLeastOnce);
    subscribe.pkid = 1;
    broker.handle_packet(0, Packet::Subscribe(subscribe)).expect("a valid filter");
}

fn take_all(broker: &mut Broker) {
    for connection in [0, CONNECTION] {
        let mut written = BytesMut::new();
        if !broker.take_output(connection, &mut written) {
            continue;
        }
        broker.handle_written(connection);
        while !written.is_empty() {
            Packet::read(&mut written, 2 * MAX_PACKET_BYTES).expect("whole packets only");
        }
    }
}

/// Sessions to begin with: a client that doesn't say who it is, one that does, and one that does
/// and oversteps.
pub fn sessions() -> Vec<Vec<u8>> {
    let mut anonymous = v4::Connect::new("plc-01");
    anonymous.last_will = Some(v4::LastWill::new("devices/x", "gone", QoS::AtLeastOnce, true));
    let mut named = v4::Connect::new("esp-1");
    named.set_login("plc-01", "canary");
    let own = "devices/plc-01/telemetry";
    named.last_will = Some(v4::LastWill::new(own, "gone", QoS::AtLeastOnce, false));
    let mut other = v4::Connect::new("esp-1");
    other.set_login("plc-02", "canary");
    [anonymous, named, other].map(session).into()
}

fn session(connect: v4::Connect) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let mut publish = v4::Publish::new("devices/plc-01/telemetry", QoS::AtLeastOnce, "{\"n\":1}");
    publish.pkid = 7;
    let mut exactly = v4::Publish::new("t/x", QoS::ExactlyOnce, "kept");
    (exactly.pkid, exactly.retain) = (8, true);
    let mut subscribe = v4::Subscribe::new("devices/+/commands/#", QoS::AtLeastOnce);
    subscribe.pkid = 9;
    let mut own_commands = v4::Subscribe::new("devices/plc-01/commands/#", QoS::AtLeastOnce);
    own_commands.pkid = 10;
    connect.write(&mut bytes).expect("a valid packet");
    subscribe.write(&mut bytes).expect("a valid packet");
    publish.write(&mut bytes).expect("a valid packet");
    exactly.write(&mut bytes).expect("a valid packet");
    own_commands.write(&mut bytes).expect("a valid packet");
    v4::PubRel::new(8).write(&mut bytes).expect("a valid packet");
    v4::PingReq.write(&mut bytes).expect("a valid packet");
    v4::Disconnect.write(&mut bytes).expect("a valid packet");
    bytes.to_vec()
}
