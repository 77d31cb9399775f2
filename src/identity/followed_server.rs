//! TLS towards clients that follows its files: a new certificate, key or client CA counts for the
//! next connection, with no restart and nobody asked to reload.
//!
//! The files are watched by content. What changed is taken when two looks found it the same, so
//! that files which are written one after the other are left alone until they rest; what can't be
//! used is refused with an ERROR, once, and the old goes on.

use std::{fmt, fs, mem, path::PathBuf, sync::Arc};

use ring::digest::{Context, SHA256};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use zeroize::Zeroizing;

use super::{
    Clock, IdentityError,
    trust::{ClientCertificates, client_verifier, server_tls_by},
};

/// The files of a server.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// Its certificate chain.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// Whose certificates clients may show.
    pub client_ca: Option<PathBuf>,
    /// Whether every client must show one.
    pub client_cert_required: bool,
}

/// A configuration that its files gave at some time.
pub struct ServerTls {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Whether a client's chain, which was verified when it came, would be let in now.
    pub fn still_trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some((own, intermediates)) = chain.split_first() else { return false };
        // The verifier has its own clock.
        self.clients.verify_client_cert(own, intermediates, UnixTime::now()).is_ok()
    }
}

/// A server's configuration and the files that it is made of.
#[derive(Debug)]
pub struct FollowedServer {
    files: ServerFiles,
    clock: Arc<Clock>,
    /// What the files held when they were last looked at.
    seen: Vec<u8>,
    /// What is in use, or was refused and complained of.
    used: Vec<u8>,
    tls: Arc<ServerTls>,
}

impl FollowedServer {
    /// As [`server_tls`](super::server_tls).
    ///
    /// # Errors
    /// As [`server_tls`](super::server_tls).
    pub fn load(files: ServerFiles, clock: Arc<Clock>) -> Result<Self, IdentityError> {
        // Looked at before they are read: a change in between is seen at the next look.
        let used = files.digest();
        let tls = files.load(&clock)?;
        Ok(Self { files, clock, seen: used.clone(), used, tls })
    }

    /// What is in use.
    pub fn current(&self) -> &Arc<ServerTls> {
        &self.tls
    }

    /// Looks at the files once, which reads them. Gives what is in use from now on, if that is
    /// something new.
    pub fn look(&mut self) -> Option<&Arc<ServerTls>> {
        let found = self.files.digest();
        let rests = mem::replace(&mut self.seen, found.clone()) == found;
        if !rests || self.used == found {
            return None;
        }
        self.used = found;
        match self.files.load(&self.clock) {
            Ok(tls) => {
                tracing::info!("the listener's certificates changed; they count from now on");
                self.tls = tls;
                Some(&self.tls)
            }
            Err(error) => {
                tracing::error!(
                    "the listener's certificates changed and can't be used: {error}; those of \
                     before go on"
                );
                None
            }
        }
    }
}

impl ServerFiles {
    fn load(&self, clock: &Arc<Clock>) -> Result<Arc<ServerTls>, IdentityError> {
        let clients = match &self.client_ca {
            None => ClientCertificates::Unasked,
            Some(file) if self.client_cert_required => ClientCertificates::Required(file),
            Some(file) => ClientCertificates::Optional(file),
        };
        let clients = client_verifier(clients, clock)?;
        let config = server_tls_by(&self.cert, &self.key, Arc::clone(&clients), clock)?;
        Ok(Arc::new(ServerTls { config, clients }))
    }

    /// A hash of what the files hold.
    fn digest(&self) -> Vec<u8> {
        let mut hash = Context::new(&SHA256);
        for file in [&self.cert, &self.key].into_iter().chain(&self.client_ca) {
            let content = Zeroizing::new(fs::read(file).unwrap_or_default());
            hash.update(&(content.len() as u64).to_le_bytes());
            hash.update(&content);
        }
        hash.finish().as_ref().to_vec()
    }
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    /// A certificate that is its own authority.
    fn install(cert: &Path, key: Option<&Path>) -> CertificateDer<'static> {
        let pair = rcgen::generate_simple_self_signed(vec!["listener".to_owned()]).unwrap();
        fs::write(cert, pair.cert.pem()).unwrap();
        if let Some(key) = key {
            fs::write(key, pair.signing_key.serialize_pem()).unwrap();
            fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
        }
        pair.cert.der().clone()
    }

    #[test]
    fn what_rests_and_fits_is_taken_and_what_does_not_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let [cert, key, ca] = ["own.pem", "own.key", "ca.pem"].map(|it| directory.path().join(it));
        install(&cert, Some(&key));
        let client = install(&ca, None);
        let files = ServerFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: Some(ca.clone()),
            client_cert_required: false,
        };
        let mut followed = FollowedServer::load(files, Clock::of_system()).unwrap();
        let trusts =
            |followed: &FollowedServer| followed.tls.still_trusts(std::slice::from_ref(&client));
        assert!(trusts(&followed) && !followed.tls.still_trusts(&[]));
        assert!(followed.look().is_none() && followed.look().is_none(), "nothing changed");

        install(&cert, None);
        assert!(followed.look().is_none(), "it may still be written");
        assert!(followed.look().is_none(), "the key is another's");
        install(&cert, Some(&key));
        assert!(followed.look().is_none(), "it may still be written");
        assert!(followed.look().is_some(), "a pair that fits");
        assert!(trusts(&followed) && followed.look().is_none());

        fs::remove_file(&ca).unwrap();
        assert!(followed.look().is_none() && followed.look().is_none());
        assert!(trusts(&followed), "a CA that is not there is a fault, and nobody's end");
        install(&ca, None);
        assert!(followed.look().is_none() && followed.look().is_some());
        assert!(!trusts(&followed), "its authority is another now");
    }
}
