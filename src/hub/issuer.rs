//! The keys of an outside issuer of tokens: kept, and fetched again for a `kid` that is not among
//! them, but not more often than the issuer can bear and a stranger could ask for.

use std::{
    fs,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::{
    config::{Issuer, KeySource},
    fetch,
    jwt::{KeySet, PublicKey},
};

/// How long keys are used before they are looked for again.
const FRESH: Duration = Duration::from_secs(3600);

/// How long keys are used while none newer can be had: as long as the longest token.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// How long after one fetch the next may come.
const PAUSE: Duration = Duration::from_secs(30);

/// How long after a file was read it is read again.
const FILE_PAUSE: Duration = Duration::from_secs(1);

/// The longest `kid` that is looked for, in bytes.
const MAX_KID_BYTES: usize = 256;

/// An issuer's keys.
#[derive(Debug)]
pub(super) struct IssuerKeys {
    issuer: Issuer,
    known: RwLock<Known>,
    /// When a fetch was last tried. Held during the fetch, so that there is one at a time.
    tried: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Known {
    keys: KeySet,
    since: Option<Instant>,
}

impl IssuerKeys {
    pub(super) fn new(issuer: Issuer) -> Arc<Self> {
        Arc::new(Self { issuer, known: RwLock::default(), tried: Mutex::default() })
    }

    /// What `iss` says in its tokens.
    pub(super) fn name(&self) -> &str {
        &self.issuer.name
    }

    /// The key of this `kid`; `None`: the issuer has none, as far as can be known now.
    pub(super) async fn key(self: &Arc<Self>, kid: &str) -> Option<PublicKey> {
        if kid.len() > MAX_KID_BYTES {
            return None;
        }
        match self.look_up(kid) {
            (Some(key), age) if age < self.pauses().0 => return Some(key),
            (Some(key), age) if age < STALE && !self.is_file() => {
                let this = self.clone();
                tokio::spawn(async move { this.refresh().await });
                return Some(key);
            }
            _ => {}
        }
        self.refresh().await;
        let (key, age) = self.look_up(kid);
        key.filter(|_| age < STALE)
    }

    fn look_up(&self, kid: &str) -> (Option<PublicKey>, Duration) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let age = known.since.map_or(STALE, |since| since.elapsed());
        (known.keys.get(kid).cloned(), age)
    }

    fn is_file(&self) -> bool {
        matches!(self.issuer.keys, KeySource::File(_))
    }

    /// How long keys are used unasked, and how long after one look the next may come.
    fn pauses(&self) -> (Duration, Duration) {
        if self.is_file() { (FILE_PAUSE, FILE_PAUSE) } else { (FRESH, PAUSE) }
    }

    async fn refresh(&self) {
        let (_, pause) = self.pauses();
        let mut tried = self.tried.lock().await;
        if tried.is_some_and(|tried| tried.elapsed() < pause) {
            return;
        }
        *tried = Some(Instant::now());
        match self.fetch().await {
            Ok(keys) => {
                tracing::debug!(issuer = self.name(), keys = keys.len(), "the keys are known");
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                *known = Known { keys, since: Some(Instant::now()) };
            }
            Err(error) => {
                tracing::warn!(issuer = self.name(), error, "the issuer's keys can't be had");
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let (name, json) = match &self.issuer.keys {
            KeySource::File(file) => {
                let name = file.display().to_string();
                let json = fs::read(file).map_err(|error| format!("{name}: {error}"))?;
                (name, json)
            }
            KeySource::Url { url, ca_file } => {
                (url.to_string(), fetch::get(url, ca_file.as_deref()).await?)
            }
        };
        let keys = KeySet::from_json(&json).map_err(|error| format!("{name}: {error}"))?;
        if keys.is_empty() {
            return Err(format!("{name}: has no key of Ed25519 or P-256 with a kid"));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwk(kid: &str) -> String {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        format!(r#"{{"kid":"{kid}","kty":"OKP","crv":"Ed25519","x":"{x}"}}"#)
    }

    #[tokio::test]
    async fn a_file_is_read_again_and_a_faulty_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        let write = |keys: &str| fs::write(&file, format!(r#"{{"keys":[{keys}]}}"#)).unwrap();
        write(&jwk("a"));
        let keys = KeySource::File(file.clone());
        let keys = IssuerKeys::new(Issuer { name: "issuer".into(), keys });
        assert!(keys.key("a").await.is_some());
        assert!(keys.key("b").await.is_none() && keys.key(&"a".repeat(300)).await.is_none());
        write(&jwk("b"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while keys.key("b").await.is_none() {
            assert!(Instant::now() < deadline, "the new key is not seen");
            tokio::task::yield_now().await;
        }
        assert!(keys.key("a").await.is_none(), "it is no longer the issuer's");
        let tried = *keys.tried.lock().await;
        fs::write(&file, "nonsense").unwrap();
        while *keys.tried.lock().await == tried {
            assert!(keys.key("b").await.is_some(), "the old keys go on");
            tokio::task::yield_now().await;
        }
        assert!(keys.key("b").await.is_some());
    }
}
