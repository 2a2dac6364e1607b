//! What a machine may lack for a test: then the test says so in one line and passes, and on a build machine it fails.

use std::io::Write as _;
use std::process::{Command, Output};

/// Tells that `what` is not tested, and why.
pub fn lacking(what: &str, why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what} cannot be tested: {why}");
    // Past the capture of the test harness: a test that tests nothing must be seen.
    let _ = writeln!(std::io::stderr(), "skipped: {what} is not tested: {why}");
}

/// Runs a tool of the system to its end; what it printed, or why it failed.
pub fn tool(name: &str, args: &[&str]) -> Result<String, String> {
    let said = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    // Where administrators' tools are, for a user whose search path knows only the others.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new(name).args(args).env("PATH", path).output() {
        Ok(Output { status, stdout, .. }) if status.success() => Ok(said(stdout)),
        Ok(Output { status, stderr, .. }) => Err(format!("{name} {args:?}: {status}: {}", said(stderr))),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
