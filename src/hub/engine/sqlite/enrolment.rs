//! Enrolment and what the hub's own CA signed: codes, keys and certificates, each step of it one
//! transaction.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::registry::{Registry, add_key, admit};
use crate::hub::{engine::EngineError, jwt::PublicKey};

/// How many keys of a gateway a renewal leaves beside the new one: a board that loses its power
/// between the answer and its first use of the new key comes back with the one before.
const OLDER_KEYS: i64 = 1;

/// A certificate as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its serial number, as in the certificate.
    pub serial: Vec<u8>,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
}

/// A certificate that is worth nothing any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// Its serial number, as in the certificate.
    pub serial: Vec<u8>,
    /// Since when, Unix milliseconds.
    pub revoked_ms: i64,
}

/// A board that came with a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// Who it is.
    pub gateway: String,
    /// Its certificate, PEM.
    pub certificate: String,
    /// It had been enrolled before, with this code and this key: the answer is the same, and
    /// nothing was changed.
    pub again: bool,
}

impl Registry {
    /// Keeps the SHA-256 of a code that enrols `gateway` once; an earlier code of the gateway is
    /// worth nothing any more, and a spent hour of another one is forgotten.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn add_code(
        &mut self,
        gateway: &str,
        sha256: &[u8],
        now_ms: i64,
        expires_ms: i64,
    ) -> Result<(), EngineError> {
        let step = self.begin()?;
        step.execute("DELETE FROM enrolment_codes WHERE expires_ms <= ?1", [now_ms])?;
        step.execute(
            "INSERT INTO enrolment_codes (gateway, sha256, expires_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT (gateway) DO UPDATE SET sha256 = excluded.sha256,
             expires_ms = excluded.expires_ms, key_sha256 = NULL, certificate = NULL",
            params![gateway, sha256, expires_ms],
        )?;
        Ok(step.commit()?)
    }

    /// Spends a code: whatever the gateway had before ends, `key` is registered, and what `sign`
    /// makes for the gateway is entered, or nothing of it happens. `None`: no such code, no longer,
    /// or spent on another key.
    ///
    /// Who comes again with the code and the key that it was spent on, because the answer was lost
    /// on the way, gets the same answer until the code ends.
    ///
    /// # Errors
    /// The database can't be written, or `sign` failed.
    pub fn enrol(
        &mut self,
        code_sha256: &[u8],
        key: &PublicKey,
        now_ms: i64,
        sign: impl FnOnce(&str) -> Result<(String, Certificate), EngineError>,
    ) -> Result<Option<Enrolled>, EngineError> {
        type Code = (String, i64, Option<Vec<u8>>, Option<String>);
        let step = self.begin()?;
        let found = step
            .query_row(
                "SELECT gateway, expires_ms, key_sha256, certificate FROM enrolment_codes
                 WHERE sha256 = ?1 AND expires_ms > ?2",
                params![code_sha256, now_ms],
                |row| Ok::<Code, _>((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .optional()?;
        let (gateway, expires_ms) = match found {
            None => return Ok(None),
            Some((gateway, expires_ms, None, _)) => (gateway, expires_ms),
            Some((gateway, _, Some(spent_on), certificate)) => {
                let certificate = certificate.filter(|_| spent_on == key.sha256());
                return Ok(certificate.map(|certificate| Enrolled {
                    gateway,
                    certificate,
                    again: true,
                }));
            }
        };
        let no = admit(&step, &gateway, now_ms)?;
        add_key(&step, no, key, now_ms)?;
        let (certificate, entry) = sign(&gateway)?;
        enter(&step, no, &entry, now_ms)?;
        step.execute(
            "INSERT INTO enrolment_codes (gateway, sha256, expires_ms, key_sha256, certificate)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![gateway, code_sha256, expires_ms, key.sha256(), certificate],
        )?;
        step.commit()?;
        Ok(Some(Enrolled { gateway, certificate, again: false }))
    }

    /// Registers the key of a renewed certificate, and enters what `sign` makes; the key before
    /// stays until the next renewal. `None`: no such gateway, or it is shut out.
    ///
    /// # Errors
    /// The database can't be written, or `sign` failed.
    pub fn renew<T>(
        &mut self,
        gateway: &str,
        key: &PublicKey,
        now_ms: i64,
        sign: impl FnOnce() -> Result<(T, Certificate), EngineError>,
    ) -> Result<Option<T>, EngineError> {
        let step = self.begin()?;
        let Some(no) = number(&step, gateway)? else { return Ok(None) };
        step.execute(
            "DELETE FROM gateway_keys WHERE gateway = ?1 AND sha256 <> ?2 AND sha256 NOT IN
             (SELECT sha256 FROM gateway_keys WHERE gateway = ?1 AND sha256 <> ?2
              ORDER BY added_ms DESC LIMIT ?3)",
            params![no, key.sha256(), OLDER_KEYS],
        )?;
        add_key(&step, no, key, now_ms)?;
        let (signed, certificate) = sign()?;
        enter(&step, no, &certificate, now_ms)?;
        step.commit()?;
        Ok(Some(signed))
    }

    /// Enters a certificate that was signed by hand; `false`: no such gateway, or it is shut out.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn add_certificate(
        &mut self,
        gateway: &str,
        certificate: &Certificate,
        now_ms: i64,
    ) -> Result<bool, EngineError> {
        let step = self.begin()?;
        let Some(no) = number(&step, gateway)? else { return Ok(false) };
        enter(&step, no, certificate, now_ms)?;
        step.commit()?;
        Ok(true)
    }

    /// The certificates that were revoked and have not ended by themselves.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn revoked_certificates(
        &self,
        now_ms: i64,
    ) -> Result<Vec<RevokedCertificate>, EngineError> {
        let mut query = self.db.prepare(
            "SELECT serial, revoked_ms FROM certificates
             WHERE revoked_ms IS NOT NULL AND not_after_ms > ?1 ORDER BY revoked_ms, serial",
        )?;
        let rows = query.query_map([now_ms], |row| {
            Ok(RevokedCertificate { serial: row.get(0)?, revoked_ms: row.get(1)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn number(step: &Transaction<'_>, gateway: &str) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT no FROM gateways WHERE id = ?1 AND revoked_ms IS NULL";
    step.query_row(sql, [gateway], |row| row.get(0)).optional()
}

/// Also forgets what ended long enough ago for no clock to take it for valid.
fn enter(
    step: &Transaction<'_>,
    no: i64,
    certificate: &Certificate,
    now_ms: i64,
) -> rusqlite::Result<()> {
    const MONTH_MS: i64 = 30 * 24 * 3_600_000;
    step.execute(
        "DELETE FROM certificates WHERE gateway = ?1 AND not_after_ms < ?2",
        params![no, now_ms - MONTH_MS],
    )?;
    step.execute(
        "INSERT INTO certificates (serial, gateway, created_ms, not_after_ms)
         VALUES (?1, ?2, ?3, ?4)",
        params![certificate.serial, no, now_ms, certificate.not_after_ms],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::engine::{Admission, Reader, Voucher};

    const HOUR: i64 = 3_600_000;

    fn bench() -> (tempfile::TempDir, Registry, Reader) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hub.db");
        (dir, Registry::open(&path).unwrap(), Reader::new(path))
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::Ed25519([byte; 32])
    }

    fn certificate(serial: u8) -> Certificate {
        Certificate { serial: vec![serial], not_after_ms: 100 * HOUR }
    }

    #[test]
    fn a_code_enrols_once_and_ends_what_the_gateway_had_before() {
        let (_dir, mut registry, reader) = bench();
        registry.add_gateway("gw", Admission::Token(b"digest"), 1).unwrap();
        registry.add_certificate("gw", &certificate(1), 1).unwrap();
        registry.add_code("gw", b"code", 1, HOUR).unwrap();
        let sign = |gateway: &str| Ok((format!("for {gateway}"), certificate(2)));
        let enrolled = registry.enrol(b"code", &key(1), 2, sign).unwrap().unwrap();
        assert_eq!((&*enrolled.gateway, &*enrolled.certificate), ("gw", "for gw"));
        assert_eq!(registry.enrol(b"code", &key(9), 3, sign).unwrap(), None, "single use");
        assert_eq!(reader.gateway_of_token(b"digest").unwrap(), None);
        assert_eq!(reader.keys_of_gateway("gw").unwrap(), [key(1)]);
        let revoked = RevokedCertificate { serial: vec![1], revoked_ms: 2 };
        assert_eq!(registry.revoked_certificates(4).unwrap(), [revoked]);
        assert!(reader.is_revoked_certificate(&[1]).unwrap());
        assert!(!reader.is_revoked_certificate(&[2]).unwrap());
        assert_eq!(registry.revoked_certificates(200 * HOUR).unwrap(), []);
    }

    /// The answer to an enrolment was lost on the line: the code was spent, the board had no
    /// certificate, and nobody could enrol it without a visit.
    #[test]
    fn a_board_that_comes_again_with_its_key_gets_the_same_answer_and_changes_nothing() {
        let (_dir, mut registry, reader) = bench();
        registry.add_code("gw", b"code", 1, HOUR).unwrap();
        let first = |_: &str| Ok(("first".to_owned(), certificate(1)));
        let never = |_: &str| -> Result<(String, Certificate), EngineError> { unreachable!() };
        let once = registry.enrol(b"code", &key(1), 2, first).unwrap().unwrap();
        assert!(reader.knows_code(b"code", Some(&key(1)), 3).unwrap());
        let again = registry.enrol(b"code", &key(1), 3, never).unwrap().unwrap();
        assert_eq!(again, Enrolled { again: true, ..once });
        for other in [Some(&key(2)), None] {
            assert!(!reader.knows_code(b"code", other, 3).unwrap(), "another's key");
        }
        assert_eq!(registry.enrol(b"code", &key(2), 3, never).unwrap(), None, "another's key");
        assert_eq!(registry.enrol(b"code", &key(1), HOUR, never).unwrap(), None, "too late");
        assert_eq!(registry.revoked_certificates(4).unwrap(), []);
        assert_eq!(reader.keys_of_gateway("gw").unwrap(), [key(1)]);
        // Whoever replaces the credential meanwhile has the last word.
        registry.add_gateway("gw", Admission::Token(b"digest"), 4).unwrap();
        assert_eq!(registry.enrol(b"code", &key(1), 5, never).unwrap(), None);
    }

    #[test]
    fn of_two_boards_with_one_code_exactly_one_is_enrolled() {
        let (dir, mut registry, reader) = bench();
        registry.add_code("gw", b"code", 1, HOUR).unwrap();
        let path = dir.path().join("hub.db");
        let start = std::sync::Barrier::new(8);
        let enrolled: Vec<Option<u8>> = std::thread::scope(|scope| {
            let board = |number: u8| {
                let (path, start) = (&path, &start);
                move || {
                    let mut registry = Registry::open(path).unwrap();
                    let sign = |_: &str| Ok(("pem".to_owned(), certificate(number)));
                    start.wait();
                    registry.enrol(b"code", &key(number), 2, sign).unwrap().map(|_| number)
                }
            };
            let boards: Vec<_> = (0..8).map(|number| scope.spawn(board(number))).collect();
            boards.into_iter().map(|board| board.join().unwrap()).collect()
        });
        let winners: Vec<u8> = enrolled.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(reader.keys_of_gateway("gw").unwrap(), [key(winners[0])]);
    }

    /// A token was given out in the place of a certificate, and the certificate still got in; so
    /// did a code that was given out before, and a certificate of an outside CA.
    #[test]
    fn whatever_a_gateway_is_given_ends_what_it_had() {
        let (_dir, mut registry, reader) = bench();
        let admissions = [Admission::Token(b"digest"), Admission::Key(&key(1)), Admission::Named];
        let vouched = |reader: &Reader| {
            [Voucher::OwnCa, Voucher::Outside]
                .map(|voucher| reader.is_admitted("gw", voucher).unwrap())
        };
        for (serial, next) in (1..).zip(admissions) {
            // Everything at once.
            registry.add_gateway("gw", Admission::Named, 1).unwrap();
            let sign = || Ok(((), certificate(serial)));
            assert!(registry.renew("gw", &key(7), 1, sign).unwrap().is_some());
            registry.add_code("gw", b"code", 1, HOUR).unwrap();
            assert_eq!(vouched(&reader), [true, true]);

            registry.add_gateway("gw", next, 2).unwrap();
            assert!(reader.is_revoked_certificate(&[serial]).unwrap(), "{next:?}");
            assert!(!reader.keys_of_gateway("gw").unwrap().contains(&key(7)), "{next:?}");
            assert!(!reader.knows_code(b"code", None, 2).unwrap(), "{next:?}");
            let by_name = matches!(next, Admission::Named);
            assert_eq!(vouched(&reader), [by_name, by_name], "{next:?}");
        }
        // Enrolment does the same, and lets our own CA alone speak for the gateway.
        registry.add_code("gw", b"next", 3, HOUR).unwrap();
        let sign = |_: &str| Ok(("pem".to_owned(), certificate(9)));
        assert!(registry.enrol(b"next", &key(2), 4, sign).unwrap().is_some());
        assert_eq!(vouched(&reader), [true, false]);
        registry.revoke_gateway("gw", 5).unwrap();
        assert_eq!(vouched(&reader), [false, false]);
        registry.add_gateway("gw", Admission::Token(b"digest"), 6).unwrap();
        assert_eq!(vouched(&reader), [false, false], "let in again, by its token alone");
        // What is signed by hand gets in beside the token.
        registry.add_certificate("gw", &certificate(10), 7).unwrap();
        assert_eq!(vouched(&reader), [true, false]);
    }

    #[test]
    fn a_code_that_can_not_be_signed_for_is_not_spent() {
        let (_dir, mut registry, reader) = bench();
        registry.add_code("gw", b"code", 1, HOUR).unwrap();
        let fails = |_: &str| Err(EngineError("no CA".into()));
        assert!(registry.enrol(b"code", &key(1), 2, fails).is_err());
        assert!(reader.gateways(Some("gw")).unwrap().is_empty());
        let sign = |_: &str| Ok((String::new(), certificate(1)));
        assert!(registry.enrol(b"code", &key(1), 2, sign).unwrap().is_some());
    }

    #[test]
    fn a_code_ends_by_time_by_a_newer_one_and_with_its_gateway() {
        let (_dir, mut registry, _) = bench();
        let sign = |_: &str| Ok((String::new(), certificate(1)));
        registry.add_code("gw", b"first", 1, HOUR).unwrap();
        registry.add_code("gw", b"second", 1, HOUR).unwrap();
        assert_eq!(registry.enrol(b"first", &key(1), 2, sign).unwrap(), None);
        assert_eq!(registry.enrol(b"second", &key(1), HOUR, sign).unwrap(), None);
        registry.add_gateway("gw", Admission::Named, 1).unwrap();
        registry.add_code("gw", b"third", 1, HOUR).unwrap();
        assert!(registry.revoke_gateway("gw", 2).unwrap());
        assert_eq!(registry.enrol(b"third", &key(1), 3, sign).unwrap(), None);
    }

    #[test]
    fn a_renewal_leaves_the_key_before_until_the_next() {
        let (_dir, mut registry, reader) = bench();
        registry.add_gateway("gw", Admission::Key(&key(1)), 1).unwrap();
        for number in 2..5 {
            let sign = || Ok(((), certificate(number)));
            assert!(registry.renew("gw", &key(number), number.into(), sign).unwrap().is_some());
            let mut keys = reader.keys_of_gateway("gw").unwrap();
            keys.sort_by_key(PublicKey::to_spki);
            assert_eq!(keys, [key(number - 1), key(number)]);
        }
        registry.revoke_gateway("gw", 9).unwrap();
        let sign = || Ok(((), certificate(9)));
        assert!(registry.renew("gw", &key(9), 9, sign).unwrap().is_none());
        assert_eq!(reader.keys_of_gateway("gw").unwrap(), []);
        assert_eq!(registry.revoked_certificates(10).unwrap().len(), 3);
    }
}
