//! What the system tells about a process: processor time and memory.

use anyhow::{Context, Result};

/// Processor time of all its threads, also of those that have ended, in seconds; the kernel rounds to 10 ms.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // The name may contain anything, also parentheses: what follows the last one is plain.
    let fields: Vec<&str> = stat.rsplit_once(") ").context("cannot read /proc/PID/stat")?.1.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    // The kernel's unit here is a hundredth of a second on every architecture that Linux has (USER_HZ).
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// Resident memory in KiB.
pub fn resident_kib(pid: u32) -> Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches("kB").trim().parse().context("cannot read VmRSS")
}
