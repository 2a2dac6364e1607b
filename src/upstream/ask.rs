//! One question to an upstream: which endpoint, which credentials, which redirects, and what the answer means.
//!
//! The story in reading order: [`Upstream::ask`] goes through the endpoints, `turn` asks one of
//! them in the name of each account that it takes, [`Upstream::walk`] follows one request from its endpoint to wherever the content is, [`Upstream::at_registry`] does the token dance, [`Upstream::judge`] reads
//! the status. Everything may be dropped at any await: nothing is left behind but a token under way.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::http::response::Parts;
use hyper::{Method, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpInfo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};
use url::Url;

use super::accounts::Account;
use super::auth::{Granted, Wanted, check_realm, pull_scope};
use super::budget::Deadline;
use super::challenge::{self, Challenge};
use super::connect::Reach;
use super::endpoint::{Endpoint, Scheme};
use super::error::{Error, Flaw, Phase, Why, is_passing};
use super::headers;
use super::health::Pass;
use super::login::Secret;
use super::redirect::{Chain, host_of, is_redirect};
use super::spot::Spot;
use super::tries::Tries;
use super::wire::{Outgoing, settle};
use super::{Inner, Upstream};
use crate::observe::Kind;
use crate::oci::Name;

/// In whose name a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// With millpond's credentials, where there are some.
    Own,
    /// As anybody could.
    Anyone,
}

/// A question.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) kind: Kind,
    pub(super) name: &'a Name,
    /// What follows the name in the path: `manifests/latest`.
    pub(super) what: String,
    pub(super) query: Option<String>,
    pub(super) accept: &'static str,
    pub(super) offset: u64,
    /// The last byte that is wanted, where that is not the end.
    pub(super) last: Option<u64>,
    pub(super) identity: Identity,
    /// Endpoints, by number, that are asked last.
    pub(super) avoided: &'a [usize],
}

/// A question on its way: to whom, in whose name, with what login, and until when.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) account: &'a Account,
    pub(super) secret: Option<&'a Arc<Secret>>,
    pub(super) ask: &'a Ask<'a>,
    pub(super) deadline: Deadline,
}

/// An answer of status 200, or 206 where a range was asked for.
pub(super) struct Answer {
    pub(super) head: Parts,
    pub(super) body: Incoming,
    /// Where the body comes from.
    pub(super) host: String,
    /// The endpoint that was asked, by its place in the operator's list.
    pub(super) endpoint: usize,
    /// Where more of the same is.
    pub(super) spot: Spot,
}

/// What the registry itself answered, and with what it was asked.
struct First {
    response: Response<Incoming>,
    authorization: Option<HeaderValue>,
    authenticated: bool,
}

impl Upstream {
    /// Asks the endpoints in turn. `finish` makes of an answer what is wanted, and may still fail: then the next is asked.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        ask: &Ask<'_>,
        deadline: Deadline,
        finish: impl Fn(Answer) -> F,
    ) -> Result<T, Error> {
        let accounts = self.0.accounts.of(ask.identity);
        let mut tries = Tries::new(&self.0.endpoints, ask.avoided, ask.kind, accounts, &self.0.wire.limits, deadline);
        while let Some(turn) = tries.next().await {
            let (index, number, endpoint, limit) = (turn.index, turn.number, turn.endpoint, turn.deadline);
            let result = match self.attempt(turn, ask, limit).await {
                Ok(answer) => finish(Answer { endpoint: number, ..answer }).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(done) => return Ok(done),
                Err(error) => {
                    if matches!(error, Error::RefusedTarget { .. }) {
                        warn!(upstream = %self.registry(), "{error}; if that is meant to be, name the host in auth_hosts or endpoints");
                    }
                    debug!(upstream = %self.registry(), endpoint = %endpoint.label, name = %ask.name, what = ask.what, %error, "an attempt failed");
                    tries.failed(index, error);
                }
            }
        }
        Err(tries.verdict(&self.0.registry))
    }

    /// Waits for one of the connections that millpond grants to an upstream.
    pub(super) async fn permit(&self, lane: &Arc<Semaphore>, deadline: Deadline) -> Result<OwnedSemaphorePermit, Error> {
        let permit = deadline.run(Arc::clone(lane).acquire_owned()).await;
        permit.and_then(Result::ok).ok_or_else(|| Error::Unavailable { host: self.0.registry.to_string(), why: Why::Busy })
    }

    /// From the registry through its redirects to the answer.
    pub(super) async fn walk(&self, attempt: Attempt<'_>, pass: Option<Pass<'_>>) -> Result<Answer, Error> {
        let Attempt { endpoint, ask, deadline, .. } = attempt;
        let url = endpoint.url(&format!("{}/{}", ask.name, ask.what), ask.query.as_deref());
        let First { mut response, authorization, authenticated } = self.at_registry(attempt, pass, &url).await?;
        // A registry in the private network may redirect into it; one of the public internet may not.
        let peer = response.extensions().get::<HttpInfo>().map(|info| info.remote_addr().ip());
        // Through a proxy nobody but the proxy knows the address, unless it is the endpoint's very name.
        let named = || url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok();
        let is_private = peer.or_else(named).is_some_and(|ip| !(self.0.wire.limits.is_public)(ip));
        let named_reach = if is_private { Reach::Anywhere } else { Reach::Public };
        let mut chain = Chain::new(url, self.0.wire.limits.redirects, ask.kind == Kind::Blob);
        let mut spot =
            Spot { url: chain.url().clone(), reach: Reach::Anywhere, from: endpoint.host.clone(), authorization: authorization.clone() };
        while is_redirect(response.status()) {
            let from = host_of(chain.url());
            chain.follow(response.headers())?;
            settle(response).await;
            let reach = if self.0.is_configured(chain.url()) { Reach::Anywhere } else { named_reach };
            let authorization = authorization.clone().filter(|_| chain.is_at_origin());
            spot = Spot { url: chain.url().clone(), reach, from, authorization };
            response = self.at_target(&chain, &mut spot, ask, deadline).await?;
        }
        self.judge(attempt, &chain, authenticated, response, spot).await
    }

    /// Asks the endpoint itself, with a token where it is known to want one; a 401 is answered once.
    async fn at_registry(&self, attempt: Attempt<'_>, pass: Option<Pass<'_>>, url: &Url) -> Result<First, Error> {
        let Attempt { endpoint, account, secret, ask, deadline } = attempt;
        let mut out = Outgoing {
            method: &ask.method,
            url,
            accept: ask.accept,
            authorization: None,
            offset: ask.offset,
            last: ask.last,
            kind: ask.kind,
            reach: Reach::Anywhere,
            from: &endpoint.host,
            via: Some(&self.1),
        };
        let used = self.credential(endpoint.scheme(), ask.name, secret, deadline).await?;
        out.authorization = used.header.as_ref();
        let sent = self.0.wire.send(&out, deadline).await;
        endpoint.note(&sent, pass);
        let response = sent?;
        self.0.accounts.note(account, response.headers());
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(First { response, authorization: used.header, authenticated: used.authenticated });
        }
        let denied = Error::Denied { host: endpoint.host.clone(), authenticated: used.authenticated };
        let Some(scheme) = self.challenged(endpoint, response.headers())? else {
            settle(response).await;
            return Err(denied);
        };
        settle(response).await;
        // Whether anything but what was just refused can be tried.
        match (&scheme, &used) {
            (Scheme::Basic, used) if secret.is_none() || used.wanted.is_none() && used.header.is_some() => return Err(denied),
            (Scheme::Bearer(service), Used { header: Some(header), wanted: Some(wanted), cached, .. }) if wanted.service == *service => {
                if !cached {
                    return Err(denied);
                }
                self.0.auth.forget(wanted, header);
            }
            _ => {}
        }
        let used = self.credential(Some(scheme), ask.name, secret, deadline).await?;
        out.authorization = used.header.as_ref();
        let response = self.0.wire.send(&out, deadline).await?;
        self.0.accounts.note(account, response.headers());
        Ok(First { response, authorization: used.header, authenticated: used.authenticated })
    }

    /// What to send along to an endpoint with this scheme.
    async fn credential(
        &self,
        scheme: Option<Scheme>,
        name: &Name,
        secret: Option<&Arc<Secret>>,
        deadline: Deadline,
    ) -> Result<Used, Error> {
        match scheme {
            None => Ok(Used::default()),
            Some(Scheme::Basic) => {
                Ok(Used { header: secret.map(|secret| secret.basic.clone()), authenticated: secret.is_some(), ..Used::default() })
            }
            Some(Scheme::Bearer(service)) => {
                let scope = pull_scope(name);
                let wanted = Wanted { service, scope, secret: secret.cloned(), reach: Reach::Anywhere, foreign: false };
                let granted = self.0.token(&wanted, deadline).await?;
                let authenticated = secret.is_some();
                Ok(Used { header: Some(granted.header), authenticated, cached: granted.cached, wanted: Some(wanted) })
            }
        }
    }

    /// What a 401 of an endpoint asks for, remembered for the next request there; nothing where it asks for nothing.
    fn challenged(&self, endpoint: &Endpoint, headers: &HeaderMap) -> Result<Option<Scheme>, Error> {
        let scheme = match read_challenge(&endpoint.host, headers)? {
            None => return Ok(None),
            Some(Challenge::Basic) => Scheme::Basic,
            Some(Challenge::Bearer { realm, service }) => {
                Scheme::Bearer(Arc::new(check_realm(&realm, service, &endpoint.base, &self.0.auth_hosts)?))
            }
        };
        endpoint.remember(&scheme);
        Ok(Some(scheme))
    }

    /// What the status says.
    async fn judge(
        &self,
        Attempt { endpoint, account, ask, .. }: Attempt<'_>,
        chain: &Chain,
        authenticated: bool,
        response: Response<Incoming>,
        spot: Spot,
    ) -> Result<Answer, Error> {
        let host = host_of(chain.url());
        let (status, headers) = (response.status().as_u16(), response.headers());
        let storage = ask.kind == Kind::Blob && !chain.is_at_origin();
        let error = match status {
            200 | 206 if headers::is_encoded(headers) => Error::BadAnswer { host, flaw: Flaw::Encoded },
            200 => return Ok(Answer::new(response, host, spot)),
            206 if ask.offset > 0 => return Ok(Answer::new(response, host, spot)),
            429 => endpoint.health.limited(ask.kind, (account.number, &account.label), headers::retry_after(headers)),
            400 | 401 | 403 | 410 if storage => Error::Unavailable { host, why: Why::Storage(status) },
            // A page for people comes from something that stands before the registry, and says nothing of its contents.
            403 if headers::is_page(headers) => Error::Unavailable { host, why: Why::Status(status) },
            401 | 403 => Error::Denied { host, authenticated },
            404 | 410 => Error::NotFound { host },
            405 | 501 if ask.method == Method::HEAD => Error::BadAnswer { host, flaw: Flaw::NoHead },
            416 => Error::BadAnswer { host, flaw: Flaw::Range },
            508 => Error::Unavailable { host, why: Why::Loop },
            _ if status >= 500 || is_passing(status) => Error::Unavailable { host, why: Why::Status(status) },
            _ => Error::BadAnswer { host, flaw: Flaw::Status(status) },
        };
        settle(response).await;
        Err(error)
    }
}

/// The credential that went along with a request.
#[derive(Default)]
struct Used {
    header: Option<HeaderValue>,
    /// It is millpond's own.
    authenticated: bool,
    /// It is a token that was here before.
    cached: bool,
    /// What it was asked for, if it is a token.
    wanted: Option<Wanted>,
}

impl Answer {
    fn new(response: Response<Incoming>, host: String, spot: Spot) -> Self {
        let (head, body) = response.into_parts();
        Self { head, body, host, endpoint: 0, spot }
    }
}

impl Inner {
    pub(super) async fn token(&self, wanted: &Wanted, deadline: Deadline) -> Result<Granted, Error> {
        let slow = || Error::Timeout { host: wanted.service.host(), phase: Phase::Head };
        deadline.run(self.auth.token(wanted)).await.unwrap_or_else(|| Err(slow()))
    }

    /// Whether the operator named this scheme, host and port as an endpoint of this upstream.
    pub(super) fn is_configured(&self, url: &Url) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.base.origin() == url.origin())
    }
}

/// The challenge of a 401; nothing where there is none at all.
pub(super) fn read_challenge(host: &str, headers: &HeaderMap) -> Result<Option<Challenge>, Error> {
    let unclear = || Error::BadAnswer { host: host.to_owned(), flaw: Flaw::Challenge };
    let mut lines = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        lines.push(value.to_str().map_err(|_| unclear())?);
    }
    if lines.is_empty() {
        return Ok(None);
    }
    challenge::read(lines).map(Some).ok_or_else(unclear)
}
