//! The mirror under test, in front of scripted registries: its settings, its folder, its start and its end.
//!
//! Settings are written as an operator writes them, in the words of `mirror.toml`, and read by the program's own reader. Every
//! name of the built-in table that a test does not point at a scripted registry leads to a closed port: no test can reach
//! beyond this machine. [`Mirror`] runs inside the test; [`Process`] is the program itself, for tests that kill it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use millpond::config::{Config, File, Sources, load};
use millpond::serve::Tuning;
use tempfile::TempDir;
use tokio::process::Command;
use url::Url;

use super::audit::{Audit, audit};
use super::patience::{PATIENCE, within};
use super::registry::{Port, Registry};
use super::tls::{self, Certificate, Pem};

mod process;
mod running;

pub use process::Process;
pub use running::Mirror;

/// Where nobody listens: the port mapper of old, which no machine runs.
const CLOSED: &str = "http://127.0.0.1:1";

/// A mirror to be. Clones share the folder.
#[derive(Clone, Debug)]
pub struct Builder {
    home: Arc<TempDir>,
    // By table and key; the value as TOML writes it.
    lines: BTreeMap<String, BTreeMap<String, String>>,
    endpoints: BTreeMap<String, Vec<String>>,
    auth_hosts: BTreeMap<String, BTreeSet<String>>,
    users: BTreeMap<String, String>,
    secret_paths: Vec<String>,
    tuning: Tuning,
    // What is logged into a file, where that is so.
    log: Option<&'static str>,
}

/// The limits of the server, but for those on silence: a machine that is busy with other things for half a minute is none of
/// a test's business, and what happens when such a limit is reached is told by tests that set it.
fn patient() -> Tuning {
    let long = PATIENCE * 2;
    let mut tuning = Tuning::default();
    (tuning.listen.handshake, tuning.listen.header, tuning.listen.stall) = (long, long, long);
    (tuning.fill.silence, tuning.fill.stall) = (long, long);
    let upstream = &mut tuning.upstream;
    (upstream.dns, upstream.connect_address, upstream.connect, upstream.proxy) = (long, long, long, long);
    (upstream.head, upstream.call, upstream.whole, upstream.token) = (long, long, long, long);
    upstream.search = long;
    tuning
}

impl Builder {
    /// With an empty data folder, in front of nothing.
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    /// As [`Builder::new`], in memory where this machine has a folder for that: for a test that starts the program a hundred times
    /// and ends it by other things than the power.
    pub fn in_memory() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn at(home: TempDir) -> Self {
        let builder = Self {
            home: Arc::new(home),
            lines: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            auth_hosts: BTreeMap::new(),
            users: BTreeMap::new(),
            secret_paths: Vec::new(),
            tuning: patient(),
            log: None,
        };
        let data = text(&builder.data().display().to_string());
        builder.set("server", "listen", "\"127.0.0.1:0\"").set("server", "admin", "\"127.0.0.1:0\"").set("cache", "dir", &data).patrol("0")
    }

    /// With one more endpoint of the registry that clients call `name`. A registry over TLS is trusted by the authority of
    /// the kit, and one with a token server elsewhere may use it.
    pub fn upstream(self, name: &str, registry: &Registry) -> Self {
        let host = |port| registry.address(port).to_string();
        let builder = self.endpoint(name, &registry.url()).auth_host(name, &host(Port::Auth));
        if registry.url().starts_with("https:") { builder.trusting(name) } else { builder }
    }

    /// With one more endpoint, wherever it is.
    pub fn endpoint(mut self, name: &str, url: &str) -> Self {
        self.endpoints.entry(name.into()).or_default().push(url.into());
        self
    }

    /// With these endpoints in place of all.
    pub fn endpoints(mut self, name: &str, urls: &[&str]) -> Self {
        self.endpoints.insert(name.into(), urls.iter().map(|&url| url.into()).collect());
        self
    }

    /// With one more host that may issue tokens.
    pub fn auth_host(mut self, name: &str, host: &str) -> Self {
        self.auth_hosts.entry(name.into()).or_default().insert(host.into());
        self
    }

    /// Without any host that may issue tokens, besides the endpoint's own.
    pub fn no_auth_hosts(mut self, name: &str) -> Self {
        self.auth_hosts.remove(name);
        self
    }

    /// That trusts the authority of the kit at this upstream.
    pub fn trusting(self, name: &str) -> Self {
        let file = self.file("authority.pem", &tls::authority_pem());
        self.set(&upstream(name), "ca_file", &file)
    }

    /// That logs in at this upstream.
    pub fn login(self, name: &str, user: &str, password: &str) -> Self {
        let file = self.file(&format!("password-{name}"), password);
        self.set(&upstream(name), "username", &text(user)).set(&upstream(name), "password_file", &file)
    }

    /// That has one more account at this upstream.
    pub fn account(self, name: &str, account: &str, user: &str, password: &str) -> Self {
        let file = self.file(&format!("password-{name}-{account}"), password);
        let table = format!("{}.accounts.{account}", upstream(name));
        self.set(&table, "username", &text(user)).set(&table, "password_file", &file)
    }

    /// Whose login at this upstream was taken out again.
    pub fn no_login(mut self, name: &str) -> Self {
        self.lines.entry(upstream(name)).or_default().retain(|key, _| key != "username" && key != "password_file");
        self
    }

    /// That serves what only its login can see to anyone.
    pub fn private_to_anyone(self, name: &str) -> Self {
        self.set(&upstream(name), "private", "\"anyone\"")
    }

    /// With `tag_ttl`, such as `10s`.
    pub fn tag_ttl(self, duration: &str) -> Self {
        self.set("cache", "tag_ttl", &text(duration))
    }

    /// With `max_stale`, such as `30d`.
    pub fn max_stale(self, duration: &str) -> Self {
        self.set("cache", "max_stale", &text(duration))
    }

    /// With `max_size`, such as `10MiB`.
    pub fn max_size(self, size: &str) -> Self {
        self.set("cache", "max_size", &text(size))
    }

    /// With `patrol`, such as `1MiB`; without, a mirror of the kit has none: who damages a file decides who finds it.
    pub fn patrol(self, bytes_a_second: &str) -> Self {
        self.set("cache", "patrol", &text(bytes_a_second))
    }

    /// That contacts no upstream.
    pub fn offline(self) -> Self {
        self.set("cache", "offline", "true")
    }

    /// That admits this user by htpasswd.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        // The cheapest cost there is: the strength of the hash is not what is tested.
        let hash = bcrypt::hash(password, 4).unwrap();
        self.users.insert(name.into(), hash);
        let entries: String = self.users.iter().map(|(name, hash)| format!("{name}:{hash}\n")).collect();
        let file = self.file("htpasswd", &entries);
        self.set("access", "htpasswd", &file)
    }

    /// That admits whoever knows this path.
    pub fn secret_path(mut self, secret: &str) -> Self {
        self.secret_paths.push(secret.into());
        let list = list(&self.secret_paths);
        self.set("access", "secret_paths", &list)
    }

    /// That speaks TLS, with a certificate of the kit's authority.
    pub fn tls(self) -> Self {
        let Pem { cert, key } = tls::leaf(Certificate::Good);
        let (cert, key) = (self.file("cert.pem", &cert), self.file("key.pem", &key));
        self.set("server.tls", "cert", &cert).set("server.tls", "key", &key)
    }

    /// That speaks TLS and admits clients with a certificate of the kit's authority (`tls::leaf`).
    pub fn client_certificates(self) -> Self {
        let authority = self.file("client-authority.pem", &tls::authority_pem());
        self.tls().set("server.tls", "client_ca", &authority)
    }

    /// With waits and limits that no operator sets; in process only.
    pub fn tune(mut self, change: impl FnOnce(&mut Tuning)) -> Self {
        change(&mut self.tuning);
        self
    }

    /// That logs its complaints only, into a file ([`Process::log`]): for crowds, of which each request would be a line.
    pub fn quiet(mut self) -> Self {
        self.log = Some("warn");
        self
    }

    /// That logs all that it can, into a file ([`Process::log`]), and the program only.
    pub fn traced(mut self) -> Self {
        self.log = Some("trace");
        self
    }

    /// With any key of any table, as TOML writes it.
    pub fn set(mut self, table: &str, key: &str, value: &str) -> Self {
        self.lines.entry(table.into()).or_default().insert(key.into(), value.into());
        self
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// A file or folder beside the data folder, which goes when that goes.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.home().join(name)
    }

    /// Looks at the data folder.
    pub fn audit(&self) -> Audit {
        audit(&self.data())
    }

    /// What an operator would have written.
    pub fn toml(&self) -> String {
        let mut lines = self.lines.clone();
        let mut endpoints = self.endpoints.clone();
        for name in built_in() {
            endpoints.entry(name).or_insert_with(|| vec![CLOSED.into()]);
        }
        for (name, urls) in &endpoints {
            let table = lines.entry(upstream(name)).or_default();
            table.insert("endpoints".into(), list(urls));
            let hosts: Vec<String> = self.auth_hosts.get(name).into_iter().flatten().cloned().collect();
            table.insert("auth_hosts".into(), list(&hosts));
            // Who looks for something says where.
            table.entry("search".into()).or_insert_with(|| text("none"));
        }
        let table = |(name, keys): (&String, &BTreeMap<String, String>)| {
            let keys: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
            format!("[{name}]\n{keys}\n")
        };
        lines.iter().map(table).collect()
    }

    /// What the program makes of that.
    pub fn config(&self) -> Config {
        let file = File { name: "mirror.toml".into(), text: self.toml() };
        let sources = Sources { file: Some(file), ..Sources::default() };
        load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}\n{}", self.toml())).config
    }

    /// Starts it within the test; it listens when this returns. Must be called inside a tokio runtime.
    pub fn start(self) -> Mirror {
        Mirror::start(self)
    }

    /// Starts the program.
    pub async fn spawn(self) -> Process {
        Process::start(self, |_| ()).await
    }

    /// Starts the program with what `dress` adds to its command.
    pub async fn spawn_with(self, dress: impl FnOnce(&mut Command)) -> Process {
        Process::start(self, dress).await
    }

    /// As [`Builder::spawn_with`], where the program may end before it serves.
    pub async fn try_spawn_with(self, dress: impl FnOnce(&mut Command)) -> Result<Process, ExitStatus> {
        Process::try_start(self, dress).await
    }

    /// What `millpond verify` says of the folder: what it prints, when it does not end with exit code 0.
    pub async fn verify(&self) -> Result<(), String> {
        let file = self.home().join("verify.toml");
        std::fs::write(&file, self.toml()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.arg("verify").arg("--config").arg(&file).env_clear().env("HOME", self.home()).kill_on_drop(true);
        let output = within("the end of an audit", command.output()).await.unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if output.status.code() == Some(0) { Ok(()) } else { Err(format!("{}: {said}", output.status)) }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a file beside the data folder; its path as TOML writes it.
    fn file(&self, name: &str, contents: &str) -> String {
        let path = self.home().join(name);
        std::fs::write(&path, contents).unwrap();
        text(&path.display().to_string())
    }
}

/// Where a mirror is, in process or not, and what its clients ask for.
#[derive(Clone, Debug)]
pub struct Place {
    address: SocketAddr,
    admin: SocketAddr,
    tls: bool,
}

impl Place {
    /// The base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// Where the registry API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A manifest of docker.io.
    pub fn manifest(&self, repository: &str, reference: impl ToString) -> String {
        format!("{}/v2/{repository}/manifests/{}", self.url(), reference.to_string())
    }

    /// A blob of docker.io.
    pub fn blob(&self, repository: &str, digest: impl ToString) -> String {
        format!("{}/v2/{repository}/blobs/{}", self.url(), digest.to_string())
    }

    /// A page of the admin listener, such as `/readyz`.
    pub fn admin(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Waits until no blob is being fetched or committed: a client may have its last byte before the file has its name.
    pub async fn settled(&self) {
        let fetching = async || self.metric("millpond_fills_inflight", &[]).await > 0.0;
        // Nothing tells a stranger when that is; every question waits for its answer, so this is no busy loop.
        within("the end of all fills", async { while fetching().await {} }).await;
    }

    /// The value of a metric, of the line that has all these labels: `metric("millpond_requests_total", &[r#"outcome="hit""#])`.
    /// Several lines are added up; none is 0.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = super::client::get(self.admin("/metrics")).send().await;
        sum(page.text(), name, labels)
    }

    /// As [`Place::metric`], of one that counts.
    pub async fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.metric(name, labels).await.to_string().parse().expect("a counter is a whole number")
    }
}

fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    let matching = lines.filter(|(series, _)| {
        let (named, rest) = series.split_once('{').unwrap_or((series, ""));
        named == name && labels.iter().all(|label| rest.contains(label))
    });
    // Not `sum`, which makes a minus zero of nothing.
    matching.fold(0.0, |sum, (_, value)| sum + value.parse::<f64>().unwrap())
}

/// The names of the built-in table.
fn built_in() -> Vec<String> {
    let file = File { name: "mirror.toml".into(), text: "cache.dir = \"/nowhere\"".into() };
    let loaded = load(&Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    loaded.config.upstreams.upstreams.keys().map(ToString::to_string).collect()
}

fn upstream(name: &str) -> String {
    format!("upstreams.{}", text(name))
}

fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn list(values: &[String]) -> String {
    serde_json::Value::from(values).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_by_name_and_labels() {
        let page = "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total_more 9\nb 1.5\n# EOF\n";
        assert_eq!(sum(page, "a_total", &["x=\"1\""]).to_string(), "7");
        assert_eq!(sum(page, "a_total", &["x=\"1\"", "y=\"3\""]).to_string(), "4");
        assert_eq!(sum(page, "b", &[]).to_string(), "1.5");
        assert_eq!(sum(page, "c", &[]).to_string(), "0");
    }
}
