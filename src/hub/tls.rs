//! TLS by the hub itself: certificate, key, whose client certificates are credentials, and which
//! of them were revoked.
//!
//! The files are watched by content. A new state is taken when it was seen twice and can be used;
//! one that can't is refused with an ERROR, and the old goes on.

mod warnings;

use std::{fmt, fs, io, path::Path, sync::Arc, time::Duration};

use ring::digest;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject as _,
    },
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    authority::Authority,
    config::{Ca, Tls},
    files,
};
use crate::crypto;
use warnings::Warnings;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A file of `[tls]` can't be used; the text names the file, the fault and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// What the files hold, once it was found to be of use.
pub(super) struct Loaded {
    pub(super) acceptor: TlsAcceptor,
    /// Who verifies client certificates; `None`: they are no credentials.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// From when to when the hub's own certificate is valid, Unix seconds.
    validity_s: (u64, u64),
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("validity_s", &self.validity_s).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Whether a client's chain, verified when it came, still would be.
    pub(super) fn still_trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some(clients) = &self.clients else { return false };
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        clients.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
    }
}

/// The files' content at one time.
#[derive(Debug)]
pub(super) struct Material {
    chain: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
    own_ca: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
    own_revoked: Option<Vec<u8>>,
}

impl Material {
    pub(super) fn read(tls: &Tls, ca: &Ca) -> Result<Self, TlsError> {
        let read = |file: &Path| fs::read(file).map_err(|error| fault(file, error));
        Ok(Self {
            chain: read(&tls.cert_file)?,
            key: files::secret(&tls.key_file).map_err(TlsError)?,
            client_ca: tls.client_ca_file.as_deref().map(read).transpose()?,
            own_ca: if_there(&Authority::certificate_file(&ca.dir))?,
            revoked: tls.crl_file.as_deref().map(read).transpose()?,
            own_revoked: if_there(&Authority::revoked_file(&ca.dir))?,
        })
    }

    fn digest(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        let always = [Some(&self.chain), Some(&self.key)];
        let optional =
            [&self.client_ca, &self.own_ca, &self.revoked, &self.own_revoked].map(Option::as_ref);
        for part in always.into_iter().chain(optional) {
            let part = part.map_or(&[][..], |part| part);
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }

    /// Client certificates are welcome and not demanded: applications come with tokens.
    pub(super) fn load(&self, tls: &Tls, ca: &Ca) -> Result<Loaded, TlsError> {
        let chain = certificates(&tls.cert_file, &self.chain)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| fault(&tls.key_file, "holds no private key; name a PEM file that does"))?;
        let validity_s = validity(&chain[0]).map_err(|error| fault(&tls.cert_file, error))?;
        let clients = self.clients(tls, ca)?;
        let builder = ServerConfig::builder_with_provider(crypto::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(format!("TLS: {error}")))?;
        let builder = match clients.clone() {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(clients),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            TlsError(format!(
                "{} and {}: {error}; name a certificate and the key it was made with",
                tls.cert_file.display(),
                tls.key_file.display()
            ))
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Loaded { acceptor: TlsAcceptor::from(Arc::new(config)), clients, validity_s })
    }

    /// The hub's own authority is trusted with clients beside the one that `[tls]` names.
    fn clients(&self, tls: &Tls, ca: &Ca) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let own = Authority::certificate_file(&ca.dir);
        let sources =
            [(tls.client_ca_file.as_deref(), &self.client_ca), (Some(&*own), &self.own_ca)];
        let mut anchors = RootCertStore::empty();
        for (file, pem) in sources {
            let (Some(file), Some(pem)) = (file, pem) else { continue };
            for certificate in certificates(file, pem)? {
                anchors.add(certificate).map_err(|error| fault(file, error))?;
            }
        }
        if anchors.is_empty() {
            return Ok(None);
        }
        let own = Authority::revoked_file(&ca.dir);
        let sources = [(tls.crl_file.as_deref(), &self.revoked), (Some(&*own), &self.own_revoked)];
        let mut revoked = Vec::new();
        for (file, pem) in sources {
            let (Some(file), Some(pem)) = (file, pem) else { continue };
            let lists = CertificateRevocationListDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| fault(file, error))?;
            if lists.is_empty() {
                return Err(fault(file, "holds no revocation list; name a PEM file that does"));
            }
            revoked.extend(lists);
        }
        // One CA may have a list and the other none; a list that is out of date still revokes.
        let verifier =
            WebPkiClientVerifier::builder_with_provider(anchors.into(), crypto::provider())
                .with_crls(revoked)
                .only_check_end_entity_revocation()
                .allow_unknown_revocation_status()
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError(format!("client certificates: {error}")))?;
        Ok(Some(verifier))
    }
}

/// Reads and checks the files for the first time.
pub(super) fn load(tls: &Tls, ca: &Ca) -> Result<Loaded, TlsError> {
    Material::read(tls, ca)?.load(tls, ca)
}

/// Looks at the files for as long as the hub runs.
#[derive(Debug)]
pub(super) struct Watch {
    tls: Tls,
    ca: Ca,
    look: Look,
    warnings: Warnings,
}

impl Watch {
    pub(super) fn new(tls: &Tls, ca: &Ca) -> Self {
        let used = Material::read(tls, ca).map(|material| material.digest());
        let look = Look { seen: used.clone(), used };
        Self { tls: tls.clone(), ca: ca.clone(), look, warnings: Warnings::default() }
    }

    /// Looks once, after a while: something new to be used instead of `loaded`, if there is.
    pub(super) async fn next(&mut self, loaded: &Loaded) -> Option<Loaded> {
        self.warnings.look(UnixTime::now().as_secs(), loaded.validity_s, &self.tls.cert_file);
        sleep(LOOK_INTERVAL).await;
        let (tls, ca) = (self.tls.clone(), self.ca.clone());
        let read = tokio::task::spawn_blocking(move || Material::read(&tls, &ca)).await.ok()?;
        match self.look.take(read, |material| material.load(&self.tls, &self.ca))? {
            Ok(new) => {
                tracing::info!("new certificates or revocation lists are in use");
                Some(new)
            }
            Err(error) => {
                tracing::error!(%error, "the new certificate files are refused; the old go on");
                None
            }
        }
    }
}

/// What was seen of the files.
#[derive(Debug)]
struct Look {
    /// What is in use, or was refused and complained of.
    used: Result<Vec<u8>, TlsError>,
    seen: Result<Vec<u8>, TlsError>,
}

impl Look {
    /// What is to be done about this material; `None`: nothing. Files that are written one after
    /// the other are left alone until they rest.
    fn take<T>(
        &mut self,
        material: Result<Material, TlsError>,
        load: impl FnOnce(&Material) -> Result<T, TlsError>,
    ) -> Option<Result<T, TlsError>> {
        let found = material.as_ref().map(Material::digest).map_err(Clone::clone);
        let rests = std::mem::replace(&mut self.seen, found.clone()) == found;
        if !rests || self.used == found {
            return None;
        }
        self.used = found;
        Some(material.and_then(|material| load(&material)))
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(u64, u64), String> {
    let (_, read) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = read.validity();
    Ok((seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp())))
}

fn if_there(file: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    match fs::read(file) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(file, error)),
    }
}

/// At least one.
fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| fault(file, error))?;
    if chain.is_empty() {
        return Err(fault(file, "holds no certificate; name a PEM file that does"));
    }
    Ok(chain)
}

fn fault(file: &Path, what: impl fmt::Display) -> TlsError {
    TlsError(format!("{}: {what}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material(chain: &[u8]) -> Result<Material, TlsError> {
        Ok(Material {
            chain: chain.to_vec(),
            key: b"key".to_vec(),
            client_ca: None,
            own_ca: None,
            revoked: None,
            own_revoked: None,
        })
    }

    #[test]
    fn files_are_taken_when_they_rest_and_a_fault_is_told_once() {
        let old = material(b"old").map(|old| old.digest());
        let mut look = Look { used: old.clone(), seen: old };
        let good = |_: &Material| Ok(());
        let bad = |_: &Material| Err::<(), _>(TlsError("mismatch".into()));
        for _ in 0..3 {
            assert_eq!(look.take(material(b"old"), good), None);
        }
        assert_eq!(look.take(material(b"half"), bad), None, "still being written");
        assert_eq!(look.take(material(b"new"), good), None);
        assert_eq!(look.take(material(b"new"), good), Some(Ok(())));
        assert_eq!(look.take(material(b"new"), good), None);
        assert_eq!(look.take(material(b"bad"), bad), None);
        assert_eq!(look.take(material(b"bad"), bad), Some(Err(TlsError("mismatch".into()))));
        assert_eq!(look.take(material(b"bad"), bad), None, "told once");
        let gone = || Err(TlsError("no such file".into()));
        assert_eq!(look.take(gone(), good), None);
        assert_eq!(look.take(gone(), good), Some(Err(TlsError("no such file".into()))));
        assert_eq!(look.take(gone(), good), None);
    }
}
