//! The demo's account: every number that a device saw acknowledged must be at the hub, once and in
//! order.
//!
//! Pure: no IO, no clock.

use std::collections::BTreeSet;

/// Numbers of one device that were passed over and may still come. At the bound further ones count
/// as lost at once.
const MAX_MISSING: usize = 10_000;

/// The account of all devices.
#[derive(Debug)]
pub(super) struct Account {
    devices: Vec<DeviceAccount>,
}

/// What stands at this moment, over all devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    /// Publishes that the gateway acknowledged to its devices.
    pub(super) acknowledged: u64,
    /// Numbers that are at the hub.
    pub(super) delivered: u64,
    /// Numbers that the hub passed over.
    pub(super) lost: u64,
    /// Rows of the hub that it had before.
    pub(super) duplicated: u64,
}

/// One device's side of the account. It numbers its publishes from 1.
#[derive(Debug)]
struct DeviceAccount {
    name: &'static str,
    published: u64,
    acknowledged: u64,
    delivered: u64,
    /// The number that is to come next.
    next: u64,
    missing: BTreeSet<u64>,
    given_up: u64,
    duplicated: u64,
    disordered: u64,
}

impl Account {
    pub(super) fn new(devices: &[&'static str]) -> Self {
        let open = |name: &&'static str| DeviceAccount {
            name,
            published: 0,
            acknowledged: 0,
            delivered: 0,
            next: 1,
            missing: BTreeSet::new(),
            given_up: 0,
            duplicated: 0,
            disordered: 0,
        };
        Self { devices: devices.iter().map(open).collect() }
    }

    /// What a device published so far, and saw acknowledged: the numbers 1 to `acknowledged`, as
    /// MQTT acknowledges in order.
    pub(super) fn handle_sent(&mut self, device: &str, published: u64, acknowledged: u64) {
        if let Some(device) = self.devices.iter_mut().find(|known| known.name == device) {
            (device.published, device.acknowledged) = (published, acknowledged);
        }
    }

    /// A row of the hub. One of a device that is not ours is somebody else trying things out.
    pub(super) fn handle_row(&mut self, device: &str, number: u64) {
        if let Some(device) = self.devices.iter_mut().find(|known| known.name == device) {
            device.handle_row(number);
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let sum = |of: fn(&DeviceAccount) -> u64| self.devices.iter().map(of).sum();
        Totals {
            acknowledged: sum(|device| device.acknowledged),
            delivered: sum(|device| device.delivered),
            lost: sum(DeviceAccount::passed_over),
            duplicated: sum(|device| device.duplicated),
        }
    }

    /// Whether everything published is acknowledged and at the hub, so that nothing more is to
    /// come.
    pub(super) fn is_settled(&self) -> bool {
        self.devices.iter().all(|device| {
            device.acknowledged == device.published && device.next > device.acknowledged
        })
    }

    /// One line per device.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.devices.iter().map(|device| {
            let DeviceAccount { name, acknowledged, delivered, .. } = device;
            let order = match (device.delivered, device.faults().next()) {
                (0, _) => "nothing came".to_owned(),
                (_, None) => format!("1 to {}, each once, in order", device.next - 1),
                (_, Some(_)) => "see below".to_owned(),
            };
            format!("{name:<10} {acknowledged:>6} acknowledged  {delivered:>6} at the hub  {order}")
        })
    }

    /// What does not balance, when nothing more is to come.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        self.devices.iter().flat_map(DeviceAccount::faults)
    }
}

impl DeviceAccount {
    fn handle_row(&mut self, number: u64) {
        if number >= self.next {
            let room = MAX_MISSING.saturating_sub(self.missing.len()) as u64;
            let jumped = number - self.next;
            self.missing.extend(self.next..self.next + jumped.min(room));
            self.given_up = self.given_up.saturating_add(jumped.saturating_sub(room));
            self.next = number.saturating_add(1);
        } else if self.missing.remove(&number) {
            self.disordered += 1;
        } else {
            self.duplicated += 1;
            return;
        }
        self.delivered += 1;
    }

    fn passed_over(&self) -> u64 {
        self.given_up.saturating_add(self.missing.len() as u64)
    }

    fn faults(&self) -> impl Iterator<Item = String> {
        let name = self.name;
        let behind = self.acknowledged.saturating_sub(self.next - 1);
        let lost = self.passed_over().saturating_add(behind);
        let first = self.missing.first().copied().unwrap_or(self.next);
        let unacknowledged = self.published - self.acknowledged.min(self.published);
        let idle = u64::from(self.published == 0);
        let invented = (self.next - 1).saturating_sub(self.published);
        [
            (idle, format!("{name}: it published nothing")),
            (lost, format!("{name}: {lost} acknowledged and not at the hub, the first is {first}")),
            (self.duplicated, format!("{name}: {} at the hub twice", self.duplicated)),
            (self.disordered, format!("{name}: {} came after later ones", self.disordered)),
            (unacknowledged, format!("{name}: {unacknowledged} publishes were not acknowledged")),
            (invented, format!("{name}: the hub has a number that was never published")),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(_, fault)| fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "plc-01";

    fn account(sent: u64, rows: impl IntoIterator<Item = u64>) -> Account {
        let mut account = Account::new(&[DEVICE]);
        account.handle_sent(DEVICE, sent, sent);
        rows.into_iter().for_each(|number| account.handle_row(DEVICE, number));
        account
    }

    fn only_fault(account: &Account) -> String {
        let faults: Vec<String> = account.faults().collect();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].clone()
    }

    #[test]
    fn everything_once_in_order_balances() {
        let account = account(100, 1..=100);
        assert!(account.is_settled());
        assert_eq!(account.faults().next(), None);
        let totals = Totals { acknowledged: 100, delivered: 100, lost: 0, duplicated: 0 };
        assert_eq!(account.totals(), totals);
        assert!(account.lines().next().unwrap().contains("1 to 100, each once, in order"));
    }

    #[test]
    fn a_number_that_the_hub_passed_over_is_lost() {
        let account = account(5, [1, 2, 4, 5]);
        assert_eq!(account.totals().lost, 1);
        assert!(account.is_settled(), "waiting longer would not bring it");
        let fault = only_fault(&account);
        assert_eq!(fault, "plc-01: 1 acknowledged and not at the hub, the first is 3");
    }

    #[test]
    fn numbers_that_are_still_on_their_way_are_lost_only_at_the_end() {
        let account = account(5, [1, 2, 3]);
        assert_eq!(account.totals().lost, 0);
        assert!(!account.is_settled());
        assert!(only_fault(&account).contains("2 acknowledged and not at the hub"));
    }

    #[test]
    fn a_number_that_comes_twice_is_duplicated() {
        let account = account(3, [1, 2, 2, 3]);
        assert_eq!((account.totals().delivered, account.totals().duplicated), (3, 1));
        assert!(only_fault(&account).contains("1 at the hub twice"));
    }

    #[test]
    fn a_number_that_comes_late_is_delivered_but_out_of_order() {
        let account = account(3, [1, 3, 2]);
        let totals = account.totals();
        assert_eq!((totals.delivered, totals.lost, totals.duplicated), (3, 0, 0));
        assert!(only_fault(&account).contains("1 came after later ones"));
    }

    #[test]
    fn an_unacknowledged_publish_is_a_fault_but_no_loss() {
        let mut account = account(0, [1, 2]);
        account.handle_sent(DEVICE, 3, 2);
        assert!(!account.is_settled());
        assert!(only_fault(&account).contains("1 publishes were not acknowledged"));
    }

    #[test]
    fn numbers_out_of_nowhere_neither_overflow_nor_fill_the_memory() {
        let account = account(1, [1, u64::MAX, 0, 2, 1 << 63]);
        assert!(account.devices[0].missing.len() <= MAX_MISSING);
        assert!(account.faults().count() >= 2);
        assert!(account.totals().lost > 1 << 62);
    }

    #[test]
    fn an_account_of_nothing_does_not_balance() {
        assert_eq!(only_fault(&account(0, [])), "plc-01: it published nothing");
    }

    #[test]
    fn rows_of_strangers_do_not_count() {
        let mut account = account(1, [1]);
        account.handle_row("stranger", 7);
        assert_eq!(account.totals().delivered, 1);
        assert_eq!(account.faults().next(), None);
    }
}
