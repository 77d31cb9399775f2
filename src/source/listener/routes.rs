//! Where a publish goes: whether the gateway wants it, and which sessions subscribed to it.
//!
//! Matching every filter against every publish would cost a busy gateway more than all else, and
//! devices publish to the same few topics: the answer is kept per topic, and forgotten when any
//! subscription changes. Pure.

use std::{collections::HashMap, sync::Arc};

use rumqttc::QoS;

use super::{
    access::{Holder, Topics},
    session::Session,
};
use crate::topic;

/// How many topics are remembered; at the bound all are forgotten and looked up anew.
const MAX_ROUTES: usize = 1024;

/// A longer topic is looked up each time.
const MAX_ROUTE_TOPIC_BYTES: usize = 256;

/// Where the publishes to one topic go.
#[derive(Debug)]
pub(super) struct Route {
    /// The gateway wants it.
    pub(super) interesting: bool,
    /// Whose the topic is.
    pub(super) holder: Holder,
    /// Sessions, each once however many of its filters match, with the highest QoS that those were
    /// granted.
    pub(super) sessions: Vec<(u64, QoS)>,
}

/// Whose the topics are and which the gateway wants, and the routes known so far.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) topics: Topics,
    known: HashMap<String, Arc<Route>>,
}

impl Routes {
    /// No route is known yet.
    pub(super) fn new(topics: Topics) -> Self {
        Self { topics, known: HashMap::new() }
    }

    /// Subscriptions changed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// The route of a topic.
    pub(super) fn find(&mut self, topic: &str, sessions: &HashMap<u64, Session>) -> Arc<Route> {
        if let Some(route) = self.known.get(topic) {
            return Arc::clone(route);
        }
        let interests = &self.topics.interests;
        let interesting = interests.iter().any(|wanted| topic::filter_matches(wanted, topic));
        let holder = self.topics.holder(topic);
        let subscribed = sessions.iter().filter_map(|(key, session)| {
            let matching = session
                .subscriptions
                .iter()
                .filter(|subscription| topic::filter_matches(&subscription.filter, topic));
            matching.map(|subscription| subscription.qos).reduce(higher).map(|qos| (*key, qos))
        });
        let route = Arc::new(Route { interesting, holder, sessions: subscribed.collect() });
        if topic.len() <= MAX_ROUTE_TOPIC_BYTES {
            if self.known.len() >= MAX_ROUTES {
                self.known.clear();
            }
            self.known.insert(topic.to_owned(), Arc::clone(&route));
        }
        route
    }
}

/// The higher of two.
pub(super) fn higher(one: QoS, other: QoS) -> QoS {
    if one >= other { one } else { other }
}

/// The lower of two.
pub(super) fn lower(one: QoS, other: QoS) -> QoS {
    if one <= other { one } else { other }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::source::listener::{access::Principal, session::Subscription};

    #[test]
    fn overlapping_filters_make_one_route_at_the_highest_qos() {
        let mut session =
            Session::new(Instant::now(), Principal::Anonymous, "a".into(), true, true);
        for (filter, qos) in [("a/#", QoS::AtMostOnce), ("a/+", QoS::AtLeastOnce)] {
            session.subscriptions.push(Subscription { filter: filter.into(), qos });
        }
        let sessions = HashMap::from([(7, session)]);
        let mut routes = Routes::new(Topics::of_defaults(&["a/b"]));
        let route = routes.find("a/b", &sessions);
        assert!(route.interesting);
        assert_eq!(route.sessions, [(7, QoS::AtLeastOnce)]);
        assert!(!routes.find("a/c", &sessions).interesting);
        routes.forget();
        assert!(routes.find("a/b", &HashMap::new()).sessions.is_empty());
    }

    #[test]
    fn the_number_of_remembered_routes_is_bounded() {
        let mut routes = Routes::new(Topics::of_defaults(&[]));
        for index in 0..MAX_ROUTES * 2 + 5 {
            routes.find(&format!("t/{index}"), &HashMap::new());
        }
        assert!(routes.known.len() <= MAX_ROUTES);
    }
}
