//! Names to addresses, by the system's resolver.
//!
//! Owns [`Names`]. The system's resolver blocks its thread, for half a minute where a name server is away: it runs on
//! threads of its own, a bounded number of them, under a deadline, and the last good answer helps out for a while.

use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::connect::Failure;

/// Lookups at a time: a resolver that hangs must not take the threads that files are read with.
const LOOKUPS_MAX: usize = 16;

/// How long a good answer helps out after the resolver failed. Longer than a name server's restart, shorter than
/// an address is likely to be given to somebody else.
const LAST_GOOD_FOR: Duration = Duration::from_secs(600);

/// Names whose last good answer is kept, at most: registries redirect to a handful of hosts each.
const LAST_GOOD_MAX: usize = 256;

/// Addresses, and when they were told.
type Told = (Vec<IpAddr>, Instant);

/// The resolver. Cheap to clone; all clones share what they know.
#[derive(Clone)]
pub(super) struct Names {
    lookups: Arc<Semaphore>,
    last_good: Arc<Mutex<HashMap<String, Told>>>,
}

impl Default for Names {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)), last_good: Arc::default() }
    }
}

impl Names {
    /// The addresses of a name, at least one.
    pub(super) async fn resolve(&self, host: &str, limit: Duration) -> Result<Vec<IpAddr>, Failure> {
        let found = match timeout(limit, self.ask(host.to_owned())).await {
            Ok(found) => found,
            Err(_) => Err(Failure::Dns("the resolver does not answer".to_owned())),
        };
        self.remember(host, found)
    }

    async fn ask(&self, host: String) -> Result<Vec<IpAddr>, Failure> {
        let permit = Arc::clone(&self.lookups).acquire_owned().await;
        let lookup = tokio::task::spawn_blocking(move || {
            // The permit belongs to the thread: a caller that gave up does not make room for one more hanging lookup.
            let _permit = permit;
            (host.as_str(), 0).to_socket_addrs().map(|addresses| addresses.map(|a| a.ip()).collect::<Vec<_>>())
        });
        match lookup.await {
            Ok(Ok(addresses)) if addresses.is_empty() => Err(Failure::Dns("no address".to_owned())),
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(Failure::Dns(error.to_string())),
            Err(_) => Err(Failure::Dns("the lookup was abandoned".to_owned())),
        }
    }

    /// Keeps a good answer, and replaces a failure by the last good answer where that is young enough.
    fn remember(&self, host: &str, found: Result<Vec<IpAddr>, Failure>) -> Result<Vec<IpAddr>, Failure> {
        let mut last_good = self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(addresses) => {
                if last_good.len() >= LAST_GOOD_MAX {
                    last_good.clear();
                }
                last_good.insert(host.to_owned(), (addresses.clone(), Instant::now()));
                Ok(addresses)
            }
            Err(failure) => match last_good.get(host) {
                Some((addresses, at)) if at.elapsed() < LAST_GOOD_FOR => Ok(addresses.clone()),
                _ => Err(failure),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_helps_out_for_a_while() {
        let names = Names::default();
        let failed = || Err(Failure::Dns("SERVFAIL".to_owned()));
        let good = vec![IpAddr::from([192, 0, 2, 1])];
        assert!(names.remember("a.test", failed()).is_err());
        assert!(names.remember("a.test", Ok(good.clone())).is_ok());
        tokio::time::advance(Duration::from_secs(599)).await;
        assert_eq!(names.remember("a.test", failed()).expect("remembered"), good);
        assert!(names.remember("b.test", failed()).is_err());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(names.remember("a.test", failed()).is_err());
    }
}
