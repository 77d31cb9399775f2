//! What arrived at the hub, held against what the devices saw acknowledged.

use std::collections::{BTreeMap, HashSet};

use super::{device::Account, hub::Row};

/// The account of what arrived.
#[derive(Default)]
pub struct Ledger {
    devices: BTreeMap<String, Vec<Arrival>>,
    positions: HashSet<(String, String, u64)>,
    /// Rows whose (stream, epoch, seq) was there before: the uplink doubled them.
    pub repeated: Vec<(String, String, u64)>,
}

#[derive(Debug)]
struct Arrival {
    n: u64,
    epoch: String,
}

impl Ledger {
    pub fn add(&mut self, row: &Row) {
        let position = (row.stream.clone(), row.epoch.clone(), row.seq);
        if !self.positions.insert(position.clone()) {
            self.repeated.push(position);
        }
        if let (Some(device), Some(n)) = (&row.device, row.n) {
            let arrival = Arrival { n, epoch: row.epoch.clone() };
            self.devices.entry(device.clone()).or_default().push(arrival);
        }
    }

    /// The acknowledged numbers of `device` that have not arrived.
    pub fn missing(&self, device: &str, account: &Account) -> Vec<u64> {
        let arrived: HashSet<u64> = self.arrivals(device).iter().map(|arrival| arrival.n).collect();
        account.acked.iter().copied().filter(|n| !arrived.contains(n)).collect()
    }

    /// How many of `device`'s numbers arrived, each counted once.
    pub fn distinct(&self, device: &str) -> usize {
        self.arrivals(device).iter().map(|arrival| arrival.n).collect::<HashSet<_>>().len()
    }

    /// Numbers of `device` that came first after a greater one.
    pub fn out_of_order(&self, device: &str) -> Vec<u64> {
        let (mut seen, mut greatest, mut late) = (HashSet::new(), 0, Vec::new());
        for arrival in self.arrivals(device) {
            if seen.insert(arrival.n) && arrival.n < greatest {
                late.push(arrival.n);
            }
            greatest = greatest.max(arrival.n);
        }
        late
    }

    /// Numbers of `device` that came more than once; and those of them that came so within one
    /// epoch, between whose arrivals the gateway did not even start.
    pub fn duplicates(&self, device: &str) -> (Vec<u64>, Vec<u64>) {
        let (mut seen, mut here) = (HashSet::new(), HashSet::new());
        let (mut twice, mut within_epoch) = (Vec::new(), Vec::new());
        for arrival in self.arrivals(device) {
            if !seen.insert(arrival.n) {
                twice.push(arrival.n);
            }
            if !here.insert((arrival.n, arrival.epoch.as_str())) {
                within_epoch.push(arrival.n);
            }
        }
        (twice, within_epoch)
    }

    fn arrivals(&self, device: &str) -> &[Arrival] {
        self.devices.get(device).map_or(&[], Vec::as_slice)
    }
}
