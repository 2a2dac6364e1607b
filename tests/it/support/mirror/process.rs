//! The mirror as its users run it: the program, a configuration file and signals.

use std::fs::File;
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::super::patience::within;
use super::super::vitals::Vitals;
use super::{Builder, Place};

/// A running program. Dropped, it is killed.
pub struct Process {
    place: Place,
    settings: Builder,
    child: Child,
    // Held open: a program that writes to nobody would end.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(super) async fn start(settings: Builder, dress: impl FnOnce(&mut Command)) -> Self {
        let (child, mut output) = Self::launch(&settings, dress);
        let address = next_address(&mut output).await.expect(ENDED);
        let admin = next_address(&mut output).await.expect(ENDED);
        Self::at(settings, child, output, address, admin)
    }

    /// Starts it where it may not come to serve; how it ended then.
    pub(super) async fn try_start(settings: Builder, dress: impl FnOnce(&mut Command)) -> Result<Self, ExitStatus> {
        let (mut child, mut output) = Self::launch(&settings, dress);
        let (Some(address), Some(admin)) = (next_address(&mut output).await, next_address(&mut output).await) else {
            return Err(within("the end of the program", child.wait()).await.unwrap());
        };
        Ok(Self::at(settings, child, output, address, admin))
    }

    fn launch(settings: &Builder, dress: impl FnOnce(&mut Command)) -> (Child, Lines<BufReader<ChildStdout>>) {
        let file = settings.home().join("mirror.toml");
        std::fs::write(&file, settings.toml()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.arg("serve").arg("--config").arg(&file).current_dir(settings.home());
        // Nothing of this machine is to be found, neither settings nor proxies.
        command.env_clear().env("HOME", settings.home()).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        if let Some(level) = settings.log {
            let log = File::create(settings.home().join("log")).unwrap();
            command.env("RUST_LOG", level).stderr(log);
        }
        dress(&mut command);
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        (child, output)
    }

    fn at(settings: Builder, child: Child, output: Lines<BufReader<ChildStdout>>, address: SocketAddr, admin: SocketAddr) -> Self {
        let place = Place { address, admin, tls: settings.lines.contains_key("server.tls") };
        Self { place, settings, child, _output: output }
    }

    /// SIGTERM, and how it ended.
    pub async fn terminate(mut self) -> (ExitStatus, Builder) {
        self.signal(Signal::TERM);
        (within("the end of the program", self.child.wait()).await.unwrap(), self.settings.clone())
    }

    /// SIGKILL. What comes back starts it again over what is left.
    pub async fn kill(mut self) -> Builder {
        within("the end of the program", self.child.kill()).await.unwrap();
        self.settings.clone()
    }

    /// Waits until it has ended by something else.
    pub async fn ended(mut self) -> (ExitStatus, Builder) {
        (within("the end of the program", self.child.wait()).await.unwrap(), self.settings.clone())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it was not waited for")
    }

    /// What it has logged until now, if it is [`Builder::quiet`] or [`Builder::traced`]: whole lines, for it may be writing one.
    pub fn log(&self) -> String {
        let mut log = std::fs::read(self.settings.home().join("log")).unwrap();
        log.truncate(log.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1));
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Any signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it was not waited for");
        kill_process(pid, signal).unwrap();
    }

    /// What it holds now.
    pub fn vitals(&self) -> Vitals {
        Vitals::of(self.child.id().expect("it was not waited for"))
    }

    /// Its settings and its folder.
    pub fn settings(&self) -> &Builder {
        &self.settings
    }
}

impl Deref for Process {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

const ENDED: &str = "the program ended before it had bound its addresses; see its log above";

/// The next bound address that the program prints: that of the registry API first. None when it has ended.
async fn next_address(output: &mut Lines<BufReader<ChildStdout>>) -> Option<SocketAddr> {
    loop {
        let line = within("an address from the program", output.next_line()).await.unwrap()?;
        if let Some(address) = address_in(&line) {
            return Some(address);
        }
    }
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let word =
        |word: &str| word.trim_start_matches("http://").trim_start_matches("https://").trim_end_matches(['/', ',', '.']).parse().ok();
    line.split_whitespace().find_map(word)
}

/// It has ended before its folder is removed: else it would go on writing there, and something would be left.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let since = std::time::Instant::now();
        // What waits for a broken disk may wait for ever.
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < std::time::Duration::from_secs(2) {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::address_in;

    #[test]
    fn addresses_are_found_in_what_is_printed() {
        for line in ["registry http://127.0.0.1:5000", "listening on 127.0.0.1:5000, TLS", "https://127.0.0.1:5000/"] {
            assert_eq!(address_in(line).map(|address| address.port()), Some(5000), "{line}");
        }
        assert_eq!(address_in("millpond 0.1.0"), None);
    }
}
