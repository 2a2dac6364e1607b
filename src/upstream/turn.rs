//! One endpoint's turn: in whose name it is asked, and what a second question is worth.
//!
//! Promises that an endpoint which limits one account, or refuses it, is asked in the name of the others before that is the
//! answer; that no account is used twice but where its login or its redirect was renewed; and that the whole ends by the
//! deadline of the turn.

use hyper::Method;
use tracing::debug;

use super::Upstream;
use super::ask::{Answer, Ask, Attempt};
use super::budget::Deadline;
use super::error::{Error, Why};
use super::health::Pass;
use super::tries::Turn;

impl Upstream {
    /// In the name of one account after the other, the one with the most pulls left first.
    pub(super) async fn attempt(&self, turn: Turn<'_>, ask: &Ask<'_>, deadline: Deadline) -> Result<Answer, Error> {
        let Turn { endpoint, pass, .. } = turn;
        let (accounts, mut pass) = (&self.0.accounts, Some(pass));
        let (mut refused, mut worst) = (Vec::new(), None);
        for account in accounts.in_order(ask.identity, ask.name) {
            let result = match endpoint.health.check_limit(ask.kind, account.number) {
                Ok(()) => self.attempt_as(Attempt { endpoint, account, secret: None, ask, deadline }, pass.take()).await,
                Err(limited) => Err(limited),
            };
            let error = match result {
                Ok(answer) => {
                    accounts.shown(account, &refused, ask.name);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match error {
                Error::RateLimited { .. } => {}
                Error::NotFound { .. } | Error::Denied { .. } if !accounts.is_believed(account, ask.name, &error) => refused.push(account),
                // What another account would be told too.
                error => return Err(error),
            }
            worst = Some(worse(worst, error));
        }
        Err(worst.unwrap_or_else(|| Error::Unavailable { host: endpoint.host.clone(), why: Why::Busy }))
    }

    async fn attempt_as(&self, attempt: Attempt<'_>, pass: Option<Pass<'_>>) -> Result<Answer, Error> {
        let Attempt { account, ask, deadline, .. } = attempt;
        let login = account.secret(deadline).await;
        let attempt = Attempt { secret: login.as_ref(), ..attempt };
        let error = match self.walk(attempt, pass).await {
            Err(error @ Error::Unavailable { why: Why::Storage(_), .. }) if ask.method == Method::GET => error,
            Err(error @ Error::Unavailable { why: Why::Resting, .. }) => error,
            // A password that was changed there and here meanwhile, a token of a helper that ended.
            Err(Error::Denied { authenticated: true, .. }) if account.has_renewed(login.as_ref(), deadline).await => {
                let renewed = account.secret(deadline).await;
                return self.walk(Attempt { secret: renewed.as_ref(), ..attempt }, None).await;
            }
            other => return other,
        };
        // The storage refuses an URL that the registry has just signed: its clock is off, the signature was for one use,
        // or the answer came out of somebody's cache. Or it is a host that fails all the time, and there may be another one.
        // A second redirect is worth one more question.
        debug!(upstream = %self.registry(), %error, "asking for a fresh redirect");
        self.walk(attempt, None).await
    }
}

/// Of what several accounts were told the one to report: a limit, which passes, before a refusal, and that before an absence,
/// which may be one; of refusals the one to a login.
fn worse(known: Option<Error>, new: Error) -> Error {
    let rank = |error: &Error| (error.rank(), matches!(error, Error::Denied { authenticated: true, .. }));
    match known {
        Some(known) if rank(&known) >= rank(&new) => known,
        _ => new,
    }
}
