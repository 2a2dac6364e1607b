//! `millpond doctor`: from the command line to what is examined.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use millpond::config::Config;
use millpond::doctor::{self, Client, Examination, Subject};
use millpond::observe::Metrics;
use millpond::oci::{Name, Registry, Tag};
use millpond::upstream::Upstreams;

use super::{Chosen, Exit, complain, load_chosen};

/// `millpond doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    chosen: Chosen,
    /// Look at this client, found or not: docker, containerd, podman, buildkit, k3s, rke2 [default: all that are found]
    #[arg(long = "client", value_name = "NAME", value_parser = client)]
    clients: Vec<Client>,
    /// What clients call the mirror [default: the configuration's address, as this machine reaches it]
    #[arg(long, value_name = "HOST[:PORT]", value_parser = address)]
    address: Option<Registry>,
    /// The small image of Docker Hub to try
    #[arg(long, value_name = "NAME[:TAG]", default_value = "library/hello-world:latest", value_parser = image)]
    image: (Name, Tag),
    /// Where the clients' files are
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

fn client(text: &str) -> Result<Client, String> {
    let names = || Client::ALL.map(Client::name).join(", ");
    Client::named(text).ok_or_else(|| format!("there are {}", names()))
}

fn address(text: &str) -> Result<Registry, String> {
    Registry::parse(text).map_err(|error| error.to_string())
}

fn image(text: &str) -> Result<(Name, Tag), String> {
    let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
    let name = Name::parse(name).and_then(|name| name.in_library_of(&Registry::docker_hub())).map_err(|error| error.to_string())?;
    Ok((name, Tag::parse(tag).map_err(|error| error.to_string())?))
}

/// Examines and prints. Exit code 0 when all is well, 1 when something is wrong.
pub(crate) fn examine(args: Doctor) -> Exit {
    let Doctor { chosen, clients, address, image, root } = args;
    let config = match load_chosen(chosen, None) {
        Ok(loaded) => loaded.config,
        Err(mistakes) => return complain(&mistakes),
    };
    let upstreams = match Upstreams::build(&config.upstreams, Metrics::new()) {
        Ok(upstreams) => upstreams,
        Err(error) => return complain(&format_args!("{error}\n")),
    };
    let subject = subject(&config, address.as_ref());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format_args!("{error}\n"));
            return Exit::Failed;
        }
    };
    let findings = runtime.block_on(doctor::examine(&subject, &Examination { clients, root, image }, &upstreams));
    let _ = io::stdout().write_all(findings.text.as_bytes());
    if findings.wrong == 0 { Exit::Clean } else { Exit::Findings }
}

fn subject(config: &Config, address: Option<&Registry>) -> Subject {
    let listen = config.server.listen;
    let (host, port) = address.map_or_else(|| (Subject::host_of(listen), listen.port()), |address| split(address, listen));
    Subject {
        listen,
        tls: config.server.tls.is_some(),
        host,
        port,
        secret: config.access.secret_paths.first().map(|secret| secret.0.clone()),
        has_users: config.access.htpasswd.is_some(),
        offline: config.pull.offline,
        data: config.cache.dir.clone(),
    }
}

fn split(address: &Registry, listen: SocketAddr) -> (String, u16) {
    let text = address.as_str();
    let with_port = text.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    with_port.unwrap_or_else(|| (text.to_owned(), listen.port()))
}
