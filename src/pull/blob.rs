//! A blob: held, arriving, or to be fetched; and only for a repository that shows it.

use std::time::Duration;

use super::custody::{Custody, Standing};
use super::private::What;
use super::{Answer, Asker, BlobAnswer, Error, Pull};
use crate::cache::{Failure, Found, Growing, Joined, Permit};
use crate::fill::{self, Blame, Opened, Source};
use crate::observe::{Kind, Outcome};
use crate::oci::{Digest, Repository};
use crate::upstream::{self, Asked, BlobBody, Flaw, Upstream, Why};

/// How often a client that joined a transfer which then failed tries again: by joining the next, or by being it.
const TURNS: usize = 3;

/// How long a HEAD waits for a held blob to be verified: some gigabytes. Clients wait half a minute for an answer, and the
/// upstream was asked before.
const VERIFY_DEADLINE: Duration = Duration::from_secs(5);

impl Pull {
    pub(super) async fn blob_get(
        &self,
        asker: Asker,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        from: u64,
    ) -> Result<Answer<BlobAnswer>, Error> {
        for turn in 1..=TURNS {
            self.check_absent(repository, Kind::Blob, digest)?;
            let found = self.0.cache.blob_from(digest, from).await;
            if let Found::Growing(growing) = &found
                && let Err(failure) = growing.opened().await
            {
                // It was another's transfer, perhaps in another repository's name: its failure is not ours.
                if turn == TURNS {
                    return Err(Error::of_fill(&failure));
                }
                continue;
            }
            let here = !matches!(&found, Found::Missing(permit) if !permit.has_suspect());
            if here {
                // The bytes are here, but perhaps because of another repository: then this one has to be asked.
                match self.standing(repository, digest, Some(&found)).await {
                    Standing::Fine => {}
                    Standing::Unclaimed => {
                        drop(found);
                        Box::pin(self.ask_blob(asker, upstream, repository, digest)).await?;
                        continue;
                    }
                    Standing::Unproven => {
                        drop(found);
                        Box::pin(self.prove(upstream, repository, digest)).await?;
                        continue;
                    }
                }
            }
            match found {
                Found::Memory(bytes) => return Ok(Answer { content: BlobAnswer::Memory(bytes), outcome: Outcome::Hit }),
                Found::Whole(blob) => return Ok(Answer { content: BlobAnswer::Whole(blob), outcome: Outcome::Hit }),
                Found::Growing(growing) => return Ok(arriving(growing, Outcome::Collapsed)),
                Found::Missing(permit) => match Box::pin(self.fetch_blob(permit, upstream, repository)).await {
                    Err(failure) if failure.is_of_this_transfer() && turn < TURNS => {}
                    other => return other.map_err(|failure| self.blob_error(&failure)),
                },
            }
        }
        Err(Error::Unavailable)
    }

    async fn fetch_blob(&self, permit: Permit, upstream: &Upstream, repository: &Repository) -> Result<Answer<BlobAnswer>, Failure> {
        let source = UpstreamBlob::new(self, upstream, repository.clone(), &permit).await;
        let growing = fill::start(permit, source, self.0.fills.clone());
        growing.opened().await?;
        Ok(arriving(growing, Outcome::Miss))
    }

    fn blob_error(&self, failure: &Failure) -> Error {
        match failure {
            Failure::NotFound if self.offline() => Error::Offline(Kind::Blob),
            failure => Error::of_fill(failure),
        }
    }

    /// HEAD never starts a fill: what is not held is asked about.
    pub(super) async fn blob_head(
        &self,
        asker: Asker,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Answer<BlobAnswer>, Error> {
        let named = self.0.cache.named_size(repository, digest).await;
        let size = self.0.cache.blob_size(digest, named).await;
        // In this order: what is here was marked before it could be found.
        let may_show = self.standing(repository, digest, None).await == Standing::Fine;
        if let Some(size) = size.filter(|_| may_show) {
            return Ok(Answer { content: BlobAnswer::Size(Some(size)), outcome: Outcome::Hit });
        }
        match Box::pin(self.ask_blob(asker, upstream, repository, digest)).await {
            Ok(size) => Ok(Answer { content: BlobAnswer::Size(size), outcome: Outcome::Passed }),
            Err(error) if may_show && !error.is_definite() => {
                let size = Box::pin(self.verified_size(upstream, repository, digest)).await.ok_or(error)?;
                Ok(Answer { content: BlobAnswer::Size(Some(size)), outcome: Outcome::Hit })
            }
            Err(error) => Err(error),
        }
    }

    /// The size of a held blob that nobody else can vouch for now: it is verified first.
    async fn verified_size(&self, upstream: &Upstream, repository: &Repository, digest: &Digest) -> Option<u64> {
        let growing = match self.0.cache.blob(digest).await {
            Found::Memory(bytes) => return Some(bytes.len() as u64),
            Found::Whole(blob) => return Some(blob.size()),
            Found::Growing(growing) => growing,
            Found::Missing(permit) if !permit.has_suspect() => return None,
            Found::Missing(permit) => {
                let source = UpstreamBlob::new(self, upstream, repository.clone(), &permit).await;
                fill::start(permit, source, self.0.fills.clone())
            }
        };
        tokio::time::timeout(VERIFY_DEADLINE, growing.whole()).await.ok()?.ok()
    }

    /// Whether the upstream shows a blob in a repository; a yes is remembered as a link. One question for all who ask.
    async fn ask_blob(&self, asker: Asker, upstream: &Upstream, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        if self.offline() {
            return Err(Error::Offline(Kind::Blob));
        }
        let as_anyone = self.asks_as_anyone(asker, upstream, repository, digest).await;
        self.check_absent(repository, Kind::Blob, digest)?;
        if as_anyone && self.0.memory.hidden.get(&(repository.clone(), What::Blob(*digest))).is_some() {
            return Err(Error::NotFound(Kind::Blob));
        }
        let (pull, upstream, key) = (self.clone(), upstream.clone(), (repository.clone(), *digest, as_anyone));
        let asked = key.clone();
        let ask = || async move {
            let (repository, digest, as_anyone) = key;
            // Somebody else may have been answered between our look and our turn.
            pull.check_absent(&repository, Kind::Blob, &digest)?;
            let answer = if as_anyone {
                upstream.head_blob_as_anyone(&repository.name, &digest).await
            } else {
                upstream.head_blob(&repository.name, &digest).await
            };
            let size = pull.judged(&repository, Kind::Blob, answer).inspect_err(|error| {
                if !as_anyone {
                    pull.note_absent(&repository, Kind::Blob, &digest, error);
                } else if error.is_definite() {
                    // That says nothing to those who ask with a login.
                    pull.0.memory.hidden.put((repository.clone(), What::Blob(digest)), ());
                }
            })?;
            pull.note_claim(&upstream, &repository, &digest, as_anyone).await;
            Ok(size)
        };
        let (_, answer): (Joined, _) = self.0.memory.blobs.run(asked, &self.0.tasks, ask).await;
        answer.unwrap_or(Err(Error::Abandoned))
    }
}

fn arriving(growing: Growing, outcome: Outcome) -> Answer<BlobAnswer> {
    let outcome = match () {
        () if growing.is_held() => Outcome::Hit,
        () if growing.is_stored() => outcome,
        () => Outcome::Bypass,
    };
    Answer { content: BlobAnswer::Growing(growing), outcome }
}

/// A blob may be wrong where a manifest of the same digest is not.
fn blob_key(digest: &Digest) -> String {
    format!("blob {digest}")
}

/// A blob at an upstream, as a fill wants it. What the upstream says of the repository is noted here, by the fill's own task:
/// the client that asked may have left.
struct UpstreamBlob {
    pull: Pull,
    upstream: Upstream,
    repository: Repository,
    digest: Digest,
    /// The readers' side of the fill.
    growing: Growing,
    /// To whom the content belongs, once that was asked.
    custody: Option<Custody>,
    /// What the repository's manifests say.
    expected: Option<u64>,
    /// The endpoints whose bytes are in what came until now, the last one last.
    asked: Asked,
    /// Those that sent something else.
    wrong: Vec<usize>,
    /// The one that did not get on, last time.
    stuck: Option<usize>,
}

impl Source for UpstreamBlob {
    fn expected(&self) -> Option<u64> {
        self.expected
    }

    fn blame(&mut self, blame: Blame) -> bool {
        match blame {
            Blame::Stuck => self.stuck = self.asked.last(),
            Blame::Wrong => {
                // Everybody else was asked already, or could not be: the second time in a row it is waited.
                let mut asked = self.asked.take();
                let nobody_else = asked.iter().all(|endpoint| self.wrong.contains(endpoint));
                // Whichever of those that had a part in it: the hash does not say.
                self.wrong.append(&mut asked);
                self.wrong.sort_unstable();
                self.wrong.dedup();
                self.pull.0.memory.wrong.put((self.repository.registry.clone(), self.digest), self.wrong.clone());
                if nobody_else || self.wrong.len() >= self.upstream.endpoints() {
                    self.pull.note_refuted(&self.repository, &blob_key(&self.digest));
                }
            }
        }
        self.wrong.len() < self.upstream.endpoints()
    }

    async fn open(&mut self, offset: u64) -> Result<Opened, Failure> {
        if self.pull.offline() {
            return Err(Failure::NotFound);
        }
        if offset == 0
            && let Some(wait) = self.pull.0.memory.refuted.wait(&self.repository, &blob_key(&self.digest))
        {
            return Err(Failure::Refuted(wait));
        }
        let (answer, custody) = tokio::join!(self.ask(offset), self.asked_custody());
        let error = match answer {
            Ok(body) => {
                if offset == 0 {
                    self.asked.clear();
                }
                self.asked.add(body.endpoint);
                self.note_begun(custody).await?;
                let (size, start) = (body.size, body.start);
                let body = self.upstream.wide(&self.repository.name, &self.digest, body, self.asked.clone());
                return Ok(Opened { size, start, body: Box::pin(body) });
            }
            Err(error) => error,
        };
        let failure = failure(&error);
        if matches!(failure, Failure::NotFound) {
            self.pull.note_absent(&self.repository, Kind::Blob, &self.digest, &Error::of_fill(&failure));
        } else {
            tracing::warn!(repository = %self.repository, digest = %self.digest, offset, %error, "an upstream did not deliver a blob");
        }
        Err(failure)
    }

    async fn verified(&mut self) {
        self.pull.0.memory.refuted.clear(&self.repository, &blob_key(&self.digest));
        let custody = self.custody.unwrap_or(Custody::Unsure);
        // The mark is there; what may fail is only that this registry is named in it.
        let _ = self.pull.take_into_custody(&self.repository, &self.digest, custody, true).await;
    }
}

impl UpstreamBlob {
    async fn new(pull: &Pull, upstream: &Upstream, repository: Repository, permit: &Permit) -> Self {
        let (digest, growing) = (permit.digest(), permit.growing());
        let expected = pull.0.cache.named_size(&repository, &digest).await;
        let wrong = pull.0.memory.wrong.get(&(repository.registry.clone(), digest)).unwrap_or_default();
        let (pull, upstream) = (pull.clone(), upstream.clone());
        Self { pull, upstream, repository, digest, growing, custody: None, expected, asked: Asked::default(), wrong, stuck: None }
    }

    async fn asked_custody(&self) -> Custody {
        match self.custody {
            Some(custody) => custody,
            None => self.pull.custody(&self.upstream, &self.repository, What::Blob(self.digest)).await,
        }
    }

    /// The upstream gives it under this repository's name. Nobody has had a byte of it yet.
    async fn note_begun(&mut self, custody: Custody) -> Result<(), Failure> {
        if self.custody.is_none() {
            let may_store = self.pull.take_into_custody(&self.repository, &self.digest, custody, false).await?;
            if may_store {
                // That is a link; of what belongs to anybody only where no manifest names it.
                self.pull.0.cache.link_blob(&self.repository, &self.digest, custody != Custody::Open).await;
            }
            // The link may not have come to the disk: whoever joins has it from here.
            self.pull.0.memory.claimed.put((self.repository.clone(), self.digest), ());
            self.growing.comes_from(&self.repository.registry);
            self.custody = Some(custody);
        }
        Ok(())
    }

    /// From the offset on, or all of it again where the upstream cannot go on there: what was received is then dropped.
    async fn ask(&self, offset: u64) -> Result<BlobBody, upstream::Error> {
        let (name, digest) = (&self.repository.name, &self.digest);
        let avoided = self.wrong.iter().copied().chain(self.stuck).collect::<Vec<_>>();
        match self.upstream.blob_avoiding(&avoided, name, digest, offset).await {
            Err(upstream::Error::BadAnswer { flaw: Flaw::Range, .. }) if offset > 0 => {
                self.upstream.blob_avoiding(&avoided, name, digest, 0).await
            }
            answer => answer,
        }
    }
}

fn failure(error: &upstream::Error) -> Failure {
    use upstream::Error as From;
    match error {
        From::NotFound { .. } | From::Denied { authenticated: false, .. } => Failure::NotFound,
        From::Denied { authenticated: true, .. } => Failure::Denied,
        From::RateLimited { retry_after, .. } => Failure::RateLimited(*retry_after),
        From::Unavailable { why: Why::Loop, .. } => Failure::Loop,
        From::Unavailable { .. } => Failure::Unavailable,
        From::Timeout { .. } => Failure::Timeout,
        From::BadAnswer { .. } | From::RefusedTarget { .. } => Failure::Corrupt,
    }
}
