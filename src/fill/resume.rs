//! A body that does not come as it should: how its end is known, and what is done to get the rest.
//!
//! A body ends where its length says, where its connection does, or where too little comes for too long. Whatever the
//! reason, the hash has the last word: what hashes to the digest is the blob. What does not is resumed from where it
//! stopped, as long as each resumption brings [`super::Limits::progress`] bytes or has one of its
//! [`super::Limits::tries`] left.

use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, sleep_until};

use super::batch::Work;
use super::write::wait_for;
use super::{Blame, BoxBody, Fill, Source};
use crate::cache::Failure;

/// How many times longer than the first pause the last one is for an upstream that answers and then sends nothing: it is
/// being restarted, or there is nothing more, and neither is helped by haste.
const DRY_PAUSES: u32 = 16;

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Everything that was announced is here.
    Whole,
    /// It ended in good order, and nobody had said where.
    Somewhere,
    /// It broke off.
    Lost,
    /// It ended before it should.
    Short,
    /// Nothing came for too long.
    Silent,
    /// Too little came for too long.
    Slow,
}

/// What happens next while a body arrives.
enum Event {
    Written(Result<Work, Failure>),
    Frame(Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>),
    /// What is here has waited long enough for more.
    Gathered,
    Silence,
}

/// The attempts since the last progress.
#[derive(Default)]
struct Attempts {
    /// Where the last progress was.
    mark: u64,
    tries: u32,
    dry: u32,
    /// Time that was or will be waited because of 429.
    limited: Duration,
}

impl<S: Source> Fill<S> {
    /// Receives until everything is here, written and hashed, resuming as often as there is progress. What is here may still
    /// be wrong.
    pub(super) async fn receive(&mut self, mut body: BoxBody) -> Result<(), Failure> {
        let mut attempts = Attempts { mark: self.received, ..Attempts::default() };
        loop {
            let before = self.received;
            let why = self.drain(body).await?;
            self.settle().await?;
            if self.is_verified() || !self.may_go_on(why) {
                return Ok(());
            }
            if self.received >= attempts.mark + self.context.limits.progress {
                attempts = Attempts { mark: self.received, ..Attempts::default() };
            }
            let stuck = self.received == before;
            let is_dry = stuck && !matches!(why, Ended::Silent | Ended::Slow);
            attempts.tries += 1;
            attempts.dry = if is_dry { attempts.dry + 1 } else { 0 };
            if stuck || matches!(why, Ended::Silent | Ended::Slow) {
                self.source.blame(Blame::Stuck);
            }
            tracing::warn!(digest = %self.digest, received = self.received, size = self.size, ?why, tries = attempts.tries, "an upstream's body broke off; it is resumed");
            if self.pace.slow() >= self.context.limits.slow {
                return Err(Failure::Timeout);
            }
            body = self.resume(&mut attempts).await?;
        }
    }

    /// Whether there can be more of a body that ended so and is not the blob.
    fn may_go_on(&self, why: Ended) -> bool {
        match why {
            Ended::Whole => false,
            // The end of such a body looks like a cut: only somebody else can tell.
            Ended::Somewhere => self.expected.is_some_and(|expected| expected > self.received),
            Ended::Lost | Ended::Short | Ended::Silent | Ended::Slow => true,
        }
    }

    /// Asks for the rest until there is an answer, or no attempt is left.
    async fn resume(&mut self, attempts: &mut Attempts) -> Result<BoxBody, Failure> {
        let limits = self.context.limits.clone();
        loop {
            if attempts.tries > limits.tries || attempts.dry > limits.dry {
                return Err(Failure::Unavailable);
            }
            if attempts.tries > 1 {
                let times = 2_u32.pow(attempts.tries - 2).max(if attempts.dry > 1 { DRY_PAUSES } else { 1 });
                sleep(limits.pause * times).await;
            }
            match self.reopen().await {
                Ok(body) => return Ok(body),
                Err(Failure::RateLimited(wait)) if attempts.limited + wait <= limits.limited => {
                    // What is held stays, its readers wait. Those who were sent away together do not come back together.
                    attempts.limited += wait;
                    tracing::warn!(digest = %self.digest, received = self.received, ?wait, "an upstream limits requests; the rest of a blob waits");
                    sleep(wait + wait.mul_f64(fastrand::f64() / 8.0)).await;
                }
                Err(definite @ (Failure::NotFound | Failure::Denied | Failure::RateLimited(_))) => return Err(definite),
                Err(_) => attempts.tries += 1,
            }
        }
    }

    /// Asks the source for the rest.
    pub(super) async fn reopen(&mut self) -> Result<BoxBody, Failure> {
        let opened = self.source.open(self.received).await?;
        let another_size = opened.size.is_some_and(|size| self.size.is_some_and(|known| known != size));
        if opened.start > self.received || another_size {
            self.source.blame(Blame::Stuck);
            return Err(Failure::Corrupt);
        }
        if self.size.is_none() && !self.contradicts(&opened) {
            // The end of a body that came without a length is known now.
            self.size = opened.size.filter(|&size| size >= self.received);
        }
        self.skip = self.received - opened.start;
        Ok(opened.body)
    }

    /// Takes one body to its end, writing as it comes.
    async fn drain(&mut self, mut body: BoxBody) -> Result<Ended, Failure> {
        let silence = self.context.limits.silence;
        let mut deadline = Instant::now() + silence;
        loop {
            let busy = Instant::now();
            let gathers_until = self.gathers_until();
            if gathers_until.is_none() {
                self.dispatch().await?;
            }
            // Time in which we did not listen is not the upstream's silence: room was made, or waited for.
            deadline += busy.elapsed();
            let hungry = self.is_hungry();
            if !hungry {
                deadline = Instant::now() + silence;
            }
            let listening = Instant::now();
            let event = tokio::select! {
                // In this order: bytes that are here count, however late we come to look.
                biased;
                work = wait_for(&mut self.work) => Event::Written(work),
                frame = body.frame(), if hungry => Event::Frame(frame),
                () = sleep_until(gathers_until.unwrap_or(deadline)), if gathers_until.is_some() => Event::Gathered,
                () = sleep_until(deadline), if hungry => Event::Silence,
            };
            let listened = if hungry { listening.elapsed() } else { Duration::ZERO };
            match event {
                Event::Written(work) => {
                    let busy = Instant::now();
                    self.written(work?).await?;
                    deadline += busy.elapsed();
                }
                Event::Frame(Some(Ok(frame))) => {
                    deadline = Instant::now() + silence;
                    if let Ok(bytes) = frame.into_data()
                        && !self.take(bytes)
                    {
                        // What is too much is not taken; the hash judges the rest.
                        return Ok(Ended::Whole);
                    }
                }
                Event::Frame(Some(Err(error))) => {
                    tracing::debug!(digest = %self.digest, %error, "body error");
                    return Ok(if self.size == Some(self.received) { Ended::Whole } else { Ended::Lost });
                }
                Event::Frame(None) => {
                    return Ok(match self.size {
                        None => Ended::Somewhere,
                        Some(size) if size == self.received => Ended::Whole,
                        Some(_) => Ended::Short,
                    });
                }
                Event::Gathered => {}
                Event::Silence => return Ok(Ended::Silent),
            }
            if self.pace.listened(listened) {
                return Ok(Ended::Slow);
            }
        }
    }
}
