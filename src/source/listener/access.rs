//! Who a client is, and what it may publish and hear.
//!
//! A topic has one holder, which the configuration says: the device that a `[[telemetry]]` topic or
//! the reply topic yields, or the gateway, whose the command topics are. A device publishes what is
//! its own, and hears its own commands; a filter that could match anything else is refused, however
//! many wildcards it is made of. A service, and whoever is let in without a name, publishes and
//! hears what it likes, but nobody publishes a command.
//!
//! Pure.

use std::sync::Arc;

use crate::{
    config::{self, Config},
    topic::{self, Template},
};

/// Who a client is, once it was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Principal {
    /// It did not say, and need not.
    Anonymous,
    /// A device, by its name.
    Device(Arc<str>),
    /// A program that speaks for devices, by its name.
    Service(Arc<str>),
}

impl Principal {
    /// Its proven name.
    pub(super) fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Anonymous => None,
            Self::Device(name) | Self::Service(name) => Some(name),
        }
    }
}

/// Whose a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// This device's.
    Device(Box<str>),
    /// Any device's: a reply that only the command's id says the meaning of.
    AnyDevice,
    /// The gateway's alone.
    Gateway,
    /// No device's.
    Nobody,
}

impl Holder {
    /// Whether this client may publish there.
    pub(super) fn admits(&self, client: &Principal) -> bool {
        match (self, client) {
            (Self::Gateway, _) => false,
            (_, Principal::Anonymous | Principal::Service(_)) => true,
            (Self::AnyDevice, Principal::Device(_)) => true,
            (Self::Device(holder), Principal::Device(name)) => **holder == **name,
            (Self::Nobody, Principal::Device(_)) => false,
        }
    }
}

/// What the listener has to know of the configuration's topics.
#[derive(Debug, Clone)]
pub struct Topics {
    /// The filters of what goes to the gateway.
    pub(super) interests: Vec<String>,
    telemetry: Vec<config::Telemetry>,
    commands: Template,
    reply: Template,
    gateway: String,
}

impl Topics {
    /// `interests` are the filters of what goes to the gateway, whose id is `gateway`.
    pub fn new(interests: Vec<String>, config: &Config, gateway: &str) -> Self {
        Self {
            interests,
            telemetry: config.telemetry.clone(),
            commands: config.commands.topic.clone(),
            reply: config.commands.reply.clone(),
            gateway: gateway.into(),
        }
    }

    /// The default topics, and these interests.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_defaults(interests: &[&str]) -> Self {
        let file = std::path::Path::new("/fieldgate.toml");
        let config = Config::from_text("[listener]", file, std::iter::empty());
        let interests = interests.iter().map(|filter| (*filter).to_owned()).collect();
        Self::new(interests, &config.expect("it is valid"), "gw-1")
    }

    /// Whose a topic is.
    pub(super) fn holder(&self, name: &str) -> Holder {
        let reply = self.reply.matches(name);
        let telemetry = (self.telemetry.iter())
            .find_map(|rule| rule.topic.matches(name).map(|captures| (rule, captures)));
        if self.commands.matches(name).is_some() {
            // A command topic, unless one that says more of it takes it out of them.
            let commands = self.commands.filter();
            let says_more = |of: &Template| !topic::filter_covers(&of.filter(), &commands);
            let is_reply = reply.is_some() && says_more(&self.reply);
            if !is_reply && !telemetry.is_some_and(|(rule, _)| says_more(&rule.topic)) {
                return Holder::Gateway;
            }
        }
        match (reply, telemetry) {
            (Some(captures), _) => match captures.get("device") {
                Some(device) => Holder::Device(device.into()),
                None => Holder::AnyDevice,
            },
            (None, Some((rule, captures))) => {
                let device = captures.get("device").or(rule.device.as_deref());
                Holder::Device(device.unwrap_or(&self.gateway).into())
            }
            // Those are the server's, and this one has none (MQTT-4.7.2).
            (None, None) if name.starts_with('$') => Holder::Gateway,
            (None, None) => Holder::Nobody,
        }
    }

    /// Whether a client may subscribe to a filter.
    pub(super) fn may_hear(&self, client: &Principal, filter: &str) -> bool {
        match client {
            Principal::Anonymous | Principal::Service(_) => true,
            Principal::Device(name) => {
                topic::filter_covers(&self.commands.filter_of_device(name), filter)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(text: &str) -> Topics {
        let file = std::path::Path::new("/fieldgate.toml");
        let text = format!("[listener]\n{text}");
        let config = Config::from_text(&text, file, std::iter::empty()).unwrap();
        Topics::new(Vec::new(), &config, "gw-1")
    }

    #[test]
    fn a_topic_has_one_holder() {
        let device = |name: &str| Holder::Device(name.into());
        let of_default = topics("");
        for (name, holder) in [
            ("devices/a/telemetry", device("a")),
            ("devices/a/replies/7", device("a")),
            ("devices/a/commands/open", Holder::Gateway),
            ("devices/a/commands/open/now", Holder::Nobody),
            ("devices/a/state", Holder::Nobody),
            ("$SYS/broker/uptime", Holder::Gateway),
            ("devices/../telemetry", device("..")),
        ] {
            assert_eq!(of_default.holder(name), holder, "{name}");
        }
        let of_others = topics(
            "[[telemetry]]\ntopic = 'heating/#'\ndevice = 'boiler'\n\
             [[telemetry]]\ntopic = 'meter/+'\n[[telemetry]]\ntopic = 'd/{device}/#'\n\
             [commands]\ntopic = 'd/{device}/{command}'\nreply = 'replies/{id}'",
        );
        for (name, holder) in [
            ("heating/a/b", device("boiler")),
            ("meter/1", device("gw-1")),
            ("d/a/x/y", device("a")),
            ("d/a/open", Holder::Gateway),
            ("replies/7", Holder::AnyDevice),
        ] {
            assert_eq!(of_others.holder(name), holder, "{name}");
        }
        let telemetry = "[[telemetry]]\ntopic = 'd/{device}/t'\n";
        let says_more =
            topics(&format!("{telemetry}[commands]\ntopic = 'd/{{device}}/{{command}}'"));
        assert_eq!(says_more.holder("d/a/t"), device("a"));
        assert_eq!(says_more.holder("d/a/open"), Holder::Gateway);
    }

    #[test]
    fn a_device_publishes_its_own_and_nobody_a_command() {
        let topics = topics("");
        let a = Principal::Device("a".into());
        let (service, anonymous) = (Principal::Service("s".into()), Principal::Anonymous);
        for (name, of_a, of_others) in [
            ("devices/a/telemetry", true, true),
            ("devices/b/telemetry", false, true),
            ("devices/b/replies/7", false, true),
            ("devices/a/commands/open", false, false),
            ("anything", false, true),
        ] {
            let holder = topics.holder(name);
            assert_eq!(holder.admits(&a), of_a, "{name}");
            assert_eq!(holder.admits(&service), of_others, "{name}");
            assert_eq!(holder.admits(&anonymous), of_others, "{name}");
        }
    }

    #[test]
    fn a_device_hears_its_own_commands_whatever_wildcards_it_asks_with() {
        let topics = topics("");
        let a = Principal::Device("a".into());
        for filter in ["devices/a/commands/#", "devices/a/commands/+", "devices/a/commands/open"] {
            assert!(topics.may_hear(&a, filter), "{filter}");
        }
        for filter in [
            "#",
            "+/#",
            "devices/#",
            "devices/+/commands/#",
            "devices/+/commands/open",
            "devices/b/commands/#",
            "devices/a/#",
            "devices/a/+/open",
            "devices/a/telemetry",
            "devices/ab/commands/#",
            "$SYS/#",
            "/devices/a/commands/#",
        ] {
            assert!(!topics.may_hear(&a, filter), "{filter}");
            assert!(topics.may_hear(&Principal::Service("s".into()), filter), "{filter}");
        }
    }
}
