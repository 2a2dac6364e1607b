//! A wait that ends: a test that waits for what never comes fails with a sentence instead of hanging.
//!
//! The time is the real one, kept by a thread of its own, so that a test may pause or advance tokio's clock meanwhile.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use tokio::sync::oneshot;

/// How long a test waits for something that must come, in real time: far above what a loaded two-core machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What `work` gives, or a panic that says what was waited for.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match try_within(work).await {
        Some(value) => value,
        None => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// What `work` gives, or nothing when it takes too long.
pub async fn try_within<T>(work: impl Future<Output = T>) -> Option<T> {
    let (alarm, rings) = oneshot::channel::<()>();
    let (_done, watched) = channel::<()>();
    std::thread::spawn(move || {
        if watched.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = alarm.send(());
        }
    });
    tokio::select! {
        biased;
        value = work => Some(value),
        Ok(()) = rings => None,
    }
}
