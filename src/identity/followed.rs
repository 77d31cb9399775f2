//! TLS towards a server that follows its files: what a renewal put in place counts from the next
//! connection on, with no restart and nobody asked to reload.

use std::{fs, path::PathBuf, sync::Arc};

use ring::digest::{Context, SHA256};
use rustls::ClientConfig;
use zeroize::Zeroizing;

use super::{Clock, IdentityError, client_tls};

/// A configuration and the files that it was made of.
#[derive(Debug)]
pub struct FollowedTls {
    whose: &'static str,
    ca_file: Option<PathBuf>,
    client_cert: Option<(PathBuf, PathBuf)>,
    clock: Arc<Clock>,
    seen: Vec<u8>,
    tls: Arc<ClientConfig>,
}

impl FollowedTls {
    /// As [`client_tls`]; `whose` the files are, for the log.
    ///
    /// # Errors
    ///
    /// As [`client_tls`].
    pub fn load(
        whose: &'static str,
        ca_file: Option<PathBuf>,
        client_cert: Option<(PathBuf, PathBuf)>,
        clock: Arc<Clock>,
    ) -> Result<Self, IdentityError> {
        // Looked at before they are read: a change in between is seen at the next look.
        let seen = look(&ca_file, &client_cert);
        let tls = load(&ca_file, &client_cert, &clock)?;
        Ok(Self { whose, ca_file, client_cert, clock, seen, tls })
    }

    /// What the files say now. While they can't be used, what they said before goes on: the fault
    /// is logged once for each change.
    pub fn current(&mut self) -> Arc<ClientConfig> {
        let seen = look(&self.ca_file, &self.client_cert);
        if seen != self.seen {
            let whose = self.whose;
            match load(&self.ca_file, &self.client_cert, &self.clock) {
                Ok(tls) => {
                    tracing::info!("{whose} certificates changed; they count from now on");
                    self.tls = tls;
                }
                Err(error) => {
                    tracing::error!(
                        "{whose} certificates changed and can't be used: {error}; those of before \
                         go on"
                    );
                }
            }
            self.seen = seen;
        }
        self.tls.clone()
    }
}

fn load(
    ca_file: &Option<PathBuf>,
    client_cert: &Option<(PathBuf, PathBuf)>,
    clock: &Arc<Clock>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let pair = client_cert.as_ref().map(|(cert, key)| (&**cert, &**key));
    client_tls(ca_file.as_deref(), pair, clock)
}

/// A hash of what the files hold.
fn look(ca_file: &Option<PathBuf>, client_cert: &Option<(PathBuf, PathBuf)>) -> Vec<u8> {
    let mut hash = Context::new(&SHA256);
    let pair = client_cert.iter().flat_map(|(cert, key)| [cert, key]);
    for file in ca_file.iter().chain(pair) {
        let content = Zeroizing::new(fs::read(file).unwrap_or_default());
        hash.update(&(content.len() as u64).to_le_bytes());
        hash.update(&content);
    }
    hash.finish().as_ref().to_vec()
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_new_pair_counts_at_once_and_a_bad_one_never() {
        let directory = tempfile::tempdir().unwrap();
        let (cert, key) = (directory.path().join("gw.pem"), directory.path().join("gw.key"));
        let install = |with_key: bool| {
            let pair = rcgen::generate_simple_self_signed(vec!["gw-1".to_owned()]).unwrap();
            fs::write(&cert, pair.cert.pem()).unwrap();
            if with_key {
                fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
                fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            }
        };
        install(true);
        let ca = Some(cert.clone());
        let pair = Some((cert.clone(), key.clone()));
        let mut followed = FollowedTls::load("a test's", ca, pair, Clock::of_system()).unwrap();
        let first = followed.current();
        assert!(Arc::ptr_eq(&first, &followed.current()), "nothing changed");
        install(false);
        assert!(Arc::ptr_eq(&first, &followed.current()), "the key is another's");
        install(true);
        let second = followed.current();
        assert!(!Arc::ptr_eq(&first, &second), "a pair that fits");
        fs::remove_file(&key).unwrap();
        assert!(Arc::ptr_eq(&second, &followed.current()), "the key is gone");
    }
}
