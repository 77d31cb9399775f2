//! TLS by the hub itself: certificate, key, whose client certificates are credentials, and which
//! of them were revoked.
//!
//! The files are watched by content. A new state is taken when it was seen twice and can be used;
//! one that can't is refused with an ERROR, and the old goes on.

#[cfg(test)]
mod tests;
mod warnings;

use std::{fmt, path::Path, sync::Arc, time::Duration};

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
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::{
    authority::Authority,
    config::{Ca, Tls},
    engine::Voucher,
};
use crate::{
    crypto,
    files::{self, FileError, MAX_FILE_BYTES},
};
use warnings::{StaleList, Warnings};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The largest file of revocation lists: a list has some 40 bytes for each certificate.
const MAX_LISTS_BYTES: u64 = 16 << 20;

/// A file of `[tls]` can't be used; the text names the file, the fault and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// What the files hold, once it was found to be of use.
pub(super) struct Loaded {
    pub(super) acceptor: TlsAcceptor,
    /// Who verifies client certificates; `None`: they are no credentials.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// Who verifies those of the hub's own CA alone.
    clients_of_own: Option<Arc<dyn ClientCertVerifier>>,
    /// From when to when the hub's own certificate is valid, Unix seconds.
    validity_s: (u64, u64),
    /// Until when there is to be a newer list of what outside CAs revoked, Unix seconds.
    next_list_s: Option<u64>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("validity_s", &self.validity_s).finish_non_exhaustive()
    }
}

impl Loaded {
    /// Who vouches for a client's chain, were it to come now; `None`: nobody, or no longer.
    pub(super) fn voucher(&self, chain: &[CertificateDer<'static>]) -> Option<Voucher> {
        let (leaf, intermediates) = chain.split_first()?;
        let verifies = |clients: &Arc<dyn ClientCertVerifier>| {
            clients.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
        };
        self.clients.as_ref().filter(|clients| verifies(clients))?;
        Some(match &self.clients_of_own {
            Some(own) if verifies(own) => Voucher::OwnCa,
            _ => Voucher::Outside,
        })
    }

    /// Refuses to replace a certificate by another that has expired: nobody would come in.
    fn replacing(self, old: &Self, now_s: u64, tls: &Tls) -> Result<Self, TlsError> {
        if self.validity_s != old.validity_s && self.validity_s.1 <= now_s {
            return Err(fault(&tls.cert_file, "has expired; name a certificate that is valid"));
        }
        Ok(self)
    }
}

type Content = Zeroizing<Vec<u8>>;

/// The files' content at one time. Its `Debug` shows none of it: a key is there.
pub(super) struct Material {
    chain: Content,
    key: Content,
    client_ca: Option<Content>,
    own_ca: Option<Content>,
    revoked: Option<Content>,
    own_revoked: Option<Content>,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

impl Material {
    pub(super) fn read(tls: &Tls, ca: &Ca) -> Result<Self, TlsError> {
        let certificates = |file: &Path| files::public(file, MAX_FILE_BYTES);
        let lists = |file: &Path| files::public(file, MAX_LISTS_BYTES);
        Ok(Self {
            chain: certificates(&tls.cert_file)?,
            key: files::secret(&tls.key_file)?,
            client_ca: tls.client_ca_file.as_deref().map(certificates).transpose()?,
            own_ca: if_there(certificates(&Authority::certificate_file(&ca.dir)))?,
            revoked: tls.crl_file.as_deref().map(lists).transpose()?,
            own_revoked: if_there(lists(&Authority::revoked_file(&ca.dir)))?,
        })
    }

    fn digest(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        let always = [Some(&self.chain), Some(&self.key)];
        let optional =
            [&self.client_ca, &self.own_ca, &self.revoked, &self.own_revoked].map(Option::as_ref);
        for part in always.into_iter().chain(optional) {
            let part = part.map_or(&[][..], |part| &part[..]);
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
        let Clients { all, of_own, next_list_s } = self.clients(tls, ca)?;
        let builder = ServerConfig::builder_with_provider(crypto::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(format!("TLS: {error}")))?;
        let builder = match all.clone() {
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
        Ok(Loaded {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            clients: all,
            clients_of_own: of_own,
            validity_s,
            next_list_s,
        })
    }

    /// The hub's own authority is trusted with clients beside the one that `[tls]` names.
    fn clients(&self, tls: &Tls, ca: &Ca) -> Result<Clients, TlsError> {
        let anchors = |file: Option<&Path>, pem: &Option<Content>| match (file, pem) {
            (Some(file), Some(pem)) => certificates(file, pem),
            _ => Ok(Vec::new()),
        };
        let revoked = |file: Option<&Path>, pem: &Option<Content>, issuers: &[_]| match (file, pem)
        {
            (Some(file), Some(pem)) => lists(file, pem, issuers),
            _ => Ok((Vec::new(), None)),
        };
        let own_file = Authority::certificate_file(&ca.dir);
        let own = anchors(Some(&own_file), &self.own_ca)?;
        let outside = anchors(tls.client_ca_file.as_deref(), &self.client_ca)?;
        let all = [&own[..], &outside].concat();
        if all.is_empty() {
            return Ok(Clients { all: None, of_own: None, next_list_s: None });
        }
        let (mut lists, _) =
            revoked(Some(&Authority::revoked_file(&ca.dir)), &self.own_revoked, &own)?;
        let of_own = if own.is_empty() { None } else { Some(verifier(own, lists.clone())?) };
        let (of_outside, next_list_s) = revoked(tls.crl_file.as_deref(), &self.revoked, &all)?;
        lists.extend(of_outside);
        Ok(Clients { all: Some(verifier(all, lists)?), of_own, next_list_s })
    }
}

/// Who verifies client certificates.
struct Clients {
    all: Option<Arc<dyn ClientCertVerifier>>,
    of_own: Option<Arc<dyn ClientCertVerifier>>,
    next_list_s: Option<u64>,
}

/// One CA may have a list and the other none; a list that is out of date still revokes.
fn verifier(
    anchors: Vec<CertificateDer<'static>>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let unusable = |error: &dyn fmt::Display| TlsError(format!("client certificates: {error}"));
    let mut store = RootCertStore::empty();
    for anchor in anchors {
        store.add(anchor).map_err(|error| unusable(&error))?;
    }
    WebPkiClientVerifier::builder_with_provider(store.into(), crypto::provider())
        .with_crls(revoked)
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(&error))
}

type Lists = (Vec<CertificateRevocationListDer<'static>>, Option<u64>);

/// The lists of a file, at least one, and when the first of them is to be replaced, Unix seconds.
///
/// Each must be signed by one of `issuers`: with a list that only says to be of a CA, TLS would
/// refuse every client of that CA, and without a word to us; and one of nobody's revokes nothing.
fn lists(file: &Path, pem: &[u8], issuers: &[CertificateDer<'_>]) -> Result<Lists, TlsError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fault(file, error))?;
    if lists.is_empty() {
        return Err(fault(file, "holds no revocation list; name a PEM file that does"));
    }
    let mut next_s: Option<u64> = None;
    for list in &lists {
        let (_, list) =
            CertificateRevocationList::from_der(list).map_err(|error| fault(file, error))?;
        let is_signed_by = |issuer: &CertificateDer<'_>| {
            X509Certificate::from_der(issuer).is_ok_and(|(_, issuer)| {
                issuer.subject().as_raw() == list.issuer().as_raw()
                    && list.verify_signature(issuer.public_key()).is_ok()
            })
        };
        if !issuers.iter().any(is_signed_by) {
            let what = "a list is signed by none of the CAs that clients may be of; fetch it anew, \
                        or add the certificate of the CA that signs it to tls.client_ca_file";
            return Err(fault(file, what));
        }
        let next = list.next_update().map(|next| u64::try_from(next.timestamp()).unwrap_or(0));
        next_s = [next_s, next].into_iter().flatten().min();
    }
    Ok((lists, next_s))
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
    stale_list: StaleList,
}

impl Watch {
    pub(super) fn new(tls: &Tls, ca: &Ca) -> Self {
        let used = Material::read(tls, ca).map(|material| material.digest());
        let look = Look { seen: used.clone(), used };
        let (warnings, stale_list) = (Warnings::default(), StaleList::default());
        Self { tls: tls.clone(), ca: ca.clone(), look, warnings, stale_list }
    }

    /// Looks once, after a while: something new to be used instead of `loaded`, if there is.
    pub(super) async fn next(&mut self, loaded: &Loaded) -> Option<Loaded> {
        let now_s = UnixTime::now().as_secs();
        self.warnings.look(now_s, loaded.validity_s, &self.tls.cert_file);
        if let Some(file) = &self.tls.crl_file {
            self.stale_list.look(now_s, loaded.next_list_s, file);
        }
        sleep(LOOK_INTERVAL).await;
        let (tls, ca) = (self.tls.clone(), self.ca.clone());
        let read = tokio::task::spawn_blocking(move || Material::read(&tls, &ca)).await.ok()?;
        let load = |material: &Material| {
            material.load(&self.tls, &self.ca)?.replacing(loaded, now_s, &self.tls)
        };
        match self.look.take(read, load)? {
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

fn if_there(read: Result<Content, FileError>) -> Result<Option<Content>, FileError> {
    match read {
        Err(error) if error.fault == files::NO_SUCH_FILE => Ok(None),
        read => read.map(Some),
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

impl From<FileError> for TlsError {
    fn from(error: FileError) -> Self {
        Self(error.to_string())
    }
}

fn fault(file: &Path, what: impl fmt::Display) -> TlsError {
    TlsError(format!("{}: {what}", file.display()))
}
