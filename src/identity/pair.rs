//! A certificate and its key, looked at before they are taken in.

use std::{path::Path, sync::Arc, time::Duration};

use rustls::{
    CertificateError, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use zeroize::Zeroizing;

use super::{
    Certificate, Clock, DeviceKey, IdentityError, certificate::malformed, credential, key::pem,
};

/// A certificate with its chain, and the key that it was issued for.
pub struct Pair {
    /// The key, in PEM.
    pub key: Zeroizing<String>,
    /// The certificate, and those that lead from it to its CA, in PEM.
    pub chain: String,
    /// What the certificate says.
    pub certificate: Certificate,
}

impl Pair {
    /// Reads both from files.
    ///
    /// # Errors
    ///
    /// A file can't be used, the two don't belong together, the chain is not in its order or not
    /// signed by its own certificates and those of `cas`, or the certificate has expired.
    pub fn from_files(
        cert: &Path,
        key: &Path,
        cas: &[CertificateDer<'static>],
        clock: &Clock,
    ) -> Result<Self, IdentityError> {
        let chain = credential::certificates(cert).map_err(|error| with_pkcs12(error, cert))?;
        let held = DeviceKey::from_file(key).map_err(|error| with_pkcs12(error, key))?;
        let der = Zeroizing::new(credential::private_key(key)?);
        let label = match &*der {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let certificate = checked(&chain, &held, cert, clock)?;
        check_signatures(&chain, cas, cert, clock)?;
        let chain = chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
        Ok(Self { key: Zeroizing::new(pem(label, der.secret_der())), chain, certificate })
    }

    /// Takes a chain that was answered for `key`, whose PEM is `key_pem`. `from` names it in
    /// errors.
    ///
    /// # Errors
    ///
    /// As [`Pair::from_files`].
    pub fn answered(
        from: &str,
        chain: &str,
        key: &DeviceKey,
        key_pem: Zeroizing<String>,
        clock: &Clock,
    ) -> Result<Self, IdentityError> {
        let chain = certificates(from, chain)?;
        let certificate = checked(&chain, key, Path::new(from), clock)?;
        let chain = chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
        Ok(Self { key: key_pem, chain, certificate })
    }
}

/// The certificates of a text in PEM, at least one. `from` names it in errors.
///
/// # Errors
///
/// There is none, or one is malformed.
pub fn certificates(from: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(chain)
            if !chain.is_empty()
                && chain.iter().all(|der| Certificate::from_der(der).is_some()) =>
        {
            Ok(chain)
        }
        _ => {
            let remedy = "see the hub's log, and that both are of the same version";
            Err(IdentityError::new(Path::new(from), "it has no certificate in PEM", remedy))
        }
    }
}

/// A certificate in PEM.
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    pem("CERTIFICATE", certificate)
}

fn checked(
    chain: &[CertificateDer<'_>],
    key: &DeviceKey,
    file: &Path,
    clock: &Clock,
) -> Result<Certificate, IdentityError> {
    let parsed: Option<Vec<_>> = chain.iter().map(Certificate::from_der).collect();
    let mut parsed = parsed.ok_or_else(|| malformed(file))?;
    if parsed[0].public_key() != key.public_key() {
        return Err(IdentityError::new(
            file,
            "its first certificate is not that of the key",
            "name the certificate and the key that belong together, the gateway's own \
             certificate first",
        ));
    }
    if let Some(at) = parsed.windows(2).position(|two| !two[0].names_as_issuer(&two[1])) {
        return Err(IdentityError::new(
            file,
            format!("its certificate {} is not the issuer of the one before it", at + 2),
            "put the gateway's certificate first, then its issuer, then that one's",
        ));
    }
    let own = parsed.swap_remove(0);
    let now = clock.moment_for(own.not_before);
    if now > own.not_after {
        return Err(IdentityError::new(
            file,
            format!("its certificate expired at {}; the clock here says {now}", own.not_after),
            "have a new one issued, or set the clock",
        ));
    }
    Ok(own)
}

/// Whether each of a chain signed the one before it, and the one of `cas` that the last names as
/// its issuer that one. A chain that leads to none of them is trusted by somebody else.
fn check_signatures(
    chain: &[CertificateDer<'_>],
    cas: &[CertificateDer<'static>],
    file: &Path,
    clock: &Clock,
) -> Result<(), IdentityError> {
    let (own, issuers) = chain.split_first().expect("a chain has one certificate at least");
    let last = chain.last().and_then(Certificate::from_der);
    let is_issuer = |ca: &&CertificateDer<'_>| {
        let ca = Certificate::from_der(ca);
        last.as_ref().zip(ca).is_some_and(|(last, ca)| last.names_as_issuer(&ca))
    };
    let mut anchors: Vec<_> = cas.iter().filter(is_issuer).cloned().collect();
    let mut between = issuers;
    if anchors.is_empty() {
        let Some((last, rest)) = issuers.split_last() else { return Ok(()) };
        between = rest;
        anchors.push(last.clone().into_owned());
    }
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor).map_err(|_| malformed(file))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let webpki = webpki.map_err(|_| malformed(file))?;
    let begins = chain.iter().filter_map(Certificate::from_der).map(|it| it.not_before);
    let now = clock.moment_for(begins.max().expect("a chain has one certificate at least"));
    let now = Duration::from_secs(u64::try_from(now.unix_seconds).unwrap_or(0));
    let found = webpki.verify_client_cert(own, between, UnixTime::since_unix_epoch(now));
    match found {
        Err(rustls::Error::InvalidCertificate(
            CertificateError::BadSignature | CertificateError::UnknownIssuer,
        )) => Err(IdentityError::new(
            file,
            "a certificate of its chain is not signed by the one that it names as its issuer",
            "take the chain, and the file of --ca, from the CA that issued it",
        )),
        // What a certificate may be used for is the server's to judge.
        _ => Ok(()),
    }
}

/// The way to PEM, for a file that begins as PKCS#12 and other DER do.
fn with_pkcs12(error: IdentityError, file: &Path) -> IdentityError {
    let der = std::fs::read(file).is_ok_and(|bytes| bytes.starts_with(&[0x30]));
    if !der {
        return error;
    }
    IdentityError::new(
        file,
        "it is not PEM, but DER or PKCS#12 (.p12, .pfx)",
        "convert it: umask 077; openssl pkcs12 -in FILE -nodes -nocerts -out gw.key; openssl \
         pkcs12 -in FILE -nokeys -out gw.pem",
    )
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::identity::key::tests::written;

    fn authority(name: &str) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        (own.der().clone(), Issuer::new(params, key))
    }

    /// Names alone were compared: a chain whose issuer bears the right name and another key was
    /// taken in, and no server took it.
    #[test]
    fn a_chain_is_signed_by_those_whom_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (authority("field CA"), authority("field CA"));
        let other = authority("another CA");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "gw-1");
        let own = params.signed_by(&key, &first.1).unwrap().pem();
        let key_file = written(directory.path(), &key.serialize_pem());
        let cert = directory.path().join("gw.pem");
        let read = |more: &CertificateDer<'_>, cas: &[&CertificateDer<'static>]| {
            let more = if more.is_empty() { String::new() } else { certificate_pem(more) };
            std::fs::write(&cert, own.clone() + &more).unwrap();
            let cas: Vec<_> = cas.iter().map(|ca| (*ca).clone()).collect();
            let pair = Pair::from_files(&cert, &key_file, &cas, &Clock::unset());
            pair.map(drop).map_err(|error| error.fault)
        };
        let none = CertificateDer::from(Vec::new());
        for cas in [&[][..], &[&first.0], &[&other.0], &[&second.0, &first.0]] {
            assert_eq!((read(&none, cas), read(&first.0, cas)), (Ok(()), Ok(())));
        }
        let refused = |found: Result<(), String>| {
            assert!(found.unwrap_err().contains("not signed by"), "a stranger signed it");
        };
        refused(read(&second.0, &[]));
        refused(read(&none, &[&second.0]));
    }
}
