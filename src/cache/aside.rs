//! The ends of things that are calls on the disk: a file that was removed goes when the last who has it open lets go of it, and a
//! temporary one is removed when it is dropped.
//!
//! Promises: no worker of a runtime makes such a call, and a disk that does not answer gets a bounded number of threads for them.

use tokio::sync::Semaphore;

/// Ends of files at a time: as many as writes, and well under the threads that the runtime has for all calls that block.
const ENDS_MAX: usize = 64;

static ENDS: Semaphore = Semaphore::const_new(ENDS_MAX);

/// Drops something whose end may be a call on the disk: not on a runtime's worker.
pub(crate) fn drop_aside<T: Send + 'static>(last: T) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(dropped_aside(last));
    }
}

/// As [`drop_aside`], and waits for it.
pub(crate) async fn dropped_aside<T: Send + 'static>(last: T) {
    let place = ENDS.acquire().await;
    let drop = move || {
        drop(last);
        drop(place);
    };
    let _ = tokio::task::spawn_blocking(drop).await;
}

/// Something whose end is a call on the disk, on its way to one that may not be made.
pub(super) struct Aside<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Aside<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(Some(inner))
    }

    pub(super) fn take(mut self) -> Option<T> {
        self.0.take()
    }
}

impl<T: Send + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        if let Some(last) = self.0.take() {
            drop_aside(last);
        }
    }
}
