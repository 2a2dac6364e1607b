//! The command line: what may be typed, and one short function a command.
//!
//! Owns the exit codes and everything that is printed for a person. Knows the configuration only as a whole.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use millpond::cache::audit;
use millpond::config::{Config, Loaded, Mistakes, Sources, load};
use millpond::observe::Metrics;
use millpond::serve::Server;
use millpond::upstream::Upstreams;

pub(crate) mod doctor;

/// How millpond ends: `sysexits.h`, which service managers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Stopped because it was asked to, or had nothing more to do.
    Clean = 0,
    /// `millpond verify` or `millpond doctor` found something.
    Findings = 1,
    /// `EX_USAGE`: the command line or the configuration is wrong. Starting again cannot help.
    Usage = 64,
    /// `EX_SOFTWARE`: the start failed.
    Failed = 70,
    /// `EX_TEMPFAIL`: another process holds the data folder.
    Locked = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A pull-through caching mirror for container registries.
#[derive(Debug, Parser)]
#[command(name = "millpond", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// What millpond is to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve until SIGTERM or SIGINT
    Serve(Serve),
    /// Validate the configuration and print what is in effect, each value with where it came from
    Check(Check),
    /// Hash everything in the data folder and hold its parts against each other, also beside a running server
    Verify(Verify),
    /// Show how each client of this machine is set up, try the mirror as they would, and say what is wrong; changes nothing
    Doctor(doctor::Doctor),
}

/// `millpond serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    chosen: Chosen,
    /// How the log is written to standard error [default: text on a terminal, json otherwise]
    #[arg(long, value_name = "FORMAT", value_parser = ["auto", "text", "json"])]
    log: Option<String>,
}

/// `millpond check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    chosen: Chosen,
}

/// `millpond verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    chosen: Chosen,
    /// Move what is wrong to quarantine/ or remove it; it is fetched again when it is asked for
    #[arg(long)]
    repair: bool,
}

/// Which configuration.
#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "the help is read on a terminal, where nobody wants backticks")]
struct Chosen {
    /// The configuration file [default: $MILLPOND_CONFIG, else ./mirror.toml, else /etc/millpond/mirror.toml, else none]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overlay the tables [profile.NAME.*] of the file [default: $MILLPOND_PROFILE, else none]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

/// Understands the arguments of this process, or answers them: with the help, the version or what is wrong.
pub(crate) fn parse() -> Result<Command, Exit> {
    CommandLine::try_parse().map(|line| line.command).map_err(|answer| {
        let _ = answer.print(); // nobody is left to tell
        if answer.use_stderr() { Exit::Usage } else { Exit::Clean }
    })
}

/// The configuration to serve with; all mistakes go to standard error.
pub(crate) fn configure(serve: Serve) -> Result<Config, Exit> {
    let loaded = load_chosen(serve.chosen, serve.log).map_err(|mistakes| complain(&mistakes))?;
    Ok(loaded.config)
}

/// Prints the configuration in effect, or all mistakes.
pub(crate) fn check(check: Check) -> Exit {
    match load_chosen(check.chosen, None) {
        Ok(loaded) => {
            // What stands in the files that are named is a part of what is configured.
            if let Err(mistakes) = Upstreams::build(&loaded.config.upstreams, Metrics::new()) {
                return complain(&format_args!("{mistakes}\n"));
            }
            // A reader that has seen enough (`| head`) is no reason to fail.
            let _ = io::stdout().write_all(loaded.effective().as_bytes());
            Exit::Clean
        }
        Err(mistakes) => complain(&mistakes),
    }
}

/// Audits the data folder and prints what is wrong.
pub(crate) fn verify(verify: Verify) -> Exit {
    let loaded = match load_chosen(verify.chosen, None) {
        Ok(loaded) => loaded,
        Err(mistakes) => return complain(&mistakes),
    };
    let audit = match audit(&loaded.config.cache.dir, verify.repair) {
        Ok(audit) => audit,
        Err(error) => {
            complain(&format_args!("{error}\n"));
            return Exit::Failed;
        }
    };
    let mut text = String::new();
    for finding in &audit.findings {
        let _ = writeln!(text, "{finding}");
    }
    let index = if audit.index { "" } else { "; the index was left alone, a server uses it" };
    let (sound, bytes, found, repaired) = (audit.sound, audit.bytes, audit.findings.len(), audit.repaired);
    let _ = writeln!(text, "{sound} blobs of {bytes} bytes are sound, {} tags and links lead to what was evicted{index}", audit.dangling);
    let _ = writeln!(text, "{found} findings, {repaired} repaired");
    let _ = io::stdout().write_all(text.as_bytes());
    if audit.findings.is_empty() { Exit::Clean } else { Exit::Findings }
}

/// Says where the server listens, and what a Docker host needs to use it.
pub(crate) fn announce(server: &Server) {
    let scheme = if server.has_tls() { "https" } else { "http" };
    let (addr, admin) = (server.addr(), server.admin_addr());
    // An unspecified address is no URL: this machine reaches the mirror by its own.
    let host = if addr.ip().is_unspecified() { format!("127.0.0.1:{}", addr.port()) } else { addr.to_string() };
    let elsewhere = if addr.ip().is_unspecified() { " (from other hosts: this machine's name or address)" } else { "" };
    let _ = write!(
        io::stdout(),
        "registry API on {scheme}://{addr}\n\
         health and metrics on http://{admin}\n\
         Docker uses it with this in /etc/docker/daemon.json{elsewhere}:\n\
         {{ \"registry-mirrors\": [\"{scheme}://{host}\"] }}\n"
    );
}

/// Says on standard error what is wrong with the command line, the configuration or the environment.
pub(crate) fn complain(what: &dyn std::fmt::Display) -> Exit {
    let _ = write!(io::stderr(), "{what}");
    Exit::Usage
}

fn load_chosen(chosen: Chosen, log: Option<String>) -> Result<Loaded, Mistakes> {
    let sources = Sources::of_process(chosen.config.as_deref())?;
    load(&Sources { profile: chosen.profile, log, ..sources })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        CommandLine::command().debug_assert();
    }
}
