//! What is kept of a device's password: enough to know it by, not enough to say it.
//!
//! ```text
//! $hmac-sha256$SALT$TAG                     of a password that was generated: 128 random bits
//! $argon2id$v=19$m=7168,t=5,p=1$SALT$TAG    of a password that somebody chose
//! ```
//!
//! SALT and TAG are base64 without padding. 128 random bits can't be searched through, however
//! cheap one try is, so that SHA-256 (keyed with a salt of 128 bits, so that equal passwords don't
//! show) is enough and costs a board nothing. A chosen password can be searched for by whoever got
//! the file; argon2id makes each try cost memory and time (RFC 9106). Its cost is one of those that
//! OWASP's Password Storage Cheat Sheet holds for equal, the one with the least memory: 7 MiB, one
//! check at a time, beside which a board of 64 MB still works.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use ring::{hmac, rand::SecureRandom};
use zeroize::{Zeroize as _, Zeroizing};

const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 32;

/// The cost of a new chosen password: KiB, passes, lanes.
const COST: (u32, u32, u32) = (7 * 1024, 5, 1);

/// What a line that was written elsewhere may cost: more would make one login a load.
const MAX_COST: (u32, u32, u32) = (32 * 1024, 16, 4);

/// The shortest password that somebody may choose, in bytes (NIST SP 800-63B, section 5.1.1.1).
pub const MIN_PASSWORD_BYTES: usize = 8;

/// The digits of a generated password: no two look alike.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordDigest {
    /// HMAC-SHA-256 by the salt.
    Sha256 {
        /// The key.
        salt: [u8; SALT_BYTES],
        /// What must come out.
        tag: [u8; TAG_BYTES],
    },
    /// Argon2id, version 1.3.
    Argon2id {
        /// KiB, passes, lanes.
        cost: (u32, u32, u32),
        /// As RFC 9106 has it.
        salt: Vec<u8>,
        /// What must come out.
        tag: Vec<u8>,
    },
}

/// A new password of 128 random bits and what is kept of it. `None`: the kernel gives no random
/// numbers.
pub fn generate(random: &dyn SecureRandom) -> Option<(Zeroizing<String>, PasswordDigest)> {
    let mut bits = Zeroizing::new([0; 16]);
    random.fill(bits.as_mut()).ok()?;
    let number = u128::from_be_bytes(*bits);
    let digit = |place: u32| char::from(DIGITS[(number >> (5 * place)) as usize & 31]);
    let password: Zeroizing<String> = Zeroizing::new((0..26).rev().map(digit).collect());
    let mut salt = [0; SALT_BYTES];
    random.fill(&mut salt).ok()?;
    let tag = keyed(&salt, password.as_bytes());
    Some((password, PasswordDigest::Sha256 { salt, tag }))
}

impl PasswordDigest {
    /// Of a password that somebody chose. `None`: the kernel gives no random numbers.
    pub fn of_chosen(password: &[u8], random: &dyn SecureRandom) -> Option<Self> {
        let mut salt = vec![0; SALT_BYTES];
        random.fill(&mut salt).ok()?;
        let tag = argon2id(COST, &salt, password, TAG_BYTES)?;
        Some(Self::Argon2id { cost: COST, salt, tag })
    }

    /// One that no password is known to fit, and that takes as long to find that out as this one
    /// does. `None`: that is no time at all.
    pub fn decoy(&self) -> Option<Self> {
        match self {
            Self::Sha256 { .. } => None,
            Self::Argon2id { cost, salt, tag } => {
                let (salt, tag) = (vec![0; salt.len()], vec![0; tag.len()]);
                Some(Self::Argon2id { cost: *cost, salt, tag })
            }
        }
    }

    /// What checking a password takes, to compare.
    pub(super) fn work(&self) -> u64 {
        match self {
            Self::Sha256 { .. } => 0,
            Self::Argon2id { cost: (kib, passes, _), .. } => u64::from(*kib) * u64::from(*passes),
        }
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('$')?.split('$');
        let digest = match parts.next()? {
            "hmac-sha256" => {
                let mut bytes = || BASE64.decode(parts.next()?).ok();
                let (salt, tag) = (bytes()?, bytes()?);
                Self::Sha256 { salt: salt.try_into().ok()?, tag: tag.try_into().ok()? }
            }
            "argon2id" => {
                parts.next().filter(|version| *version == "v=19")?;
                let cost = read_cost(parts.next()?)?;
                let mut bytes = || BASE64.decode(parts.next()?).ok();
                let (salt, tag) = (bytes()?, bytes()?);
                if !(8..=64).contains(&salt.len()) || !(16..=64).contains(&tag.len()) {
                    return None;
                }
                Self::Argon2id { cost, salt, tag }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(digest)
    }

    /// Whether this is the password. The comparison takes the same time wherever they differ.
    pub fn fits(&self, password: &[u8]) -> bool {
        match self {
            Self::Sha256 { salt, tag } => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, salt);
                hmac::verify(&key, password, tag).is_ok()
            }
            Self::Argon2id { cost, salt, tag } => {
                let found = argon2id(*cost, salt, password, tag.len());
                found.is_some_and(|found| equal(&found, tag))
            }
        }
    }

    /// Whether [`PasswordDigest::fits`] takes so long that an event loop must not wait for it.
    pub fn is_slow(&self) -> bool {
        matches!(self, Self::Argon2id { .. })
    }
}

fn keyed(salt: &[u8; SALT_BYTES], password: &[u8]) -> [u8; TAG_BYTES] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt), password);
    tag.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
}

fn argon2id(
    (kib, passes, lanes): (u32, u32, u32),
    salt: &[u8],
    password: &[u8],
    tag_bytes: usize,
) -> Option<Vec<u8>> {
    let params = Params::new(kib, passes, lanes, Some(tag_bytes)).ok()?;
    let mut tag = vec![0; tag_bytes];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(password, salt, &mut tag).ok()?;
    Some(tag)
}

/// Whether they are the same, in a time that does not tell where they differ: what is compared is
/// each one's digest.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[]);
    hmac::verify(&key, one, hmac::sign(&key, other).as_ref()).is_ok()
}

/// `m=7168,t=5,p=1`, within bounds.
fn read_cost(text: &str) -> Option<(u32, u32, u32)> {
    let mut members = text.split(',');
    let mut member = |name: &str| members.next()?.strip_prefix(name)?.parse::<u32>().ok();
    let cost = (member("m=")?, member("t=")?, member("p=")?);
    let bounded = cost.0 <= MAX_COST.0 && cost.1 <= MAX_COST.1 && cost.2 <= MAX_COST.2;
    let sound = Params::new(cost.0, cost.1, cost.2, None).is_ok();
    (bounded && sound && members.next().is_none()).then_some(cost)
}

impl fmt::Display for PasswordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256 { salt, tag } => {
                write!(f, "$hmac-sha256${}${}", BASE64.encode(salt), BASE64.encode(tag))
            }
            Self::Argon2id { cost: (kib, passes, lanes), salt, tag } => {
                let (salt, tag) = (BASE64.encode(salt), BASE64.encode(tag));
                write!(f, "$argon2id$v=19$m={kib},t={passes},p={lanes}${salt}${tag}")
            }
        }
    }
}

impl fmt::Debug for PasswordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordDigest(hidden)")
    }
}

impl Drop for PasswordDigest {
    fn drop(&mut self) {
        match self {
            Self::Sha256 { tag, .. } => tag.zeroize(),
            Self::Argon2id { tag, .. } => tag.zeroize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;

    #[test]
    fn a_generated_password_is_known_again_and_is_never_the_same() {
        let random = SystemRandom::new();
        let (password, digest) = generate(&random).unwrap();
        let (other, _) = generate(&random).unwrap();
        assert_eq!((password.len(), *password == *other), (26, false));
        assert!(digest.fits(password.as_bytes()) && !digest.fits(other.as_bytes()));
        assert!(!digest.fits(b"") && !digest.is_slow());
        assert_eq!(PasswordDigest::parse(&digest.to_string()), Some(digest.clone()));
        assert!(!digest.to_string().contains(password.as_str()));
        assert_eq!(format!("{digest:?}"), "PasswordDigest(hidden)");
    }

    #[test]
    fn a_chosen_password_is_known_again() {
        let digest = PasswordDigest::of_chosen(b"correct horse", &SystemRandom::new()).unwrap();
        let text = digest.to_string();
        assert!(text.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{text}");
        let read = PasswordDigest::parse(&text).unwrap();
        assert!(read.fits(b"correct horse") && !read.fits(b"correct horsf"));
        assert!(read.is_slow() && !read.decoy().unwrap().fits(b""));
    }

    /// Made with the reference implementation's test vectors: version 19, m=256, t=2, p=1.
    #[test]
    fn what_others_made_is_read() {
        let line = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$\
                    nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        assert!(PasswordDigest::parse(line).unwrap().fits(b"password"));
    }

    #[test]
    fn what_is_no_digest_or_costs_too_much_is_refused() {
        let salt = "c29tZXNhbHRzb21lc2FsdA";
        let tag = "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        for bad in [
            String::new(),
            "secret".into(),
            format!("$hmac-sha256${salt}"),
            format!("$hmac-sha256${salt}${tag}$"),
            format!("$hmac-sha256${tag}${tag}"),
            format!("$argon2i$v=19$m=256,t=2,p=1${salt}${tag}"),
            format!("$argon2id$v=16$m=256,t=2,p=1${salt}${tag}"),
            format!("$argon2id$v=19$m=4194304,t=2,p=1${salt}${tag}"),
            format!("$argon2id$v=19$m=256,t=200,p=1${salt}${tag}"),
            format!("$argon2id$v=19$m=256,t=2,p=0${salt}${tag}"),
            format!("$argon2id$v=19$m=256,t=2${salt}${tag}"),
            format!("$argon2id$v=19$m=256,t=2,p=1$!${tag}"),
        ] {
            assert_eq!(PasswordDigest::parse(&bad), None, "{bad}");
        }
        assert!(PasswordDigest::parse(&format!("$hmac-sha256${salt}${tag}")).is_some());
    }
}
