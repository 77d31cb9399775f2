//! The cryptography beneath TLS, one for both programs.
//!
//! It must be the only place that chooses: with two providers in one process, half of the
//! connections would be made with the other one unnoticed.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// ring. With the feature `aws-lc` it is aws-lc, whose first key exchange is X25519MLKEM768
/// (draft-ietf-tls-ecdhe-mlkem): what is recorded today stays closed to a quantum computer.
pub fn provider() -> Arc<CryptoProvider> {
    #[cfg(not(feature = "aws-lc"))]
    let provider = rustls::crypto::ring::default_provider();
    #[cfg(feature = "aws-lc")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(provider)
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use rcgen::generate_simple_self_signed;
    use rustls::{
        ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConfig, ServerConnection,
    };

    use super::*;

    /// A client and a server of this program, and the key exchange that they agree on.
    fn agreed() -> NamedGroup {
        let own = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], own.signing_key.into())
            .unwrap();
        let name = "localhost".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        server.negotiated_key_exchange_group().unwrap().name()
    }

    #[test]
    fn both_sides_agree_on_the_best_key_exchange_that_the_provider_has() {
        let best = match cfg!(feature = "aws-lc") {
            true => NamedGroup::X25519MLKEM768,
            false => NamedGroup::X25519,
        };
        assert_eq!(agreed(), best);
    }
}
