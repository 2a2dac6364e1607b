//! What the kernel knows of a server's processes and of this machine: read from `/proc`.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

const GIB_IN_KIB: f64 = 1_048_576.0;

/// A process and its children: nginx's workers do what nginx does.
pub fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    std::iter::once(pid).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
}

/// Seconds of processor that these have used, all threads, in user and kernel. In steps of 10 ms.
pub fn cpu(pids: &[u32]) -> io::Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything; after it utime and stime are the 12th and 13th.
        let (_, fields) = stat.rsplit_once(") ").ok_or_else(|| io::Error::other("stat has no name"))?;
        ticks += fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of their own (`RssAnon`), in MB.
pub fn memory(pids: &[u32]) -> io::Result<f64> {
    let mut kib = 0;
    for pid in pids {
        kib += field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "RssAnon:").unwrap_or(0);
    }
    Ok((kib * 1024) as f64 / 1e6)
}

/// The number after a name, as in `/proc/PID/status` and `/proc/meminfo`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Processor seconds of the calling thread.
pub fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Where this was measured, a line each.
pub fn machine(cache: &Path) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0) as f64 / GIB_IN_KIB;
    let system = read("/etc/os-release").lines().find_map(|l| l.strip_prefix("PRETTY_NAME=").map(|name| name.trim_matches('"').to_owned()));
    vec![
        format!("machine: {}, {processors} processors, {memory:.0} GiB", model.unwrap_or_else(|| "unknown processor".to_owned())),
        format!("kernel: {}; {}", read("/proc/sys/kernel/osrelease").trim(), system.unwrap_or_default()),
        format!("file system of the caches: {}", file_system(&read("/proc/self/mountinfo"), cache)),
        format!("rustc: {}", said(Command::new("rustc").arg("--version"))),
    ]
}

/// The commit that is checked out, with `-dirty` where files differ from it.
pub fn commit() -> String {
    let git = |args: &[&str]| said(Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(args));
    git(&["describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"])
}

/// The type of the file system that holds a path: of the longest mount point before it.
fn file_system(mounts: &str, path: &Path) -> String {
    let entry = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        path.starts_with(point).then(|| (point.len(), right.split(' ').next().unwrap_or_default().to_owned()))
    };
    mounts.lines().filter_map(entry).max().map_or_else(|| "unknown".to_owned(), |(_, kind)| kind)
}

/// The first line that a command says, on either output.
pub fn said(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return "unknown".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}
