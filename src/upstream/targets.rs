//! Where redirects lead: the storage and the CDNs of an upstream, and how they are doing.
//!
//! Owns [`Targets`]. A target that fails several times in a row is left alone as an endpoint is, and one request a while finds
//! out whether it is back: a redirect that leads there fails at once, and whoever is redirected asks for another (`turn`). No
//! client waits for a host that is known to be away while the registry knows one that is not.
//!
//! The hosts are the upstream's to choose, so the table of them has an end, and none of them is in a metric.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use url::Url;

use super::accounts::ANYBODY;
use super::ask::{Ask, read_challenge};
use super::auth::{Wanted, check_realm, pull_scope};
use super::budget::Deadline;
use super::challenge::Challenge;
use super::error::{Error, Why, is_passing};
use super::health::Health;
use super::redirect::{Chain, host_of};
use super::spot::Spot;
use super::wire::{Outgoing, Wire, settle};
use super::{Inner, Upstream};
use crate::oci::Name;

/// Hosts whose health is known, of one upstream. The largest registries redirect to some dozens, one for each region.
const TARGETS_MAX: usize = 256;

/// How the hosts are doing that an upstream redirects to. By scheme, host and port.
#[derive(Default)]
pub(super) struct Targets(Mutex<HashMap<String, Arc<Health>>>);

impl Targets {
    /// Nothing where there are too many that fail: the next one is not watched.
    fn health(&self, url: &Url, wire: &Wire) -> Option<Arc<Health>> {
        let origin = url.origin().ascii_serialization();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(health) = known.get(&origin) {
            return Some(Arc::clone(health));
        }
        if known.len() >= TARGETS_MAX {
            known.retain(|_, health| health.has_failed());
        }
        if known.len() >= TARGETS_MAX {
            return None;
        }
        let health = Arc::new(Health::new(&wire.upstream, host_of(url), None, &wire.metrics, &wire.limits));
        known.insert(origin, Arc::clone(&health));
        Some(health)
    }
}

impl Upstream {
    /// Sends to where a redirect led, unless that fails all the time, and takes note of how it went.
    pub(super) async fn send_to(&self, out: &Outgoing<'_>, deadline: Deadline) -> Result<Response<Incoming>, Error> {
        let Inner { wire, targets, .. } = &*self.0;
        // An endpoint has a health of its own, and was admitted already.
        let health = if self.0.is_configured(out.url) { None } else { targets.health(out.url, wire) };
        let pass = health.as_deref().map(|health| health.admit(out.kind, &[ANYBODY])).transpose()?;
        let sent = wire.send(out, deadline).await;
        let failure = match &sent {
            Ok(response) if is_passing(response.status().as_u16()) => {
                Some(Error::Unavailable { host: host_of(out.url), why: Why::Status(response.status().as_u16()) })
            }
            // That it may not be gone to, or speaks no HTTP, says nothing of its health.
            Err(error @ (Error::Unavailable { .. } | Error::Timeout { .. })) => Some(error.clone()),
            Ok(_) | Err(_) => None,
        };
        match (pass, &failure) {
            (Some(pass), Some(error)) => pass.failed(error),
            (Some(pass), None) if sent.is_ok() => pass.answered(),
            _ => {}
        }
        sent
    }

    /// Asks where a redirect leads. A 401 there may be another registry's (registry.k8s.io sends to pkg.dev): it gets an
    /// anonymous token from its own host, and never what belongs to the first.
    pub(super) async fn at_target(
        &self,
        chain: &Chain,
        spot: &mut Spot,
        ask: &Ask<'_>,
        deadline: Deadline,
    ) -> Result<Response<Incoming>, Error> {
        let (url, reach, from) = (chain.url(), spot.reach, spot.from.as_str());
        let authorization = spot.authorization.as_ref();
        let Ask { ref method, accept, offset, last, kind, .. } = *ask;
        let mut out = Outgoing { method, url, accept, authorization, offset, last, kind, reach, from, via: None };
        let response = self.send_to(&out, deadline).await?;
        if response.status() != StatusCode::UNAUTHORIZED || chain.is_at_origin() {
            return Ok(response);
        }
        let (Some(name), Ok(Some(Challenge::Bearer { realm, service }))) = (name_in(url), read_challenge(from, response.headers())) else {
            return Ok(response);
        };
        let service = Arc::new(check_realm(&realm, service, url, &[])?);
        settle(response).await;
        let wanted = Wanted { service, scope: pull_scope(&name), secret: None, reach, foreign: true };
        let granted = self.0.token(&wanted, deadline).await?;
        out.authorization = Some(&granted.header);
        let response = self.send_to(&out, deadline).await?;
        spot.authorization = Some(granted.header);
        Ok(response)
    }
}

/// The repository that an URL of another registry speaks of.
fn name_in(url: &Url) -> Option<Name> {
    let path = url.path().strip_prefix("/v2/")?;
    let end = path.rfind("/manifests/").or_else(|| path.rfind("/blobs/"))?;
    Name::parse(&path[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_in_urls() {
        let name = |url: &str| name_in(&Url::parse(url).expect("an URL")).map(|name| name.to_string());
        let url = "https://eu-docker.pkg.dev/v2/k8s/images/pause/manifests/3.9";
        assert_eq!(name(url).as_deref(), Some("k8s/images/pause"));
        assert_eq!(name("https://a.test/v2/manifests/blobs/sha256:ab").as_deref(), Some("manifests"));
        assert_eq!(name("https://a.test/containers/images/sha256:ab"), None);
        assert_eq!(name("https://a.test/v2/UP/manifests/x"), None);
    }
}
