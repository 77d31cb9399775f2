//! Drives rumqttc's event loop over one connection.

use std::{collections::BTreeSet, mem};

use rumqttc::{
    ConnectReturnCode, ConnectionError, Event, EventLoop, Packet, Publish, QoS, StateError,
};
use tokio::sync::mpsc;

/// How long DNS, TCP, TLS and CONNECT may take together, and how long a flush, in seconds.
const NETWORK_TIMEOUT_S: u64 = 10;

/// What the event loop says.
pub(super) enum Heard {
    /// Something came in or went out.
    Event(Event),
    /// The connection has ended, and the loop with it.
    Lost {
        /// For a person.
        fault: String,
        /// A QoS 2 packet identifier that the broker released and rumqttc did not know.
        released: Option<u16>,
    },
}

/// Polls until the connection is lost. A full `heard` stops the polling, and thereby the reading.
///
/// `released`: a PUBREL that comes on another connection than its PUBLISH is an error to rumqttc,
/// which would end every connection from then on. The next one is told of the identifier first.
pub(super) async fn poll(
    mut eventloop: EventLoop,
    released: BTreeSet<u16>,
    heard: mpsc::Sender<Heard>,
) {
    eventloop.network_options.set_tcp_nodelay(true);
    eventloop.network_options.set_connection_timeout(NETWORK_TIMEOUT_S);
    loop {
        match eventloop.poll().await {
            Ok(event) => {
                if let Event::Incoming(Packet::ConnAck(_)) = event {
                    released.iter().for_each(|id| expect_release(&mut eventloop, *id));
                }
                if heard.send(Heard::Event(event)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // What happened before the error and was not yielded yet. QoS 1 and 2 publishes
                // come again.
                for event in mem::take(&mut eventloop.state.events) {
                    let again = matches!(
                        &event,
                        Event::Incoming(Packet::Publish(publish)) if publish.qos != QoS::AtMostOnce
                    );
                    if !again && heard.send(Heard::Event(event)).await.is_err() {
                        return;
                    }
                }
                let released = match &error {
                    ConnectionError::MqttState(StateError::Unsolicited(id)) => Some(*id),
                    _ => None,
                };
                // Without a listener nobody wants to know.
                let _ = heard.send(Heard::Lost { fault: describe(&error), released }).await;
                return;
            }
        }
    }
}

fn expect_release(eventloop: &mut EventLoop, packet_id: u16) {
    let mut publish = Publish::new("", QoS::ExactlyOnce, Vec::new());
    publish.pkid = packet_id;
    let known = eventloop.state.handle_incoming_packet(Packet::Publish(publish));
    if known.is_ok() {
        eventloop.state.events.pop_back();
    }
}

fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => {
            "the broker refuses the credentials; check mqtt.username and mqtt.password_file".into()
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadClientId) => {
            "the broker refuses the client identifier; set mqtt.client_id".into()
        }
        ConnectionError::NetworkTimeout => {
            format!("no answer within {NETWORK_TIMEOUT_S} s; check mqtt.url and the network")
        }
        ConnectionError::Io(error) => format!("{error}; is the broker running there?"),
        other => other.to_string(),
    }
}
