//! What a scanner finds of the TLS that we serve: sslyze tries every version, suite and known
//! fault. `tests/run tls` installs it.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::field::{
    Field, certificate, free_port,
    gateway::Gateway,
    hub::{self, Hub},
    process::run,
};

/// How long a scan may take; it takes some seconds.
const SCAN: Duration = Duration::from_secs(100);

/// What RFC 9325, section 4.2 recommends for TLS 1.2, and ChaCha20 beside it (RFC 7905).
const TLS_1_2: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
const TLS_1_3: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
const CURVES: [&str; 3] = ["X25519", "secp256r1", "secp384r1"];

#[test]
fn the_hub_serves_tls_1_2_and_1_3_with_modern_suites_and_no_known_fault() {
    let field = Field::new();
    let hub = Hub::started(&field);
    // Needs a server that answers HTTP.
    let found = scan(&field, hub.port, &["--early_data".as_ref()]);
    assert_modern(&found);
    let early_data = &found["tls_1_3_early_data"]["result"]["supports_early_data"];
    assert_eq!(*early_data, false, "what is replayed would be done twice");
}

#[test]
fn the_listener_serves_tls_1_2_and_1_3_with_modern_suites_and_no_known_fault() {
    let field = Field::new();
    hub::authority(&field);
    let certified = certificate::issue(&field, "listener", "localhost", 2099);
    let port = free_port();
    let config = field.write(
        "gateway.toml",
        format!(
            "[gateway]\nid = \"gw-1\"\nstate_dir = \"state\"\n[listener]\n\
             tls_bind = \"127.0.0.1:{port}\"\ncert_file = {:?}\nkey_file = {:?}\n\
             client_ca_file = {:?}\n",
            certified.cert, certified.key, certified.ca
        ),
    );
    let mut gateway = Gateway::of(config, port, field.path("gateway.log"));
    gateway.start();
    let client = ["--cert".as_ref(), &*certified.cert, "--key".as_ref(), &*certified.key];
    let found = scan(&field, port, &client);
    assert_modern(&found);
}

/// Everything that sslyze found, by the names of its scans.
fn scan(field: &Field, port: u16, arguments: &[&Path]) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/interop/sslyze/bin/sslyze");
    assert!(program.exists(), "{}: `tests/run tls` installs it", program.display());
    let out = field.path("scan.json");
    let mut command = Command::new(program);
    command.args(["--quiet", "--mozilla_config", "disable", "--json_out"]).arg(&out);
    command.args(["--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3"]);
    command.args(["--heartbleed", "--robot", "--reneg", "--compression", "--openssl_ccs"]);
    command.args(["--fallback", "--elliptic_curves", "--ems"]);
    command.args(arguments).arg(format!("127.0.0.1:{port}"));
    let (code, said, complained) = run(command, SCAN);
    assert_eq!(code, Some(0), "{said}{complained}");
    let report = std::fs::read(&out).expect("sslyze wrote its report");
    let report: Value = serde_json::from_slice(&report).expect("the report is JSON");
    let server = &report["server_scan_results"][0];
    assert_eq!(server["scan_status"], "COMPLETED", "{server}");
    server["scan_result"].clone()
}

fn assert_modern(found: &Value) {
    let result = |scan: &str, member: &str| {
        let outcome = &found[scan];
        assert_eq!(outcome["status"], "COMPLETED", "{scan}: {outcome}");
        outcome["result"][member].clone()
    };
    for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"] {
        let scan = format!("{version}_cipher_suites");
        assert_eq!(result(&scan, "is_tls_version_supported"), false, "{version}");
    }
    for (version, wanted) in [("tls_1_2", &TLS_1_2[..]), ("tls_1_3", &TLS_1_3)] {
        let suites = result(&format!("{version}_cipher_suites"), "accepted_cipher_suites");
        let suites = suites.as_array().expect("a list of suites");
        assert!(suites.len() >= 3, "{version}: {suites:?}");
        for suite in suites {
            let name = suite["cipher_suite"]["name"].as_str().expect("a suite has a name");
            assert!(wanted.contains(&name), "{version} with {name}");
        }
    }
    let curves = result("elliptic_curves", "supported_curves");
    for curve in curves.as_array().expect("a list of curves") {
        let name = curve["name"].as_str().expect("a curve has a name");
        assert!(CURVES.contains(&name), "{name}");
    }
    for (scan, member, wanted) in [
        ("tls_compression", "supports_compression", false),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", false),
        ("heartbleed", "is_vulnerable_to_heartbleed", false),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos", false),
        ("tls_extended_master_secret", "supports_ems_extension", true),
    ] {
        assert_eq!(result(scan, member), wanted, "{scan}");
    }
    assert_eq!(result("robot", "robot_result"), "NOT_VULNERABLE_RSA_NOT_SUPPORTED");
}
