//! What is measured: messages numbered and dated in their payload, and their arrival at the far
//! end.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::timeout};

/// The size of a payload: what the peers were measured with.
pub(crate) const PAYLOAD_BYTES: usize = 238;

/// Numbers and times have a fixed width, so that payloads have a fixed size: they count from here.
const FIRST_NUMBER: u64 = 1_000_000_000;
const FIRST_MICROS: u64 = 1_000_000_000_000;
const NUMBER_AT: usize = r#"{"n":"#.len();
const MICROS_AT: usize = NUMBER_AT + r#"1000000000,"sent":"#.len();

/// How long nothing may arrive before what is missing is taken to be lost.
const STALL: Duration = Duration::from_secs(10);

/// The far end's account of one phase. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    origin: Instant,
    phase: Arc<Mutex<Phase>>,
    first: Arc<Notify>,
    complete: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Phase {
    first: u64,
    seen: Vec<bool>,
    account: Account,
    last_arrival: Option<Instant>,
}

/// What became of a phase's messages.
#[derive(Debug, Default, Clone)]
pub(crate) struct Account {
    pub(crate) arrived: usize,
    pub(crate) doubled: usize,
    /// From sending to arrival, of each, in the order of arrival.
    pub(crate) latencies: Vec<Duration>,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            phase: Arc::default(),
            first: Arc::default(),
            complete: Arc::default(),
        }
    }

    /// Expects messages `first` up to and without `first + count` from now on, and no others.
    pub(crate) fn expect(&self, first: u64, count: usize) {
        let latencies = Vec::with_capacity(count);
        let account = Account { latencies, ..Account::default() };
        *self.lock() = Phase { first, seen: vec![false; count], account, last_arrival: None };
    }

    /// The payload of message `number`, dated now: JSON of a plausible reading, its digits never
    /// the same twice.
    pub(crate) fn payload(&self, number: u64, device: usize) -> String {
        use std::fmt::Write as _;
        let micros = FIRST_MICROS + self.origin.elapsed().as_micros() as u64;
        let digits = (number ^ 0x5bd1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let digit = |shift: u32, modulus: u64| (digits >> shift) % modulus;
        let mut text = String::with_capacity(PAYLOAD_BYTES);
        write!(
            text,
            concat!(
                r#"{{"n":{},"sent":{},"device":"plc-{:02}","temperature":{}.{:03},"#,
                r#""humidity":{}.{:02},"pressure":{}.{:02},"vibration":{{"x":0.{:04},"y":0.{:04},"#,
                r#""z":0.{:04}}},"voltage":{}.{:03},"state":"running","firmware":"2.14.1""#
            ),
            FIRST_NUMBER + number,
            micros,
            device,
            20 + digit(0, 10),
            digit(4, 1000),
            40 + digit(14, 20),
            digit(19, 100),
            1000 + digit(26, 30),
            digit(31, 100),
            digit(38, 10_000),
            digit(41, 10_000),
            digit(44, 10_000),
            23 + digit(50, 2),
            digit(52, 1000),
        )
        .expect("writing to memory can't fail");
        let room = PAYLOAD_BYTES - text.len() - r#","note":""}"#.len();
        write!(text, r#","note":"{}"}}"#, &"................................"[..room])
            .expect("writing to memory can't fail");
        text
    }

    /// Takes in a payload that arrived; one that is not of this phase counts for nothing.
    pub(crate) fn arrived(&self, payload: &[u8]) {
        let now = Instant::now();
        let Some(number) = digits(payload, NUMBER_AT, 10) else { return };
        let Some(micros) = digits(payload, MICROS_AT, 13) else { return };
        let mut phase = self.lock();
        let index = number.wrapping_sub(FIRST_NUMBER).wrapping_sub(phase.first);
        let Some(seen) = usize::try_from(index).ok().and_then(|at| phase.seen.get_mut(at)) else {
            return;
        };
        if std::mem::replace(seen, true) {
            phase.account.doubled += 1;
            return;
        }
        let sent = Duration::from_micros(micros.saturating_sub(FIRST_MICROS));
        phase.account.latencies.push((now - self.origin).saturating_sub(sent));
        phase.account.arrived += 1;
        if phase.account.arrived == 1 {
            self.first.notify_one();
        }
        phase.last_arrival = Some(now);
        if phase.account.arrived == phase.seen.len() {
            self.complete.notify_one();
        }
    }

    /// Waits for the first arrival of the phase.
    pub(crate) async fn first(&self) {
        // A permit may be left from an earlier phase: look, and wait again.
        while self.lock().account.arrived == 0 {
            self.first.notified().await;
        }
    }

    /// Waits until every message of the phase has arrived, or until nothing has for [`STALL`];
    /// gives the account and the moment of the last arrival.
    pub(crate) async fn settled(&self) -> (Account, Instant) {
        let mut before = usize::MAX;
        loop {
            let stalled = timeout(STALL, self.complete.notified()).await.is_err();
            let phase = self.lock();
            let arrived = phase.account.arrived;
            if arrived == phase.seen.len() || (stalled && arrived == before) {
                return (phase.account.clone(), phase.last_arrival.unwrap_or(self.origin));
            }
            before = arrived;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.phase.lock().expect("no holder of the lock panics")
    }
}

fn digits(payload: &[u8], at: usize, width: usize) -> Option<u64> {
    std::str::from_utf8(payload.get(at..at + width)?).ok()?.parse().ok()
}
