//! What a running program holds: memory of its own, open files, threads; read from `/proc`.

use std::fs;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Vitals {
    /// Memory of its own in bytes, without files (`RssAnon`).
    pub memory: u64,
    /// Open files and sockets.
    pub files: usize,
    /// Threads.
    pub threads: u64,
}

impl Vitals {
    /// Of this process.
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the program runs");
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
            line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the program runs").count();
        Self { memory: number("RssAnon:") << 10, files, threads: number("Threads:") }
    }
}
