//! A certificate or a token that lives for a minute, replaced while the link lives: nothing is
//! lost, nothing comes twice, and nobody is restarted.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use time::OffsetDateTime;

use crate::field::{
    Field, SOON,
    certificate::private,
    device::Publisher,
    eventually,
    gateway::{Gateway, Setup, binary},
    hub::Hub,
    ledger::Ledger,
    process::run,
};

const GATEWAY: &str = "gw-1";
const MINUTE: Duration = Duration::from_secs(60);

/// An authority of the scenario's own, for gateways.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let must = "a certificate from fixed parameters";
        let mut params = CertificateParams::new([]).expect(must);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "gateways");
        let key = KeyPair::generate().expect(must);
        let pem = params.self_signed(&key).expect(must).pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate for [`GATEWAY`] that lives for so long from now on, and its key.
    fn issue(&self, life: Duration, cert_file: &Path, key_file: &Path) {
        let must = "a certificate from fixed parameters";
        let mut params = CertificateParams::new([]).expect(must);
        params.distinguished_name.push(DnType::CommonName, GATEWAY);
        params.not_before = OffsetDateTime::now_utc() - MINUTE;
        params.not_after = OffsetDateTime::now_utc() + life;
        let key = KeyPair::generate().expect(must);
        let cert = params.signed_by(&key, &self.issuer).expect(must);
        std::fs::write(key_file, key.serialize_pem()).expect("a file of the scenario's own");
        private(key_file);
        std::fs::write(cert_file, cert.pem()).expect("a file of the scenario's own");
    }
}

/// What a hub calls final is tried once an hour. The hour went on when the operator had mended the
/// credential and told the gateway to read it anew.
#[test]
fn a_gateway_that_was_refused_for_good_is_back_when_its_credential_is_mended_and_reloaded() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let setup = Setup::new(&field, &hub);
    let own = field.path(format!("{GATEWAY}.token"));
    let right = std::fs::read(&own).expect("the hub wrote it");
    let other = hub.add_gateway(&field, "gw-2");
    std::fs::copy(other, &own).expect("a file of the scenario's own");
    let gateway = Gateway::started(&field, &setup);
    gateway.wait_until("the hub's word is final", |status| {
        let uplink = &status["uplink"];
        uplink["last_error"].as_str().is_some_and(|error| error.contains("4501"))
            && uplink["retry_in_s"].as_u64() > Some(3500)
    });
    std::fs::write(&own, right).expect("a file of the scenario's own");
    gateway.reload();
    gateway.wait_connected();
}

fn session(status: &Value) -> Option<String> {
    status["uplink"]["session"].as_str().map(str::to_owned)
}

/// A gateway with a key that `hub` knows, which signs its tokens with these keys in `[uplink.jwt]`.
pub(super) fn signing(field: &Field, hub: &Hub, keys: &str) -> Setup {
    let dir = field.path("key");
    let mut command = binary();
    command.args(["identity", "new", "--out"]).arg(&dir).arg("--config").arg(field.path("none"));
    let (code, _, fault) = run(command, SOON);
    assert_eq!(code, Some(0), "{fault}");
    let public = dir.join("gateway.pub").display().to_string();
    hub.manage(&["gateway", "add", GATEWAY, "--public-key", &public]);
    Setup::towards(format!(
        "url = \"wss://localhost:{}/v1/gateway\"\nca_file = \"ca.pem\"\n\
         jwt = {{ key_file = \"key/gateway.key\", audience = \"hub-1\", {keys} }}",
        hub.port
    ))
}

/// Time itself is the subject: a hub ends a session a minute after its token has, which lives for a
/// minute at least.
#[test]
fn a_token_that_lives_for_a_minute_is_renewed_on_the_live_link() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let gateway = Gateway::started(&field, &signing(&field, &hub, "lifetime = \"60s\""));
    let first = session(&gateway.wait_connected()).expect("a session has a name");
    let begun = Instant::now();
    eventually("the first token is over, leeway included", 3 * MINUTE, || {
        let log = gateway.log();
        assert!(!log.contains("4001") && !log.contains("WARN"), "{log}");
        (begun.elapsed() > 2 * MINUTE + Duration::from_secs(3)).then_some(())
    });
    let status = gateway.status().expect("it runs");
    assert_eq!(session(&status), Some(first), "{status}");
    assert_eq!(status["uplink"]["attempts"], 1, "{status}");
}

#[test]
fn a_certificate_that_lives_for_a_minute_is_replaced_under_traffic() {
    let field = Field::new();
    let authority = Authority::new();
    field.write("gateways-ca.pem", &authority.pem);
    let mut hub = Hub::with(&field, "", "client_ca_file = \"gateways-ca.pem\"");
    hub.manage(&["gateway", "add", GATEWAY, "--certificate"]);
    hub.start();
    let (cert, key) = (field.path("gw.pem"), field.path("gw.key"));
    authority.issue(MINUTE, &cert, &key);
    let uplink = format!(
        "url = \"wss://localhost:{}/v1/gateway\"\nca_file = \"ca.pem\"\n\
         client_cert_file = \"gw.pem\"\nclient_key_file = \"gw.key\"",
        hub.port
    );
    let mut gateway = Gateway::started(&field, &Setup::towards(uplink));
    let first = session(&gateway.wait_connected()).expect("a session has a name");
    let publisher = Publisher::start(gateway.port, "plc-01", 20, 1600);
    eventually("records flow", SOON, || (publisher.acked() > 100).then_some(()));
    authority.issue(10 * MINUTE, &cert, &key);
    eventually("a session by the next certificate", MINUTE + SOON, || {
        let status = gateway.status()?;
        session(&status).filter(|name| *name != first)
    });
    eventually("everything is published", MINUTE, || publisher.done().then_some(()));
    let ended = gateway.process.as_mut().expect("it was started").ended();
    assert!(ended.is_none(), "the gateway was to live on: {ended:?}");
    let ledger = eventually("everything is at the hub", SOON, || {
        let mut ledger = Ledger::default();
        hub.all_records(GATEWAY).iter().for_each(|row| ledger.add(row));
        ledger.missing("plc-01", &publisher.account()).is_empty().then_some(ledger)
    });
    assert_eq!(ledger.repeated, []);
    assert_eq!(ledger.out_of_order("plc-01"), [0; 0]);
    let log = gateway.log();
    assert!(log.contains("4001"), "the hub ends a session with its certificate:\n{log}");
}
