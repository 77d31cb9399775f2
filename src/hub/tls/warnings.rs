//! The hub's own certificate is about to end, or has ended.

use std::path::Path;

const DAY_S: u64 = 24 * 3600;

/// How many days before the end it is said, once each.
const DAYS: [u64; 3] = [30, 7, 1];

/// What was said of a certificate.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    of: (u64, u64),
    said: Option<u64>,
}

impl Warnings {
    /// Says what is to be said now.
    pub(super) fn look(&mut self, now_s: u64, validity_s: (u64, u64), file: &Path) {
        let Some(within) = self.due(now_s, validity_s) else { return };
        let file = file.display();
        if within == 0 {
            tracing::error!(%file, "the hub's certificate has expired: no gateway gets in; renew it");
        } else {
            let days = validity_s.1.saturating_sub(now_s) / DAY_S;
            tracing::warn!(%file, days, "the hub's certificate ends soon; renew it");
        }
    }

    /// Within how many days the end lies, 0 for the past, where that was not said yet. A
    /// certificate that lasts less than twice the days was meant to be replaced in that time.
    fn due(&mut self, now_s: u64, validity_s: (u64, u64)) -> Option<u64> {
        if self.of != validity_s {
            *self = Self { of: validity_s, said: None };
        }
        let (not_before, not_after) = validity_s;
        let lifetime = not_after.saturating_sub(not_before);
        let left = not_after.saturating_sub(now_s);
        let within = match left {
            0 => 0,
            _ => {
                *DAYS.iter().rfind(|days| left <= *days * DAY_S && lifetime >= 2 * *days * DAY_S)?
            }
        };
        let is_news = self.said.is_none_or(|said| within < said);
        is_news.then(|| {
            self.said = Some(within);
            within
        })
    }
}

/// A list of what an outside CA revoked is out of date.
#[derive(Debug, Default)]
pub(super) struct StaleList {
    said_of: Option<u64>,
}

impl StaleList {
    /// Says once of each list that its CA was to bring a newer one by now.
    pub(super) fn look(&mut self, now_s: u64, next_s: Option<u64>, file: &Path) {
        if self.is_news(now_s, next_s) {
            let file = file.display();
            tracing::warn!(
                %file,
                "the list of revoked certificates is out of date: it goes on, and whoever was \
                 revoked since gets in; fetch the CA's newest"
            );
        }
    }

    fn is_news(&mut self, now_s: u64, next_s: Option<u64>) -> bool {
        let stale = next_s.filter(|next_s| *next_s <= now_s);
        stale.is_some() && std::mem::replace(&mut self.said_of, stale) != stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_out_of_date_is_said_once() {
        let mut stale = StaleList::default();
        let mut said = |now_s, next_s| stale.is_news(now_s, next_s);
        assert!(!said(99, Some(100)) && !said(99, None));
        assert!(said(100, Some(100)) && !said(101, Some(100)));
        assert!(!said(102, Some(200)) && said(200, Some(200)) && !said(201, Some(200)));
    }

    #[test]
    fn each_threshold_is_said_once_and_a_new_certificate_begins_anew() {
        let validity = (0, 90 * DAY_S);
        let mut warnings = Warnings::default();
        let said: Vec<(u64, u64)> = (0..92 * 24)
            .filter_map(|hour| Some((hour, warnings.due(hour * 3600, validity)?)))
            .collect();
        assert_eq!(said, [(60 * 24, 30), (83 * 24, 7), (89 * 24, 1), (90 * 24, 0)]);
        assert_eq!(warnings.due(90 * DAY_S, (0, 180 * DAY_S)), None);
        assert_eq!(warnings.due(170 * DAY_S, (0, 180 * DAY_S)), Some(30));
    }

    #[test]
    fn a_certificate_of_a_day_is_not_warned_of_on_its_first() {
        let mut warnings = Warnings::default();
        assert_eq!(warnings.due(1, (0, DAY_S)), None);
        assert_eq!(warnings.due(DAY_S, (0, DAY_S)), Some(0));
        assert_eq!(Warnings::default().due(60 * DAY_S + 1, (0, 61 * DAY_S)), Some(1));
    }
}
