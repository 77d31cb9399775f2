//! `demo-ca`: a throwaway certificate authority, to try TLS and client certificates with.

use std::{fs, os::unix::fs::DirBuilderExt as _, path::Path};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use crate::files;

/// What to make.
#[derive(Debug, Clone)]
pub struct DemoCa<'a> {
    /// Where; made if it is not there.
    pub dir: &'a Path,
    /// The names and addresses of the hub's certificate.
    pub hosts: &'a [String],
    /// The gateways that get a client certificate.
    pub clients: &'a [String],
}

/// Makes `ca.pem`, `hub.pem` with `hub.key`, and `NAME.pem` with `NAME.key` of each client, over
/// what is there.
///
/// The CA's own key is thrown away: nothing can be signed with it later.
///
/// # Errors
/// A name that no certificate can carry, or a file that can't be written.
pub fn make(wanted: &DemoCa<'_>) -> anyhow::Result<()> {
    let dir = wanted.dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("{}: can't be made", dir.display()))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("fieldgate throwaway CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    write(&dir.join("ca.pem"), 0o644, &certificate.pem())?;

    let mut hub = CertificateParams::new(wanted.hosts)
        .with_context(|| format!("{:?}: not names or addresses", wanted.hosts))?;
    hub.distinguished_name = named("fieldgate hub");
    hub.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(dir, "hub", hub, &issuer)?;

    for client in wanted.clients {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(client);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issue(dir, client, params, &issuer)?;
    }
    Ok(())
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn issue(
    dir: &Path,
    file: &str,
    mut params: CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> anyhow::Result<()> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    write(&dir.join(format!("{file}.pem")), 0o644, &certificate.pem())?;
    write(&dir.join(format!("{file}.key")), 0o600, &key.serialize_pem())
}

fn write(file: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    files::replace(file, mode, text.as_bytes())
        .with_context(|| format!("{}: can't be written", file.display()))
}
