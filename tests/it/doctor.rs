//! The doctor, in front of mirrors that work and mirrors that do not: the lines for each client, and one sentence for each thing that is
//! wrong. The real program; the clients' files are in a folder of the test.

use std::fs;
use std::path::Path;

use tokio::net::TcpListener;
use tokio::process::Command;

use crate::support::mirror::{Builder, Mirror};
use crate::support::patience::within;
use crate::support::registry::{self, Fault, Image, Kind, Port, Registry};
use crate::support::scene::quick;

const IMAGE: &str = "library/hello-world";
const ALL: [&str; 6] = ["docker", "containerd", "podman", "buildkit", "k3s", "rke2"];

/// The exit code and what was printed.
async fn doctor(settings: &Builder, root: &Path, more: &[&str]) -> (i32, String) {
    let file = settings.beside("doctor.toml");
    fs::write(&file, settings.toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.arg("doctor").arg("--config").arg(&file).arg("--root").arg(root).args(more);
    command.env_clear().env("HOME", settings.beside("")).kill_on_drop(true);
    let output = within("the doctor", command.output()).await.unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), said)
}

/// The settings of a mirror with the address that it has.
fn of(mirror: &Mirror) -> Builder {
    mirror.settings().clone().set("server", "listen", &format!("\"{}\"", mirror.address()))
}

async fn hub() -> Registry {
    let hub = registry::Builder::hub().own_addresses().start().await;
    hub.image(IMAGE, "latest", Image::layers([1000]));
    hub
}

fn every_client() -> Vec<&'static str> {
    ALL.iter().flat_map(|name| ["--client", name]).collect()
}

/// The lines that are to be written into a file, without their margin.
fn lines_for(said: &str, file: &str) -> String {
    let after = said.split_once(&format!("write into /{file}:\n")).unwrap_or_else(|| panic!("{file} is missing from\n{said}")).1;
    after.lines().map_while(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn what_it_says_makes_every_client_work() {
    let (hub, root) = (hub().await, tempfile::tempdir().unwrap());
    let mirror = Builder::new().upstream("docker.io", &hub).start();
    let (code, said) = doctor(&of(&mirror), root.path(), &every_client()).await;
    assert_eq!(code, 0, "{said}\n{}", hub.story());
    assert_eq!(said.matches("works: library/hello-world:latest came through it").count(), ALL.len(), "{said}");
    let address = mirror.address().to_string();
    for (file, wanted) in [
        ("etc/docker/daemon.json", format!("{{ \"registry-mirrors\": [\"http://{address}\"] }}\n")),
        ("etc/containerd/certs.d/docker.io/hosts.toml", format!("[host.\"http://{address}\"]\n")),
        ("etc/containers/registries.conf.d/50-millpond.conf", format!("location = \"{address}/docker.io\"\ninsecure = true\n")),
        ("etc/buildkit/buildkitd.toml", format!("mirrors = [\"{address}\"]\n")),
        ("etc/rancher/k3s/registries.yaml", format!("endpoint: [\"http://{address}\"]\n")),
        ("etc/rancher/rke2/registries.yaml", format!("endpoint: [\"http://{address}\"]\n")),
    ] {
        let lines = lines_for(&said, file);
        assert!(lines.contains(&wanted), "{file}: {lines}");
        let path = root.path().join(file);
        assert!(!path.exists(), "it changes nothing");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, lines).unwrap();
    }
    let (code, said) = doctor(&of(&mirror), root.path(), &every_client()).await;
    assert_eq!((code, said.matches("its settings name this mirror").count()), (0, ALL.len()), "{said}");
    // Another port is another mirror.
    let other = of(&mirror).set("server", "listen", "\"127.0.0.1:1\"");
    let (code, said) = doctor(&other, root.path(), &every_client()).await;
    assert_eq!((code, said.matches("do not name this mirror").count()), (1, ALL.len()), "{said}");
}

#[tokio::test]
async fn clients_are_found_by_their_programs() {
    let (hub, root) = (hub().await, tempfile::tempdir().unwrap());
    let mirror = Builder::new().upstream("docker.io", &hub).start();
    let (code, said) = doctor(&of(&mirror), root.path(), &[]).await;
    assert!(code == 0 && said.contains("no client was found"), "{said}");
    fs::create_dir_all(root.path().join("usr/bin")).unwrap();
    for program in ["dockerd", "skopeo"] {
        fs::write(root.path().join("usr/bin").join(program), "").unwrap();
    }
    let (code, said) = doctor(&of(&mirror), root.path(), &[]).await;
    assert_eq!(code, 0, "{said}");
    for (name, is_there) in [("\ndocker\n", true), ("\npodman\n", true), ("\ncontainerd\n", false), ("\nk3s\n", false)] {
        assert_eq!(said.contains(name), is_there, "{name}: {said}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_sentence() {
    let (hub, root) = (hub().await, tempfile::tempdir().unwrap());
    let limited = |builder: Builder| builder.upstream("docker.io", &hub).tune(quick);
    let one = ["--client", "docker"];

    // Nobody listens.
    let settings = limited(Builder::new()).set("server", "listen", "\"127.0.0.1:1\"");
    let says = async |settings: &Builder, more: &[&str], sentence: &str| {
        let (code, said) = doctor(settings, root.path(), more).await;
        let wrong = said.lines().filter(|line| line.contains("WRONG")).collect::<Vec<_>>();
        assert!(code == 1 && wrong.len() == 1 && wrong[0].contains(sentence), "{sentence}: {code}\n{said}");
    };
    says(&settings, &one, "nothing listens at 127.0.0.1:1: millpond is not running there").await;

    // Another program has the port.
    let other = hub.address(Port::Registry).to_string();
    says(&settings.clone().set("server", "listen", &format!("\"{other}\"")), &one, "something else than millpond answers").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let hang_up = tokio::spawn(async move { while silent.accept().await.is_ok() {} });
    says(&settings.clone().set("server", "listen", &format!("\"{at}\"")), &one, "does not speak as millpond is configured to").await;
    hang_up.abort();

    // TLS that nobody trusts.
    let mirror = limited(Builder::new()).tls().start();
    says(&of(&mirror), &one, "if its certificate is not trusted").await;

    // A password, an address that may not.
    let mirror = limited(Builder::new()).user("bob", "guess").start();
    says(&of(&mirror), &one, "which a Docker daemon cannot send to a mirror").await;
    says(&of(&mirror), &["--client", "podman"], "log in to").await;
    let mirror = limited(Builder::new()).set("access", "networks", "[\"192.0.2.0/24\"]").start();
    says(&of(&mirror), &one, "does not serve this machine's address").await;

    // Not there, offline.
    let mirror = limited(Builder::new()).start();
    says(&of(&mirror), &["--client", "docker", "--image", "nothing"], "does not give library/nothing:latest").await;
    let mirror = limited(Builder::new()).offline().start();
    says(&of(&mirror), &one, "cache.offline").await;
}

#[tokio::test]
async fn why_the_registry_cannot_be_reached_is_said() {
    let (hub, root) = (hub().await, tempfile::tempdir().unwrap());
    let says = async |settings: Builder, sentences: &[&str]| {
        let mirror = settings.tune(quick).start();
        let (code, said) = doctor(&of(&mirror), root.path(), &["--client", "containerd"]).await;
        let is_said = sentences.iter().any(|sentence| said.contains(sentence));
        assert!(code == 1 && said.contains("the mirror runs, but the registry does not give") && is_said, "{sentences:?}: {code}\n{said}");
    };
    says(Builder::new().endpoint("docker.io", "http://127.0.0.1:1"), &["no connection"]).await;
    says(Builder::new().endpoint("docker.io", "http://no-such-host.invalid"), &["its name cannot be resolved", "did not connect"]).await;
    let tls = registry::Builder::plain().tls().start().await;
    says(Builder::new().endpoint("docker.io", &tls.url()), &["its certificate is not trusted"]).await;
    hub.on(Kind::Manifest, Fault::too_many(Some(60)));
    says(Builder::new().upstream("docker.io", &hub), &["limits the number of requests"]).await;
}

#[tokio::test]
async fn a_secret_path_stands_in_the_lines_and_is_gone_by() {
    let (hub, root) = (hub().await, tempfile::tempdir().unwrap());
    let mirror = Builder::new().upstream("docker.io", &hub).secret_path("0123456789abcdef").start();
    let (code, said) = doctor(&of(&mirror), root.path(), &["--client", "docker", "--client", "containerd"]).await;
    assert!(code == 0 && said.contains(&format!("\"http://{}/0123456789abcdef\"", mirror.address())), "{said}");
    let (code, said) = doctor(&of(&mirror), root.path(), &["--client", "podman"]).await;
    assert!(code == 1 && said.contains("it takes no secret path"), "{said}");
}

#[tokio::test]
async fn a_wrong_command_line_is_64() {
    let root = tempfile::tempdir().unwrap();
    for more in [&["--client", "lynx"][..], &["--image", "UPPER"], &["--address", "a b"], &["--nothing"]] {
        assert_eq!(doctor(&Builder::new(), root.path(), more).await.0, 64, "{more:?}");
    }
}
