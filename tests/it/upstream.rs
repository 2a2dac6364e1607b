//! What an operator says of an upstream, in front of upstreams that notice: the proxy on the way, the login and where it comes
//! from, the client certificate, which repositories are served; and what registries do differently from each other.

mod accounts; // several logins: the one with the most pulls left, the one that sees a repository
mod budget; // limits of pulls: read, shown, spared; 429
mod certificate; // client certificates: to the hosts of the endpoints and nowhere else
mod docker; // Docker's config.json, credential helpers, password files that change
mod proxy; // CONNECT, whole URLs, SOCKS5; proxies that refuse, hang and babble; the environment
mod repositories; // allow and deny
mod targets; // storage hosts that fail are not waited for
mod ways; // challenges, tokens, redirects as real registries have them
