//! Which gateways are connected, and how their sessions are reached.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, watch};

use super::engine::SessionId;

/// An order to a session that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// None yet.
    Stay,
    /// A newer session of the gateway took over.
    TakenOver,
}

/// What a session listens to.
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) order: watch::Receiver<Order>,
    /// Commands or cancels may wait in the store.
    pub(super) commands: Arc<Notify>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    order: watch::Sender<Order>,
    commands: Arc<Notify>,
}

/// The newest session of each connected gateway.
#[derive(Debug, Default)]
pub(super) struct Presence {
    sessions: Mutex<HashMap<Arc<str>, Entry>>,
}

impl Presence {
    /// A session said `hello`; an older one of the same gateway is told to go.
    pub(super) fn enter(&self, id: &SessionId) -> Orders {
        let (order, listen) = watch::channel(Order::Stay);
        let commands = Arc::new(Notify::new());
        let mut sessions = self.sessions();
        if sessions.get(&id.gateway).is_some_and(|newest| newest.number > id.number) {
            // Its connection is older, although its hello came later.
            order.send_replace(Order::TakenOver);
            return Orders { order: listen, commands };
        }
        let entry = Entry { number: id.number, order, commands: commands.clone() };
        if let Some(older) = sessions.insert(id.gateway.clone(), entry) {
            older.order.send_replace(Order::TakenOver);
        }
        Orders { order: listen, commands }
    }

    /// A session ended; `true` when it was its gateway's newest.
    pub(super) fn leave(&self, id: &SessionId) -> bool {
        let mut sessions = self.sessions();
        let is_newest = sessions.get(&id.gateway).is_some_and(|entry| entry.number == id.number);
        if is_newest {
            sessions.remove(&id.gateway);
        }
        is_newest
    }

    /// Commands or cancels wait for this gateway.
    pub(super) fn wake(&self, gateway: &str) {
        if let Some(entry) = self.sessions().get(gateway) {
            entry.commands.notify_one();
        }
    }

    /// Whether this gateway is connected.
    pub(super) fn has(&self, gateway: &str) -> bool {
        self.sessions().contains_key(gateway)
    }

    /// How many gateways are connected.
    pub(super) fn count(&self) -> usize {
        self.sessions().len()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
