//! Crowds and abuse before the real program: who leaves, dawdles, floods or breaks the rules costs a bounded price, and the
//! client beside them is served as if it were alone.
//!
//! A crowd is small here; `MILLPOND_CROWD=1000 cargo test --test it crowd -- --nocapture --test-threads=1` makes it large and prints the figures.

mod flood; // connections, pipelines, heads without an end, clients that leave at any point
mod http2; // what only HTTP/2 lets a client do
mod seats; // each kind of idler gives its place back within its limit
mod slow; // many who do not read: hot, cold, over TLS, over HTTP/2

use std::time::{Duration, Instant};

use crate::support::MIB;
use crate::support::client::{Connection, get};
use crate::support::mirror::{Builder, Process};
use crate::support::patience::within;
use crate::support::registry::{Blob, Registry};

const REPO: &str = "library/debian";

/// Memory of its own that the program may have with a thousand clients of any kind: what it promises to those who size its host.
const MEMORY_BUDGET: u64 = 100_000_000;

/// The same where every client has a TLS session, which costs some 20 KB, and its last records wait encrypted.
const MEMORY_BUDGET_TLS: u64 = 120_000_000;

/// How many times slower the client beside a crowd may be: far above what was measured, because other tests run meanwhile.
const SLOWER_MAX: f64 = 8.0;

/// How large a crowd is.
fn crowd() -> usize {
    std::env::var("MILLPOND_CROWD").ok().map_or(50, |number| number.parse().expect("MILLPOND_CROWD is a number"))
}

/// Where a blob is.
fn path(blob: &Blob) -> String {
    format!("/v2/{REPO}/blobs/{}", blob.digest)
}

/// Prints a figure, for those who run this by hand.
#[allow(clippy::print_stdout)]
fn say(figure: &str) {
    println!("crowd: {figure}");
}

/// The real program, holding a large and a small blob, and the registry behind it.
struct Pond {
    hub: Registry,
    program: Process,
    large: Blob,
    small: Blob,
    alone: Pace,
    files: usize,
}

/// How fast a well-behaved client is served.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Requests a second for the small blob, one after the other.
    requests: f64,
    /// MB a second of the large blob.
    megabytes: f64,
}

impl Pond {
    async fn new(set: impl FnOnce(Builder) -> Builder) -> Self {
        millpond::listen::raise_open_files();
        let hub = Box::pin(Registry::plain()).await;
        let (large, small) = (Blob::seeded(1, 16 * MIB), Blob::seeded(2, 40_000));
        for blob in [&large, &small] {
            hub.blob(REPO, blob);
        }
        let program = Box::pin(set(Builder::new().upstream("docker.io", &hub).quiet()).spawn()).await;
        for blob in [&large, &small] {
            assert_eq!(Box::pin(get(program.blob(REPO, blob.digest)).fetch()).await.digest, blob.digest);
        }
        Box::pin(program.settled()).await;
        let mut pond = Self { hub, program, large, small, alone: Pace { requests: 0.0, megabytes: 0.0 }, files: 0 };
        pond.bystander().await;
        pond.alone = pond.bystander().await.best(pond.bystander().await);
        pond.files = pond.program.vitals().files;
        pond
    }

    async fn plain() -> Self {
        Self::new(|builder| builder).await
    }

    async fn tls() -> Self {
        Self::new(Builder::tls).await
    }

    /// A client from another address, which pulls on one connection and checks what it gets.
    async fn bystander(&self) -> Pace {
        let ask = |blob: &Blob| get(self.program.blob(REPO, blob.digest)).from([127, 0, 0, 9]);
        let pull = async {
            let mut connection = Connection::open(&ask(&self.small)).await.expect("there is a place for it");
            let start = Instant::now();
            for _ in 0..100 {
                let answer = connection.ask(ask(&self.small)).await.expect("an answer").hash().await;
                assert_eq!((answer.status, answer.digest), (200, self.small.digest));
            }
            let requests = 100.0 / start.elapsed().as_secs_f64();
            let start = Instant::now();
            let answer = connection.ask(ask(&self.large)).await.expect("an answer").hash().await;
            assert_eq!((answer.status, answer.digest), (200, self.large.digest));
            Pace { requests, megabytes: self.large.len() as f64 / 1e6 / start.elapsed().as_secs_f64() }
        };
        Box::pin(within("the well-behaved client", pull)).await
    }

    /// The client beside the crowd comes to its own speed, at least once in a while: the machine has other work too.
    async fn serves_others(&self) -> Pace {
        let mut best = self.bystander().await;
        within("the speed of the well-behaved client", async {
            while self.alone.over(best) > SLOWER_MAX {
                best = best.best(self.bystander().await);
            }
        })
        .await;
        best
    }

    /// Waits until no file or socket is left of a crowd; `more` files may have been opened for blobs. Says how long it took.
    async fn recovers(&self, more: usize) -> Duration {
        let start = Instant::now();
        within("files and sockets to be closed", async {
            while self.program.vitals().files > self.files + more {
                assert_eq!(Box::pin(get(self.program.admin("/healthz")).send()).await.status, 200);
            }
        })
        .await;
        start.elapsed()
    }

    /// What holds after every crowd.
    async fn ends_well(self) {
        self.serves_others().await;
        let complaints = self.program.log();
        assert!(!complaints.contains("panicked"), "{complaints}");
        assert_eq!(Box::pin(self.program.terminate()).await.0.code(), Some(0));
    }

    /// Prints what a crowd cost.
    fn report(&self, what: &str, clients: usize, memory: u64, beside: Pace, recovered: Duration) {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        say(&format!(
            "{what}: {clients} clients, {:.1} MB, beside {:.0}/s {:.0} MB/s, alone {:.0}/s {:.0} MB/s, ratio {:.2}, recovered in {} ms",
            mb(memory),
            beside.requests,
            beside.megabytes,
            self.alone.requests,
            self.alone.megabytes,
            self.alone.over(beside),
            recovered.as_millis(),
        ));
    }
}

impl Pace {
    /// How many times faster than that, in what it is farther ahead.
    fn over(self, other: Self) -> f64 {
        (self.requests / other.requests).max(self.megabytes / other.megabytes)
    }

    fn best(self, other: Self) -> Self {
        Self { requests: self.requests.max(other.requests), megabytes: self.megabytes.max(other.megabytes) }
    }
}
