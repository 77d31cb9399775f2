//! How long the gateway's own certificates are good: for `status`, metrics, and the log.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    config::Config,
    identity::{Certificate, Clock, calendar::Moment},
};

/// How often the dates are looked at: a board without a clock may know the time soon.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// The days left from which on the log says so, once each.
const THRESHOLDS: [i64; 3] = [1, 7, 30];

const DAY_S: i64 = 86_400;

/// The certificates that the gateway shows, by their keys in the configuration.
pub(super) fn certificates(config: &Config) -> Vec<(&'static str, PathBuf)> {
    let mut all = Vec::new();
    let mut add = |key, file: Option<&PathBuf>| all.extend(file.map(|file| (key, file.clone())));
    let cert = |pair: &'_ Option<(PathBuf, PathBuf)>| pair.as_ref().map(|(cert, _)| cert.clone());
    let uplink = config.uplink.as_ref().and_then(|uplink| cert(&uplink.client_cert));
    add("uplink.client_cert_file", uplink.as_ref());
    let mqtt = config.mqtt.as_ref().and_then(|mqtt| cert(&mqtt.client_cert));
    add("mqtt.client_cert_file", mqtt.as_ref());
    let tls = config.listener.as_ref().and_then(|listener| listener.tls.as_ref());
    add("listener.cert_file", tls.map(|tls| &tls.cert_file));
    all
}

/// The board's best word on the time.
pub(super) fn moment(clock: &Clock) -> Moment {
    let unix_seconds = clock.unix_ms() / 1000;
    Moment { unix_seconds: i64::try_from(unix_seconds).unwrap_or(i64::MAX) }
}

/// For `status`: each certificate, and how many days it has left.
pub(super) fn account(config: &Config, now: Moment) -> Value {
    let told = certificates(config).into_iter().filter_map(|(key, file)| {
        let certificate = Certificate::from_file(&file).ok()?;
        Some(json!({
            "key": key,
            "subject": certificate.subject,
            "not_after": certificate.not_after.to_string(),
            "days_left": certificate.days_left(now),
        }))
    });
    told.collect()
}

/// Looks at the certificates now and every hour, and logs each threshold that one has come below,
/// once; on a clock that is not trusted, none. The file is read anew each time, as what it names
/// may change while the gateway runs.
pub(super) async fn watch(config: Config, clock: Arc<Clock>) {
    let mut told = Vec::new();
    let mut config = config;
    let mut every = tokio::time::interval(LOOK_EVERY);
    loop {
        every.tick().await;
        // A file that is faulty now is told of by whoever reloads it.
        config = Config::load(&config.file).unwrap_or(config);
        if clock.now().0.synced {
            look(&certificates(&config), moment(&clock), &mut told);
        }
    }
}

/// What was told of a file: when its certificate ends, and below how many days it is.
type Told = (PathBuf, Moment, i64);

fn look(files: &[(&'static str, PathBuf)], now: Moment, told: &mut Vec<Told>) {
    for (key, file) in files {
        // One that can't be read is told of by whoever uses it.
        let Ok(certificate) = Certificate::from_file(file) else { continue };
        let left = certificate.days_left(now);
        let Some(below) = threshold(&certificate, now) else { continue };
        let this = (file.clone(), certificate.not_after, below);
        if !told.contains(&this) {
            warn(key, file, &certificate, left);
            told.retain(|(other, ..)| other != file);
            told.push(this);
        }
    }
}

/// The least of the thresholds that a certificate's days are not above; 0 when it is over. One that
/// lasts less than twice a threshold is meant to be replaced in that time, and is not told of.
pub(super) fn threshold(certificate: &Certificate, now: Moment) -> Option<i64> {
    let Certificate { not_before, not_after, .. } = certificate;
    let lifetime_s = not_after.unix_seconds.saturating_sub(not_before.unix_seconds);
    let days_left = certificate.days_left(now);
    if days_left < 0 {
        return Some(0);
    }
    THRESHOLDS.into_iter().find(|days| days_left <= *days && lifetime_s >= 2 * days * DAY_S)
}

fn warn(key: &str, file: &Path, certificate: &Certificate, left: i64) {
    let (file, until) = (file.display(), certificate.not_after);
    if left < 0 {
        tracing::error!(%file, "{key}: the certificate expired at {until}; renew it");
    } else {
        tracing::warn!(
            %file,
            "{key}: the certificate has {left} days left, until {until}; fieldgate identity renew"
        );
    }
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    /// A certificate that lives for a day is renewed every few hours; each one was warned of.
    #[test]
    fn a_certificate_of_a_day_is_not_warned_of_before_it_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gw.pem");
        let mut params = rcgen::CertificateParams::new(vec!["gw-1".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2050, 1, 1);
        params.not_after = rcgen::date_time_ymd(2050, 1, 2);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        let certificate = Certificate::from_file(&file).unwrap();
        let begin = certificate.not_before.unix_seconds;
        let told = |after| threshold(&certificate, Moment { unix_seconds: begin + after });
        assert_eq!([told(0), told(DAY_S - 1), told(DAY_S + 1)], [None, None, Some(0)]);
    }

    #[test]
    fn each_threshold_is_told_once_and_a_new_certificate_starts_anew() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gw.pem");
        let issue = |year| {
            let mut params = rcgen::CertificateParams::new(vec!["gw-1".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
            Certificate::from_file(&file).unwrap().not_after.unix_seconds
        };
        let end = issue(2050);
        let files = [("uplink.client_cert_file", file.clone())];
        let mut told = Vec::new();
        let mut heard = |end: i64, days_before: i64| {
            let before = told.clone();
            let now = Moment { unix_seconds: end - days_before * DAY_S };
            look(&files, now, &mut told);
            (told != before).then(|| told[0].2)
        };
        let said = [40, 31, 30, 29, 8, 7, 2, 1, 0, -1, -2].map(|days| heard(end, days));
        let expected = [0, 0, 30, 0, 0, 7, 0, 1, 0, 0, 0].map(|it| (it > 0).then_some(it));
        assert_eq!(said[..9], expected[..9]);
        assert_eq!(said[9..], [Some(0), None]);
        let end = issue(2051);
        assert_eq!([heard(end, 90), heard(end, 7)], [None, Some(7)]);
    }
}
