//! The table of faults: what was injected how often, and what became of the clients. Every fault test may note a row; with
//! `MILLPOND_TALLY=<file>` the rows are appended there, separated by tabs, for `.ci/long` to add up.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

/// A row of the table.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Which fault.
    pub fault: String,
    /// How often it was injected.
    pub times: u64,
    /// Requests that failed although they need not have.
    pub needless: u64,
    /// Bodies that were handed over as whole and were not.
    pub wrong: u64,
    /// The longest time from the end of the fault, or of the program, to the first good answer.
    pub recovery: Duration,
}

impl Tally {
    /// Of this fault, injected never yet.
    pub fn of(fault: &str) -> Self {
        Self { fault: fault.into(), ..Self::default() }
    }

    /// It was injected once more, and then this took so long.
    pub fn again(&mut self, recovery: Duration) {
        self.times += 1;
        self.recovery = self.recovery.max(recovery);
    }

    /// Appends the row, if somebody wants it.
    pub fn note(&self) {
        let Some(file) = std::env::var_os("MILLPOND_TALLY") else { return };
        let row = format!("{}\t{}\t{}\t{}\t{}\n", self.fault, self.times, self.needless, self.wrong, self.recovery.as_millis());
        let file = OpenOptions::new().create(true).append(true).open(file);
        // One write, so that the rows of tests that run at once stand one below the other.
        file.and_then(|mut file| file.write_all(row.as_bytes())).expect("the file of MILLPOND_TALLY can be written");
    }
}
