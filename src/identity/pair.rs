//! A certificate and its key, looked at before they are taken in.

use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
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
    /// A file can't be used, the two don't belong together, the chain is not in its order, or the
    /// certificate has expired.
    pub fn from_files(cert: &Path, key: &Path, clock: &Clock) -> Result<Self, IdentityError> {
        let chain = credential::certificates(cert).map_err(|error| with_pkcs12(error, cert))?;
        let held = DeviceKey::from_file(key).map_err(|error| with_pkcs12(error, key))?;
        let der = Zeroizing::new(credential::private_key(key)?);
        let label = match &*der {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let certificate = checked(&chain, &held, cert, clock)?;
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
