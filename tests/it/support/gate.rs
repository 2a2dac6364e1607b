//! A gate that the test opens: how two things in a test are put in order without sleeping.

use tokio::sync::watch;

use super::patience::within;

/// Closed until the test opens it. The scripted registry stops at it; the test sees how many have come to it.
/// Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    reached: watch::Sender<usize>,
}

impl Gate {
    /// A closed gate.
    pub fn closed() -> Self {
        Self { open: watch::Sender::new(false), reached: watch::Sender::new(0) }
    }

    /// Lets through whoever waits and whoever comes later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Holds again whoever comes from now on.
    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    /// Counts one more arrival and waits until the gate is open.
    pub async fn wait(&self) {
        self.reached.send_modify(|n| *n += 1);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("this gate holds the sender");
    }

    /// Waits until `n` have come to the gate, now or before.
    pub async fn reached(&self, n: usize) {
        let mut reached = self.reached.subscribe();
        within("arrivals at a gate", reached.wait_for(|count| *count >= n)).await.expect("this gate holds the sender");
    }

    /// How many have come to the gate.
    pub fn arrivals(&self) -> usize {
        *self.reached.borrow()
    }
}
