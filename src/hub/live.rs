//! What happens, shown to whoever watches, while it happens.
//!
//! Each watcher has a queue of its own. One that reads too slowly loses messages, and is told how
//! many; it never slows a gateway. What is missing can be read from `records?after=`, for each
//! record carries its id.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{
    engine::{StatusChange, device_of_event},
    session::Stored,
    view::{self, RecordView},
};
use crate::protocol::WireBody;

/// How many messages may wait for a watcher; more are counted as missed.
const QUEUE: usize = 2048;

/// How many bytes may wait for a watcher; more are counted as missed.
const QUEUE_BYTES: usize = 2 << 20;

/// How many subscriptions a watcher may have.
pub(super) const MAX_SUBSCRIPTIONS: usize = 64;

/// Which gateways, devices and streams; `None` and `*` are all.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    pub(super) gateway: Option<String>,
    pub(super) device: Option<String>,
    pub(super) stream: Option<String>,
}

impl Filter {
    fn passes(&self, gateway: &str, device: Option<&str>, stream: Option<&str>) -> bool {
        let passes = |wanted: &Option<String>, given: Option<&str>| match (wanted.as_deref(), given)
        {
            (None | Some("*"), _) => true,
            (Some(wanted), Some(given)) => wanted == given,
            // Whoever asked for one device is told of its gateway too.
            (Some(_), None) => true,
        };
        passes(&self.gateway, Some(gateway))
            && passes(&self.device, device)
            && passes(&self.stream, stream)
    }
}

/// All watchers.
#[derive(Debug, Default)]
pub(super) struct Live {
    watchers: RwLock<Vec<Arc<Watcher>>>,
    count: AtomicUsize,
    next: AtomicU64,
}

/// One watcher's side of its queue.
#[derive(Debug)]
struct Watcher {
    number: u64,
    subscriptions: RwLock<Vec<(String, Filter)>>,
    queue: mpsc::Sender<Utf8Bytes>,
    load: Arc<Load>,
}

#[derive(Debug, Default)]
struct Load {
    bytes: AtomicUsize,
    missed: AtomicU64,
}

/// A watcher's own side. Dropped, the watcher is gone.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    live: &'a Live,
    watcher: Arc<Watcher>,
    queue: mpsc::Receiver<Utf8Bytes>,
}

impl Live {
    /// A new watcher, subscribed to nothing.
    pub(super) fn watch(&self) -> Watch<'_> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let watcher = Arc::new(Watcher {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            subscriptions: RwLock::default(),
            queue: sender,
            load: Arc::default(),
        });
        let mut watchers = self.watchers.write().unwrap_or_else(PoisonError::into_inner);
        watchers.push(watcher.clone());
        self.count.store(watchers.len(), Ordering::Relaxed);
        drop(watchers);
        Watch { live: self, watcher, queue }
    }

    /// Shows records that became durable.
    pub(super) fn show_stored(&self, gateway: &str, stored: &Stored) {
        if self.is_unwatched() {
            return;
        }
        let data = &stored.data;
        let mut id = stored.first_id;
        for (seq, record) in (data.seq..).zip(&data.records) {
            let taken = seq >= stored.new_from
                && !stored.rejected.iter().any(|(rejected, _)| *rejected == seq);
            if !taken {
                continue;
            }
            let named = match &record.body {
                WireBody::Event { json, .. } => device_of_event(json.get()),
                WireBody::Reading { .. } => String::new(),
            };
            let device = match &record.body {
                WireBody::Reading { device, .. } => device.as_str(),
                WireBody::Event { .. } => &named,
            };
            self.show(gateway, Some(device), Some(data.stream.as_str()), || {
                let view = RecordView::of_wire(gateway, data, record, device, (id, seq));
                serde_json::to_string(&view).expect("a record has string keys only")
            });
            id += 1;
        }
    }

    /// Shows states that commands reached.
    pub(super) fn show_statuses(&self, statuses: &[StatusChange]) {
        if self.is_unwatched() {
            return;
        }
        for change in statuses {
            let message = || view::status_change(change).to_string();
            self.show(&change.gateway, Some(&change.device), None, message);
        }
    }

    /// Shows that a gateway came or went.
    pub(super) fn show_gateway(&self, gateway: &str, connected: bool) {
        let message =
            || json!({"type": "gateway", "id": gateway, "connected": connected}).to_string();
        self.show(gateway, None, None, message);
    }

    fn is_unwatched(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Encodes a message once, if anybody wants it.
    fn show(
        &self,
        gateway: &str,
        device: Option<&str>,
        stream: Option<&str>,
        encode: impl FnOnce() -> String,
    ) {
        let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
        let mut interested =
            watchers.iter().filter(|watcher| watcher.wants(gateway, device, stream)).peekable();
        if interested.peek().is_none() {
            return;
        }
        let message = Utf8Bytes::from(encode());
        interested.for_each(|watcher| watcher.push(&message));
    }
}

impl Watcher {
    fn wants(&self, gateway: &str, device: Option<&str>, stream: Option<&str>) -> bool {
        let subscriptions = self.subscriptions.read().unwrap_or_else(PoisonError::into_inner);
        subscriptions.iter().any(|(_, filter)| filter.passes(gateway, device, stream))
    }

    fn push(&self, message: &Utf8Bytes) {
        let waiting = self.load.bytes.fetch_add(message.len(), Ordering::Relaxed);
        let fits = waiting + message.len() <= QUEUE_BYTES;
        if !fits || self.queue.try_send(message.clone()).is_err() {
            self.load.bytes.fetch_sub(message.len(), Ordering::Relaxed);
            self.load.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Watch<'_> {
    /// Adds a subscription, or replaces the one of this name; `false` at the bound.
    pub(super) fn subscribe(&self, name: String, filter: Filter) -> bool {
        let mut subscriptions =
            self.watcher.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        subscriptions.retain(|(known, _)| *known != name);
        let fits = subscriptions.len() < MAX_SUBSCRIPTIONS;
        if fits {
            subscriptions.push((name, filter));
        }
        fits
    }

    /// Removes a subscription; `false` when there is none of this name.
    pub(super) fn unsubscribe(&self, name: &str) -> bool {
        let mut subscriptions =
            self.watcher.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        let before = subscriptions.len();
        subscriptions.retain(|(known, _)| known != name);
        subscriptions.len() < before
    }

    /// The next message; what was missed is told at once. Can be cancelled without a loss.
    pub(super) async fn next(&mut self) -> Option<Utf8Bytes> {
        let missed = self.watcher.load.missed.swap(0, Ordering::Relaxed);
        if missed > 0 {
            return Some(json!({"type": "lagged", "missed": missed}).to_string().into());
        }
        let message = self.queue.recv().await?;
        self.watcher.load.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        Some(message)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watchers = self.live.watchers.write().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.number != self.watcher.number);
        self.live.count.store(watchers.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(gateway: Option<&str>) -> Filter {
        Filter { gateway: gateway.map(Into::into), ..Filter::default() }
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_how_many_it_missed() {
        let live = Live::default();
        let mut watch = live.watch();
        assert!(watch.subscribe("a".into(), filter(None)));
        for _ in 0..QUEUE + 7 {
            live.show_gateway("gw", true);
        }
        assert_eq!(watch.next().await.unwrap().as_str(), r#"{"missed":7,"type":"lagged"}"#);
        for _ in 0..QUEUE {
            assert!(watch.next().await.unwrap().contains("gateway"));
        }
        live.show_gateway("gw", false);
        assert!(watch.next().await.unwrap().contains("false"), "and goes on");
    }

    #[tokio::test]
    async fn a_watcher_sees_what_it_subscribed_to() {
        let live = Live::default();
        let mut watch = live.watch();
        live.show_gateway("gw", true);
        watch.subscribe("a".into(), filter(Some("other")));
        live.show_gateway("gw", true);
        watch.subscribe("b".into(), filter(Some("*")));
        live.show_gateway("seen", true);
        assert!(watch.next().await.unwrap().contains("seen"));
        assert!(watch.unsubscribe("b") && !watch.unsubscribe("b"));
        for number in 0..MAX_SUBSCRIPTIONS {
            assert_eq!(
                watch.subscribe(number.to_string(), filter(None)),
                number < MAX_SUBSCRIPTIONS - 1
            );
        }
        drop(watch);
        assert!(live.is_unwatched());
    }
}
