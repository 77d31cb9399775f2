//! TLS by the hub itself: certificate, key, and whose client certificates are credentials.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use super::config::Tls;

/// A file of `[tls]` can't be used; the text names the file, the fault and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// Makes the acceptor. Client certificates are welcome and not demanded: applications come with
/// tokens.
pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(&tls.cert_file)?;
    let key = key(&tls.key_file)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(format!("TLS: {error}")))?;
    let builder = match &tls.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut anchors = RootCertStore::empty();
            for certificate in certificates(file)? {
                anchors.add(certificate).map_err(|error| fault(file, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(anchors.into(), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| fault(file, error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        TlsError(format!(
            "{} and {}: {error}; name a certificate and the key it was made with",
            tls.cert_file.display(),
            tls.key_file.display()
        ))
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = fs::read(file).map_err(|error| fault(file, error))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| fault(file, error))?;
    if chain.is_empty() {
        return Err(fault(file, "holds no certificate; name a PEM file that does"));
    }
    Ok(chain)
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let mode = fs::metadata(file).map_err(|error| fault(file, error))?.mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        let remedy = format!("chmod 600 {}", file.display());
        return Err(fault(file, format!("mode {mode:03o} lets others use the key; {remedy}")));
    }
    let pem = fs::read(file).map_err(|error| fault(file, error))?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| fault(file, "holds no private key; name a PEM file that does"))
}

fn fault(file: &Path, what: impl std::fmt::Display) -> TlsError {
    TlsError(format!("{}: {what}", file.display()))
}
