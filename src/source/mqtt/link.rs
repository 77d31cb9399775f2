//! The books of one connection to the broker. They end with it: nothing in them means anything to
//! the next one.

use std::collections::{HashMap, VecDeque};

use rumqttc::{AsyncClient, ClientError, QoS};

use crate::source::receipts::{Ack, AckOrder};

/// The books of one connection.
pub(super) struct Link {
    pub(super) client: AsyncClient,
    pub(super) connected: bool,
    pub(super) acks: AckOrder,
    /// Commands given to the client, in order, whose sending was not seen yet.
    pub(super) unsent: VecDeque<u64>,
    /// Commands sent, by packet identifier.
    pub(super) sent: HashMap<u16, u64>,
    /// SUBACKs and UNSUBACKs that are due.
    pub(super) confirmations: usize,
    /// The filters of the SUBSCRIBE, in its order.
    pub(super) asked: Vec<String>,
}

impl Link {
    /// Nothing is connected, sent or owed yet.
    pub(super) fn new(client: AsyncClient) -> Self {
        Self {
            client,
            connected: false,
            acks: AckOrder::default(),
            unsent: VecDeque::new(),
            sent: HashMap::new(),
            confirmations: 0,
            asked: Vec::new(),
        }
    }

    /// Sends the acknowledgements that are due.
    pub(super) fn pay_acks(&mut self) {
        while let Some(ack) = self.acks.pop_due() {
            let (qos, packet_id) = match ack {
                Ack::PubAck(packet_id) => (QoS::AtLeastOnce, packet_id),
                Ack::PubRec(packet_id) => (QoS::ExactlyOnce, packet_id),
            };
            let mut publish = rumqttc::Publish::new("", qos, Vec::new());
            publish.pkid = packet_id;
            self.submit(|client| client.try_ack(&publish));
        }
    }

    /// Gives the event loop something to send. It can refuse only when it has ended, which is the
    /// next thing to be heard of it; its queue has room for all there can be.
    pub(super) fn submit(&self, request: impl FnOnce(&AsyncClient) -> Result<(), ClientError>) {
        if request(&self.client).is_err() {
            tracing::debug!("mqtt: the connection ended before a request");
        }
    }
}
