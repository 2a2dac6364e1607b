//! args → config → logs → bind → run → signal → drain → exit code. A table of contents: no decision is made here.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use millpond::config::{Config, LogFormat};
use millpond::log::{EnvFilter, Log};
use millpond::serve::{Parts, Reload, Server, Tuning};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

mod cli;

use cli::{Command, Exit};

fn main() -> ExitCode {
    let exit = match cli::parse() {
        Ok(Command::Serve(args)) => serve(args).unwrap_or_else(|exit| exit),
        Ok(Command::Check(args)) => cli::check(args),
        Ok(Command::Verify(args)) => cli::verify(args),
        Ok(Command::Doctor(args)) => cli::doctor::examine(args),
        Err(exit) => exit,
    };
    exit.into()
}

fn serve(args: cli::Serve) -> Result<Exit, Exit> {
    let config = cli::configure(args)?;
    let log = logs(config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let exit = runtime.block_on(async {
        let stop = stop_signal().map_err(failed)?;
        Ok(run(config, stop).await)
    });
    // All that must be written is; a disk that hangs must not keep the process.
    runtime.shutdown_background();
    log.close();
    exit
}

/// Binds, prints the bound addresses, serves until `stop`, drains within `server.drain`.
async fn run(config: Config, stop: impl Future<Output = ()>) -> Exit {
    let Config { server, access, cache, pull, upstreams, .. } = config;
    let server = match Server::open(Parts { server, access, cache, pull, upstreams }, Tuning::default()) {
        Ok(server) => server,
        Err(error) if error.is_locked() => {
            tracing::error!("millpond could not start: {error}");
            return Exit::Locked;
        }
        Err(error) => return failed(error),
    };
    cli::announce(&server);
    let reload = match reload_signal(server.reload()) {
        Ok(reload) => tokio::spawn(reload),
        Err(error) => return failed(error),
    };
    server.run(stop).await;
    reload.abort();
    Exit::Clean
}

/// From here on everything that is said is a log line, on standard error. `RUST_LOG` chooses which.
fn logs(format: LogFormat) -> Result<Log, Exit> {
    let info = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let filter = info.from_env().map_err(|error| cli::complain(&format_args!("environment RUST_LOG: {error}\n")))?;
    let terminal = io::stderr().is_terminal();
    let json = format == LogFormat::Json || (format == LogFormat::Auto && !terminal);
    // Colours on a terminal only, and not there either if NO_COLOR is set.
    let ansi = terminal && std::env::var("NO_COLOR").map_or(true, |value| value.is_empty());
    let log = Log::to(io::stderr()).map_err(|error| cli::complain(&format_args!("the log: {error}\n")))?;
    log.install(json, ansi, filter);
    Ok(log)
}

/// Ready at the first SIGTERM or SIGINT. Once this was called, neither of them ends the process by itself.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    })
}

/// Reads certificates and logins again at each SIGHUP.
fn reload_signal(reload: Reload) -> io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            reload.now();
        }
    })
}

fn failed(why: impl std::fmt::Display) -> Exit {
    tracing::error!("millpond could not start: {why}");
    Exit::Failed
}
