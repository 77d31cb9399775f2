//! The gauges: CPU, memory and disk from /proc, bytes on the wire from the kernel's TCP sockets.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, bail};

/// What a set of processes has used since their start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// What the processes made the kernel owe to block devices: pages dirtied, not yet sectors
    /// written.
    pub(crate) disk_bytes: u64,
    /// Both directions of every connection to the far end: TLS records, without TCP and IP headers.
    pub(crate) wire_bytes: u64,
}

/// Reads the gauges of `pids`, and of the connections to `far_port`.
pub(crate) fn usage(pids: &[u32], far_port: u16) -> anyhow::Result<Usage> {
    let mut usage = Usage { wire_bytes: wire_bytes(far_port)?, ..Usage::default() };
    for pid in pids {
        usage.cpu += cpu(*pid)?;
        usage.disk_bytes += member(&format!("/proc/{pid}/io"), "write_bytes:")?;
    }
    Ok(usage)
}

impl std::ops::Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            disk_bytes: self.disk_bytes.saturating_sub(before.disk_bytes),
            wire_bytes: self.wire_bytes.saturating_sub(before.wire_bytes),
        }
    }
}

/// `utime + stime` (proc(5)): whole ticks of 10 ms.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    /// `USER_HZ`, which is 100 on every architecture that Linux reports to user space.
    const TICK: Duration = Duration::from_millis(10);
    let file = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&file).with_context(|| format!("{file}: the process is gone"))?;
    // The name, in parentheses, may hold spaces; what follows it does not.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let field = |number: usize| -> anyhow::Result<u32> {
        Ok(fields.get(number - 3).context("proc(5): stat has too few fields")?.parse()?)
    };
    Ok(TICK * (field(14)? + field(15)?))
}

/// What the calling thread has run, in user space and in the kernel (Documentation/scheduler/
/// sched-stats.rst): nanoseconds, brought up to date at each tick.
pub(crate) fn thread_cpu() -> anyhow::Result<Duration> {
    let file = "/proc/thread-self/schedstat";
    let text = fs::read_to_string(file).context(file)?;
    let nanos = text.split_whitespace().next().with_context(|| format!("{file} is empty"))?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Resident memory now, and at its highest, in KiB.
pub(crate) fn memory_kib(pid: u32) -> anyhow::Result<(u64, u64)> {
    let file = format!("/proc/{pid}/status");
    Ok((member(&file, "VmRSS:")?, member(&file, "VmHWM:")?))
}

fn member(file: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("{file}: the process is gone"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value.with_context(|| format!("{file} has no {name}"))?.parse().context(file.to_owned())
}

fn wire_bytes(port: u16) -> anyhow::Result<u64> {
    let filter = format!(":{port}");
    let output = Command::new("ss")
        .args(["-Htin", "state", "established", "dport", "=", &filter])
        .output()
        .context("ss is missing; install it with: apt-get install iproute2")?;
    if !output.status.success() {
        bail!("ss: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let counted = |word: &str| -> Option<u64> {
        let (name, value) = word.split_once(':')?;
        matches!(name, "bytes_acked" | "bytes_received").then(|| value.parse().ok())?
    };
    Ok(text.split_whitespace().filter_map(counted).sum())
}
