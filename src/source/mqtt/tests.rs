//! Against a real mosquitto.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use rumqttc::EventLoop;
use tempfile::TempDir;

use super::*;
use crate::record::SourceId;

const PATIENCE: Duration = Duration::from_secs(30);

/// A mosquitto that keeps its sessions over a restart.
struct Mosquitto {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl Mosquitto {
    fn start(extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = folder.path().display();
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
             persistence_location {place}/\nlog_dest stderr\nlog_type all\nuser root\n{extra}\n"
        );
        std::fs::write(folder.path().join("conf"), config).unwrap();
        let child = run(folder.path());
        Self { folder, port, child }
    }

    /// Stops it in order, so that it saves its sessions.
    fn stop(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = run(self.folder.path());
    }

    fn config(&self) -> config::Mqtt {
        config(self.port)
    }

    fn device(&self, name: &str) -> (AsyncClient, EventLoop) {
        AsyncClient::new(MqttOptions::new(name, "127.0.0.1", self.port), 100)
    }

    /// Publishes at QoS 1 and waits for the broker's PUBACKs.
    async fn publish(&self, topic: &str, payloads: &[&str], retain: bool) {
        let (client, mut eventloop) = self.device("publisher");
        for payload in payloads {
            client.try_publish(topic, QoS::AtLeastOnce, retain, *payload).unwrap();
        }
        for _ in payloads {
            until(&mut eventloop, |packet| matches!(packet, Packet::PubAck(_))).await;
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have been stopped before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(port: u16) -> config::Mqtt {
    config::Mqtt {
        tls: false,
        host: "127.0.0.1".into(),
        port,
        client_id: None,
        credentials: None,
        ca_file: None,
        client_cert: None,
        keep_alive: Duration::from_secs(30),
        max_inflight: 3,
    }
}

/// Starts it and waits until it says that it runs; from then on its words are thrown away.
fn run(folder: &Path) -> Child {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let mut child = Command::new("mosquitto")
        .arg("-c")
        .arg(folder.join("conf"))
        .env("PATH", path)
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need a broker: apt-get install mosquitto");
    let mut words = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(" running") {
        let before = said.len();
        words.read_line(&mut said).unwrap();
        assert!(said.len() > before, "mosquitto ended: {said}");
    }
    std::thread::spawn(move || {
        let mut sink = std::io::sink();
        let _ = std::io::copy(&mut words, &mut sink);
        sink.flush()
    });
    child
}

async fn until(eventloop: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Packet {
    let found = async {
        loop {
            match eventloop.poll().await.unwrap() {
                Event::Incoming(packet) if wanted(&packet) => return packet,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap()
}

/// A source under test, and what it says.
struct Bench {
    running: Running,
    publishes: mpsc::Receiver<Publish>,
    notices: mpsc::Receiver<Notice>,
}

impl Bench {
    fn start(config: &config::Mqtt, folder: &Path, interests: &[&str]) -> Self {
        let (publishes_in, publishes) = mpsc::channel(8);
        let (notices_in, notices) = mpsc::channel(64);
        let sink = Sink { source: SourceId(0), publishes: publishes_in, notices: notices_in };
        let interests = interests.iter().map(|filter| (*filter).to_owned()).collect();
        let running = start(config, "gw-1", interests, None, folder.join("subscriptions"), sink);
        Self { running, publishes, notices }
    }

    async fn hear(&mut self) -> (String, Publish) {
        let publish = timeout(PATIENCE, self.publishes.recv()).await.unwrap().unwrap();
        (String::from_utf8(publish.payload.to_vec()).unwrap(), publish)
    }

    /// Waits for a notice that contains the text.
    async fn notice(&mut self, wanted: &str) -> String {
        loop {
            let notice = timeout(PATIENCE, self.notices.recv()).await.unwrap().unwrap();
            let text = format!("{notice:?}");
            if text.contains(wanted) {
                return text;
            }
        }
    }

    fn ask(&self, request: Request) {
        self.running.requests.send(request).unwrap();
    }

    fn deliver(&self, token: u64) {
        let topic = "cmd/plc-01".to_owned();
        self.ask(Request::Deliver(Delivery { token, topic, payload: "{}".into() }));
    }

    async fn stop(self) {
        self.ask(Request::Stop);
        timeout(PATIENCE, self.running.task).await.unwrap().unwrap();
    }

    /// Ends it without a word, like a crash.
    async fn crash(self) {
        self.running.task.abort();
        assert!(self.running.task.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test]
async fn what_was_not_safe_comes_again_after_a_crash_and_nothing_is_subscribed_twice() {
    let mosquitto = Mosquitto::start("max_inflight_messages 3");
    let folder = tempfile::tempdir().unwrap();
    mosquitto.publish("devices/a/state", &["kept"], true).await;
    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["devices/#"]);
    let (text, kept) = bench.hear().await;
    assert_eq!((text.as_str(), kept.retained), ("kept", true));
    bench.ask(Request::Safe(kept.receipt.unwrap()));
    bench.notice("subscribed").await;

    mosquitto.publish("devices/a/t", &["1", "2", "3", "4"], false).await;
    bench.notice("Exhausted").await;
    let first = bench.hear().await.1;
    let second = bench.hear().await.1;
    assert_eq!(bench.hear().await.0, "3");
    bench.ask(Request::Safe(second.receipt.unwrap()));
    bench.ask(Request::Safe(first.receipt.unwrap()));
    assert_eq!(bench.hear().await.0, "4", "the window moved on after two PUBACKs");
    bench.crash().await;

    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["devices/#"]);
    bench.notice("session resumed").await;
    for expected in ["3", "4"] {
        let (text, publish) = bench.hear().await;
        assert_eq!((text.as_str(), publish.retained), (expected, false));
        bench.ask(Request::Safe(publish.receipt.unwrap()));
    }
    mosquitto.publish("devices/a/t", &["5"], false).await;
    assert_eq!(bench.hear().await.0, "5", "no retained message came again");
    bench.stop().await;
}

#[tokio::test]
async fn a_stop_sends_the_acknowledgements_that_are_due() {
    let mosquitto = Mosquitto::start("");
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["devices/#"]);
    bench.notice("subscribed").await;
    mosquitto.publish("devices/a/t", &["1", "2"], false).await;
    let receipt = bench.hear().await.1.receipt.unwrap();
    bench.ask(Request::Safe(receipt));
    bench.stop().await;
    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["devices/#"]);
    assert_eq!(bench.hear().await.0, "2");
    bench.stop().await;
}

#[tokio::test]
async fn filters_that_changed_are_subscribed_and_unsubscribed() {
    let mosquitto = Mosquitto::start("");
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["old/#", "both/#"]);
    bench.notice("subscribed").await;
    bench.stop().await;
    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["both/#", "new/#"]);
    bench.notice("subscribed").await;
    for topic in ["old/x", "both/x", "new/x"] {
        mosquitto.publish(topic, &[topic], false).await;
    }
    assert_eq!((bench.hear().await.0, bench.hear().await.0), ("both/x".into(), "new/x".into()));
    bench.stop().await;
}

#[tokio::test]
async fn a_command_is_delivered_or_said_not_to_be_and_the_source_comes_back() {
    let mut mosquitto = Mosquitto::start("");
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["devices/#"]);
    bench.deliver(1);
    bench.notice("Undelivered { token: 1 }").await;
    bench.notice("subscribed").await;
    let (client, mut eventloop) = mosquitto.device("plc-01");
    client.try_subscribe("cmd/#", QoS::AtLeastOnce).unwrap();
    until(&mut eventloop, |packet| matches!(packet, Packet::SubAck(_))).await;
    bench.deliver(2);
    until(&mut eventloop, |packet| matches!(packet, Packet::Publish(_))).await;
    bench.notice("Delivered { token: 2 }").await;

    mosquitto.publish("devices/a", &["unsafe"], false).await;
    let stale = bench.hear().await.1.receipt.unwrap();
    mosquitto.stop();
    bench.notice("up: false").await;
    bench.deliver(3);
    bench.notice("Undelivered { token: 3 }").await;
    mosquitto.restart();
    bench.notice("session resumed").await;
    bench.ask(Request::Safe(stale));
    let (text, again) = bench.hear().await;
    assert_eq!(text, "unsafe", "its receipt was of the earlier connection");
    assert_ne!(again.receipt, Some(stale));
    bench.stop().await;
}

#[tokio::test]
async fn refused_credentials_and_a_missing_password_file_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    std::fs::write(&users, "").unwrap();
    let extra = format!("allow_anonymous false\npassword_file {}", users.display());
    let mosquitto = Mosquitto::start(&extra);
    let mut config = mosquitto.config();
    let mut bench = Bench::start(&config, folder.path(), &["devices/#"]);
    bench.notice("refuses the credentials; check mqtt.username").await;
    bench.stop().await;
    config.credentials = Some(("gw".into(), folder.path().join("absent")));
    let mut bench = Bench::start(&config, folder.path(), &["devices/#"]);
    bench.notice("mqtt.password_file: ").await;
    bench.stop().await;
}

#[tokio::test]
async fn a_refused_subscription_is_loud() {
    let folder = tempfile::tempdir().unwrap();
    // mosquitto checks its access list when it delivers, not at SUBSCRIBE, so the refusal is given
    // by hand.
    let (notices_in, mut notices) = mpsc::channel(8);
    let (publishes, _) = mpsc::channel(1);
    let sink = Sink { source: SourceId(0), publishes, notices: notices_in };
    let state = folder.path().join("subscriptions");
    let mut source = Source {
        config: config(1883),
        session: 0,
        client_id: "gw".into(),
        broker: "b:1883".into(),
        tls: None,
        subscriptions: Subscriptions::load(state, "gw".into(), vec!["a/#".into(), "b/#".into()]),
        sink,
        connection: 1,
        backlog: VecDeque::new(),
        told: None,
        released: BTreeSet::new(),
    };
    let (client, _eventloop) = AsyncClient::new(source.options().unwrap(), 10);
    let mut link = Link::new(client);
    source.subscribe(&mut link, false).await;
    let codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce), SubscribeReasonCode::Failure];
    let suback = Packet::SubAck(rumqttc::SubAck::new(1, codes));
    source.handle_event(&mut link, Event::Incoming(suback)).await.unwrap();
    let told = format!("{:?}", notices.recv().await);
    assert!(told.contains("refuses the subscription to b/#; allow it"), "{told}");
    assert_eq!(source.subscriptions.changes().0.len(), 2, "nothing counts as confirmed");
}

#[tokio::test]
async fn a_qos_2_publish_is_released_on_a_later_connection() {
    // Another program may have left the session with a QoS 2 subscription. rumqttc ends the
    // connection at a PUBREL whose PUBLISH came on an earlier one, and mosquitto sends that PUBREL
    // on every connection: a loop for ever.
    let mosquitto = Mosquitto::start("");
    let mut options = MqttOptions::new("fieldgate-gw-1", "127.0.0.1", mosquitto.port);
    options.set_clean_session(false).set_manual_acks(true);
    let (client, mut eventloop) = AsyncClient::new(options, 10);
    client.try_subscribe("devices/#", QoS::ExactlyOnce).unwrap();
    until(&mut eventloop, |packet| matches!(packet, Packet::SubAck(_))).await;
    let (sender, mut sending) = mosquitto.device("sender");
    sender.try_publish("devices/a", QoS::ExactlyOnce, false, "x").unwrap();
    until(&mut sending, |packet| matches!(packet, Packet::PubComp(_))).await;
    let Packet::Publish(publish) =
        until(&mut eventloop, |packet| matches!(packet, Packet::Publish(_))).await
    else {
        unreachable!()
    };
    client.try_ack(&publish).unwrap();
    while !matches!(eventloop.poll().await.unwrap(), Event::Outgoing(Outgoing::PubRec(_))) {}
    drop(eventloop);

    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(&mosquitto.config(), folder.path(), &["devices/#"]);
    bench.notice("subscribed").await;
    mosquitto.publish("devices/b", &["y"], false).await;
    assert_eq!(bench.hear().await.0, "y");
    bench.stop().await;
}

#[test]
fn the_wait_doubles_and_is_bounded() {
    assert!(backoff(0, 0) >= BACKOFF.0 / 2 && backoff(0, u64::MAX) <= BACKOFF.0);
    assert!(backoff(3, 999) > backoff(1, 0));
    assert!(backoff(u32::MAX, 999) <= BACKOFF.1);
}

/// A certificate that is its own authority, for both sides, and its key.
#[cfg(feature = "hub")]
fn install(cert: &Path, key: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(cert, pair.cert.pem()).unwrap();
    std::fs::write(key, pair.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A gateway whose certificate for the broker was renewed had to be restarted to show it.
#[cfg(feature = "hub")]
#[tokio::test]
async fn over_tls_the_broker_sees_our_certificate_and_after_a_change_the_new_one() {
    let files = tempfile::tempdir().unwrap();
    let [cert, key] = ["cert", "key"].map(|name| files.path().join(name));
    install(&cert, &key);
    let mut mosquitto = Mosquitto::start(&format!(
        "cafile {0}\ncertfile {0}\nkeyfile {1}\nrequire_certificate true",
        cert.display(),
        key.display()
    ));
    let mut config = mosquitto.config();
    config.tls = true;
    let (publishes, _heard) = mpsc::channel(8);
    let (notices_in, notices) = mpsc::channel(64);
    let sink = Sink { source: SourceId(0), publishes, notices: notices_in };
    let state = files.path().join("subscriptions");
    let pair = Some((cert.clone(), key.clone()));
    let clock = crate::identity::Clock::of_system();
    let tls = FollowedTls::load("the broker's", Some(cert.clone()), pair, clock).unwrap();
    let running = start(&config, "gw-1", vec!["a/#".into()], Some(tls), state, sink);
    let mut bench = Bench { running, publishes: mpsc::channel(1).1, notices };
    bench.notice("subscribed").await;
    mosquitto.stop();
    install(&cert, &key);
    mosquitto.restart();
    bench.notice("session resumed").await;
    bench.stop().await;
}
