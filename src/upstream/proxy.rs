//! Which proxy a request goes through, if any.
//!
//! Owns [`Proxy`], what an operator or the environment may call one, and [`Environment`], the rules of `HTTPS_PROXY` and
//! `NO_PROXY` where curl and Go agree, or the more cautious one where they do not. Pure: the variables are handed in, nothing
//! is resolved and nobody is contacted. Promises that a proxy's password is shown by nothing.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use hyper::header::HeaderValue;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use url::Url;

/// The longest user name and password of a proxy, in bytes each: what a SOCKS5 login has room for (RFC 1929).
const LOGIN_BYTES_MAX: usize = 255;

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub(super) kind: Kind,
    /// A name or an address, an IPv6 one without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) login: Option<(String, String)>,
}

/// What is spoken with a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// CONNECT for https, absolute URLs for http.
    Http,
    /// SOCKS5, told an address that millpond resolved.
    Socks,
    /// SOCKS5, told the name.
    SocksByName,
}

/// `proxy`: how the hosts of an upstream are reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Via {
    /// As the variables say.
    #[default]
    Environment,
    /// Without a proxy, whatever the variables say.
    Direct,
    /// Through this one, whatever the variables say: token services and the hosts of redirects as well.
    Proxy(Proxy),
}

/// What `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    http: Option<Set>,
    https: Option<Set>,
    none: Vec<Exception>,
}

/// A proxy, and the variable that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    proxy: Proxy,
    variable: String,
}

/// An item of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    /// A domain and all that is below it.
    Domain(String, Option<u16>),
}

/// How the hosts of one upstream are reached. Cheap to clone.
#[derive(Clone)]
pub(super) struct Router {
    via: Via,
    environment: Arc<Environment>,
}

impl Proxy {
    /// `http://[user:password@]host[:port]`, or the same with `socks5` or `socks5h`. What it says never repeats a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        const WANTED: &str = "write for example http://proxy.lan:3128, socks5://proxy.lan:1080 or socks5h://proxy.lan:1080";
        // What stands before an @ may be a password.
        let shown = if text.contains('@') { "this address".to_owned() } else { format!("{text:?}") };
        let wrong = |what: &str| format!("{shown} {what}; {WANTED}");
        let url = Url::parse(text).map_err(|_| wrong("is no proxy"))?;
        let (kind, usual_port) = match url.scheme() {
            "http" => (Kind::Http, 80),
            "socks5" => (Kind::Socks, 1080),
            "socks5h" => (Kind::SocksByName, 1080),
            _ => return Err(wrong("is a kind of proxy that millpond does not speak with")),
        };
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        let port = url.port().unwrap_or(usual_port);
        if host.is_empty() || !is_bare || port == 0 {
            return Err(wrong("is not a host and a port"));
        }
        let has_login = !url.username().is_empty() || url.password().is_some();
        let login = has_login.then(|| Some((decoded(url.username())?, decoded(url.password().unwrap_or_default())?)));
        let Some(login) = login.map_or(Some(None), |login| login.map(Some)) else {
            return Err("the login of the proxy is not UTF-8, has a control character, or is too long".to_owned());
        };
        if kind == Kind::Http && login.as_ref().is_some_and(|(user, _)| user.contains(':')) {
            return Err("the user name of the proxy has a colon".to_owned());
        }
        Ok(Self { kind, host, port, login })
    }

    /// As `check` prints it.
    pub fn shown(&self) -> String {
        let login = if self.login.is_some() { "***@" } else { "" };
        format!("{}://{login}{}", self.scheme(), self.authority())
    }

    /// As errors and the log call it.
    pub(super) fn label(&self) -> String {
        format!("{}://{}", self.scheme(), self.authority())
    }

    /// `Proxy-Authorization` (RFC 9110 section 11.7.2).
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let (user, password) = self.login.as_ref()?;
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn scheme(&self) -> &'static str {
        match self.kind {
            Kind::Http => "http",
            Kind::Socks => "socks5",
            Kind::SocksByName => "socks5h",
        }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

fn decoded(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    (text.len() <= LOGIN_BYTES_MAX && !text.contains(char::is_control)).then(|| text.into_owned())
}

impl Environment {
    /// Reads the variables, in capitals first; empty is as good as not set. What is wrong comes with the variable's name.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> (Self, Vec<(String, String)>) {
        let mut mistakes = Vec::new();
        let first =
            |names: [&str; 2]| names.into_iter().find_map(|name| Some((name.to_owned(), get(name).filter(|text| !text.is_empty())?)));
        let mut proxy = |names| {
            let (variable, text): (String, String) = first(names)?;
            // curl and Go take a proxy without a scheme for an http one.
            let whole = if text.contains("://") { text } else { format!("http://{text}") };
            match Proxy::parse(&whole) {
                Ok(proxy) => Some(Set { proxy, variable }),
                Err(what) => {
                    mistakes.push((variable, what));
                    None
                }
            }
        };
        let all = proxy(["ALL_PROXY", "all_proxy"]);
        // A program that a web server starts by CGI gets whatever a client calls `Proxy:` in this variable (CVE-2016-5385).
        let is_cgi = get("REQUEST_METHOD").is_some();
        let http = if is_cgi { None } else { proxy(["HTTP_PROXY", "http_proxy"]) };
        let https = proxy(["HTTPS_PROXY", "https_proxy"]);
        let none = first(["NO_PROXY", "no_proxy"]).map(|(_, text)| exceptions(&text)).unwrap_or_default();
        (Self { http: http.or_else(|| all.clone()), https: https.or(all), none }, mistakes)
    }

    /// The proxy for an URL and the variable that names it.
    pub fn proxy_of(&self, url: &Url) -> Option<(&Proxy, &str)> {
        let set = self.set(url.scheme() == "https", url.host_str()?, url.port_or_known_default()?)?;
        Some((&set.proxy, &set.variable))
    }

    fn set(&self, is_https: bool, host: &str, port: u16) -> Option<&Set> {
        let set = if is_https { &self.https } else { &self.http };
        set.as_ref().filter(|_| !self.excepts(host, port))
    }

    fn excepts(&self, host: &str, port: u16) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        if is_local_name(&host) || ip.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        let same_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        self.none.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Network(network) => ip.is_some_and(|ip| network.contains(&ip)),
            Exception::Address(address, wanted) => ip == Some(*address) && same_port(wanted),
            Exception::Domain(domain, wanted) => {
                let below = || host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'));
                ip.is_none() && (host == *domain || below()) && same_port(wanted)
            }
        })
    }
}

/// A name that every resolver makes this machine of (RFC 6761 section 6.3): to a proxy it would be the proxy's.
pub(super) fn is_local_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn exceptions(text: &str) -> Vec<Exception> {
    text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|item| !item.is_empty()).map(exception).collect()
}

fn exception(item: &str) -> Exception {
    if item == "*" {
        return Exception::All;
    }
    if let Ok(network) = item.parse() {
        return Exception::Network(network);
    }
    let (host, port) = match item.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) if host.ends_with(']') || !host.contains(':') => (host, Some(port)),
        _ => (item, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<IpAddr>() {
        return Exception::Address(address.to_canonical(), port);
    }
    // `.example.com` is the domain itself too, as for curl; Go takes it for what is below only.
    let domain = host.strip_prefix('*').unwrap_or(host).trim_matches('.').to_ascii_lowercase();
    Exception::Domain(domain, port)
}

impl Router {
    pub(super) fn new(via: &Via, environment: &Arc<Environment>) -> Self {
        Self { via: via.clone(), environment: Arc::clone(environment) }
    }

    /// The proxy that a connection goes through.
    pub(super) fn proxy(&self, is_https: bool, host: &str, port: u16) -> Option<&Proxy> {
        match &self.via {
            Via::Direct => None,
            Via::Proxy(proxy) => Some(proxy),
            Via::Environment => self.environment.set(is_https, host, port).map(|set| &set.proxy),
        }
    }

    /// The proxy that is sent the request for an URL itself, and not only a connection: it reads along anyway.
    pub(super) fn forwarder(&self, url: &Url) -> Option<&Proxy> {
        if url.scheme() != "http" {
            return None;
        }
        self.proxy(false, url.host_str()?, url.port_or_known_default()?).filter(|proxy| proxy.kind == Kind::Http)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let (environment, mistakes) = Environment::read(get);
        assert_eq!(mistakes, []);
        environment
    }

    fn proxy_of(environment: &Environment, url: &str) -> Option<String> {
        environment.proxy_of(&Url::parse(url).expect("an URL")).map(|(proxy, variable)| format!("{variable}={}", proxy.shown()))
    }

    #[test]
    fn what_a_proxy_may_be_called() {
        for (text, shown) in [
            ("http://proxy.lan:3128", "http://proxy.lan:3128"),
            ("http://proxy.lan", "http://proxy.lan:80"),
            ("http://user:p%40ss@proxy.lan:3128/", "http://***@proxy.lan:3128"),
            ("socks5://[fd00::1]", "socks5://[fd00::1]:1080"),
            ("socks5h://user@10.0.0.1:80", "socks5h://***@10.0.0.1:80"),
        ] {
            let proxy = Proxy::parse(text).expect(text);
            assert_eq!((proxy.shown(), format!("{proxy:?}")), (shown.to_owned(), shown.to_owned()));
        }
        let proxy = Proxy::parse("http://user:p%40ss@proxy.lan:3128").expect("a proxy");
        assert_eq!(proxy.login, Some(("user".to_owned(), "p@ss".to_owned())));
        assert_eq!(proxy.authorization().expect("a login"), "Basic dXNlcjpwQHNz");
        assert!(proxy.authorization().expect("a login").is_sensitive());
        for text in ["", "proxy", "proxy:3128", "https://proxy", "socks4://proxy", "http://", "http://p:0", "http://p/x", "http://p?x"] {
            assert!(Proxy::parse(text).is_err(), "{text}");
        }
        for text in
            ["ftp://user:hunter2@p", "http://user:hunter2@p/x", "http://user:hunter2@", "http://u%3A:hunter2@p", "http://u:hunter2%00@p"]
        {
            let what = Proxy::parse(text).expect_err(text);
            assert!(!what.contains("hunter2"), "{what}");
        }
    }

    #[test]
    fn variables_by_scheme_and_by_case() {
        let both = environment(&[
            ("HTTPS_PROXY", "http://s:1"),
            ("https_proxy", "http://no:1"),
            ("http_proxy", "h:2"),
            ("ALL_PROXY", "http://a:3"),
        ]);
        assert_eq!(proxy_of(&both, "https://r.test/"), Some("HTTPS_PROXY=http://s:1".to_owned()));
        assert_eq!(proxy_of(&both, "http://r.test/"), Some("http_proxy=http://h:2".to_owned()));
        let all = environment(&[("HTTPS_PROXY", ""), ("all_proxy", "socks5h://a:3")]);
        assert_eq!(proxy_of(&all, "https://r.test/"), Some("all_proxy=socks5h://a:3".to_owned()));
        assert_eq!(proxy_of(&all, "http://r.test/"), Some("all_proxy=socks5h://a:3".to_owned()));
        assert_eq!(proxy_of(&environment(&[]), "https://r.test/"), None);
        // By CGI, a client says what HTTP_PROXY is.
        let cgi = environment(&[("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "http://evil:1"), ("HTTPS_PROXY", "http://s:1")]);
        assert_eq!((proxy_of(&cgi, "http://r.test/"), proxy_of(&cgi, "https://r.test/").is_some()), (None, true));
        let get = |name: &str| (name == "ALL_PROXY").then(|| "socks4://u:hunter2@a".to_owned());
        let (_, mistakes) = Environment::read(get);
        assert!(mistakes.len() == 1 && mistakes[0].0 == "ALL_PROXY" && !mistakes[0].1.contains("hunter2"), "{mistakes:?}");
    }

    #[test]
    fn what_no_proxy_excepts() {
        let excepted = |rules: &str, url: &str| {
            let environment = environment(&[("ALL_PROXY", "http://a:3"), ("NO_PROXY", rules)]);
            proxy_of(&environment, url).is_none()
        };
        for (rules, url, expected) in [
            ("", "https://r.test/", false),
            ("*", "https://r.test/", true),
            ("r.test", "https://r.test/", true),
            ("R.test", "https://a.r.TEST/", true),
            ("r.test", "https://bar.test/", false),
            (".r.test", "https://r.test/", true),
            (".r.test, other", "https://a.r.test/", true),
            ("*.r.test", "https://a.r.test/", true),
            ("r.test:443", "https://r.test/", true),
            ("r.test:5000", "https://r.test/", false),
            ("r.test:5000", "http://r.test:5000/", true),
            ("other r.test", "https://r.test./", true),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("10.1.2.3", "https://10.1.2.3/", true),
            ("10.1.2.3:5000", "https://10.1.2.3/", false),
            ("fd00::/8", "https://[fd00::1]/", true),
            ("[fd00::1]:5000", "http://[fd00::1]:5000/", true),
            ("0.3", "https://10.0.0.3/", false),
            ("", "http://localhost:5000/", true),
            ("", "http://a.localhost/", true),
            ("", "http://127.9.9.9/", true),
            ("", "http://[::1]/", true),
            ("", "http://[::ffff:127.0.0.1]/", true),
        ] {
            assert_eq!(excepted(rules, url), expected, "{rules:?} {url}");
        }
    }

    #[test]
    fn what_is_written_goes_before_the_environment() {
        let environment = Arc::new(environment(&[("ALL_PROXY", "http://a:3"), ("NO_PROXY", "*")]));
        let own = Via::Proxy(Proxy::parse("socks5://b:4").expect("a proxy"));
        assert!(Router::new(&own, &environment).proxy(true, "127.0.0.1", 443).is_some());
        assert!(Router::new(&Via::Environment, &environment).proxy(true, "r.test", 443).is_none());
        assert!(Router::new(&Via::Direct, &environment).proxy(true, "r.test", 443).is_none());
        let forwards = |proxy: &str, url: &str| {
            let via = Via::Proxy(Proxy::parse(proxy).expect("a proxy"));
            Router::new(&via, &environment).forwarder(&Url::parse(url).expect("an URL")).is_some()
        };
        assert!(forwards("http://p", "http://r.test/"));
        assert!(!forwards("http://p", "https://r.test/"), "the login of a proxy is not for who is behind it");
        assert!(!forwards("socks5://p", "http://r.test/"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,80}", host in "[a-z0-9.:\\[\\]]{0,30}") {
            let _ = Proxy::parse(&text);
            let environment = Environment { none: exceptions(&text), ..Environment::default() };
            let _ = environment.excepts(&host, 443);
        }
    }
}
