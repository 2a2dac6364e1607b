//! The configuration and the command line as a script sees them: the real program, its output and its exit codes.
//! What each key may be is tested beside the code.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

/// A folder to run the program in, so that nothing of this machine is found by the search for a file.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn with(self, name: &str, text: &str) -> Self {
        fs::write(self.path().join(name), text).expect("a file");
        self
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn millpond(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(args).current_dir(self.path()).env_clear().env("HOME", self.path()).envs(env.iter().copied());
        command.output().expect("the program starts")
    }
}

#[track_caller]
fn ends(output: &Output, code: i32) -> (String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).expect("text"));
    assert_eq!(output.status.code(), Some(code), "stdout:\n{out}\nstderr:\n{err}");
    (out, err)
}

#[test]
fn a_wrong_command_line_exits_64_and_help_exits_0() {
    let place = Place::new();
    for args in [
        &[][..],
        &["serv"],
        &["serve", "--prot"],
        &["check", "--config"],
        &["serve", "--log", "xml"],
        &["check", "--log", "json"],
        &["check", "x"],
    ] {
        let (out, err) = ends(&place.millpond(args, &[]), 64);
        assert!(out.is_empty() && err.contains("--help"), "{args:?}: {out}{err}");
    }
    for args in [&["--help"][..], &["-h"], &["help"], &["serve", "--help"], &["check", "--help"]] {
        let (out, err) = ends(&place.millpond(args, &[]), 0);
        assert!(out.contains("Usage: millpond") && err.is_empty(), "{args:?}: {out}{err}");
    }
    assert_eq!(ends(&place.millpond(&["--version"], &[]), 0).0, concat!("millpond ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn check_prints_what_is_in_effect_and_where_it_came_from() {
    let place = Place::new().with("mirror.toml", "[cache]\nmemory = '1MiB'\n[access]\nsecret_paths = ['hunter2-hunter2-hunter2']");
    let env = [("MILLPOND__CACHE__MAX_SIZE", "20GiB"), ("MILLPOND_PORT", "tcp://10.0.0.1:5000")];
    let (out, err) = ends(&place.millpond(&["check"], &env), 0);
    assert_eq!(err, "");
    let line = |key: &str, value: &str, origin: &str| {
        let found = out.lines().find(|line| line.starts_with(&format!("{key} ="))).unwrap_or_else(|| panic!("no {key} in\n{out}"));
        assert_eq!(found.split_once(" # "), Some((format!("{:<56}", format!("{key} = {value}")).as_str(), origin)), "{found:?}");
    };
    line("memory", "\"1MiB\"", "mirror.toml");
    line("max_size", "\"20GiB\"", "environment MILLPOND__CACHE__MAX_SIZE");
    line("tag_ttl", "\"1m\"", "default");
    line("secret_paths", "[\"***\"]", "mirror.toml");
    let docker = out.split_once("[upstreams.\"docker.io\"]").expect("Docker Hub is built in").1;
    let hosts = docker.lines().find(|line| line.starts_with("auth_hosts")).expect("every key is shown");
    assert!(hosts.starts_with("auth_hosts = [\"auth.docker.io\"]") && hosts.ends_with("# built in"), "{hosts}");
    assert!(!out.contains("hunter2"), "{out}");
    assert!(!place.path().join(".cache").exists(), "check makes no data folder");
}

#[test]
fn the_file_is_found_where_it_is_said_to_be() {
    let place = Place::new().with("mirror.toml", "log = 'text'").with("env.toml", "log = 'json'").with("flag.toml", "log = 'auto'");
    let first_lines = |args: &[&str], env: &[(&str, &str)]| {
        let (out, _) = ends(&place.millpond(args, env), 0);
        out.lines().take(2).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(first_lines(&["check"], &[]), ["# mirror.toml", "log = \"text\" # mirror.toml"]);
    assert_eq!(first_lines(&["check"], &[("MILLPOND_CONFIG", "env.toml")]), ["# env.toml", "log = \"json\" # env.toml"]);
    let flag = ["check", "--config", "flag.toml"];
    assert_eq!(first_lines(&flag, &[("MILLPOND_CONFIG", "env.toml")]), ["# flag.toml", "log = \"auto\" # flag.toml"]);

    let (_, err) = ends(&place.millpond(&["check", "--config", "none.toml"], &[]), 64);
    assert_eq!(err, "flag --config: \"none.toml\" cannot be read: No such file or directory (os error 2)\n");
    let (_, err) = ends(&place.millpond(&["serve"], &[("MILLPOND_CONFIG", "none.toml")]), 64);
    assert_eq!(err, "environment MILLPOND_CONFIG: \"none.toml\" cannot be read: No such file or directory (os error 2)\n");
}

#[test]
fn a_wrong_configuration_exits_64_with_every_mistake_on_a_line() {
    let text = "[cache]\nmax_size = '50GB5'\nmaxstale = '1d'\n[profile.prod.server]\nlisten = 'here'";
    let place = Place::new().with("mirror.toml", text);
    for command in ["check", "serve"] {
        let (out, err) = ends(&place.millpond(&[command, "--profile", "prod"], &[("MILLPOND__CACHE__TAG_TTL", "soon")]), 64);
        assert_eq!(out, "");
        let mut lines: Vec<&str> = err.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "environment MILLPOND__CACHE__TAG_TTL: cache.tag_ttl: \"soon\" is not a duration; write for example 90s, 1m or 30d",
                "mirror.toml [profile.prod]: server.listen: \"here\" is not an IP address and a port; write for example 0.0.0.0:5000 or [::]:5000",
                "mirror.toml: cache.max_size: \"50GB5\" is not a size; write for example 50GiB or 80%",
                "mirror.toml: cache.maxstale: is not a key; did you mean max_stale?",
            ]
        );
    }
    assert!(!place.path().join(".cache").exists(), "nothing was touched");
}

#[test]
fn the_reference_file_checks() {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/mirror.toml");
    let (out, _) = ends(&Place::new().millpond(&["check", "--config", reference], &[]), 0);
    assert!(out.starts_with(&format!("# {reference}\n")), "{out}");
}

#[test]
fn a_wrong_rust_log_exits_64() {
    let (_, err) = ends(&Place::new().millpond(&["serve"], &[("RUST_LOG", "millpond=loud")]), 64);
    assert!(err.starts_with("environment RUST_LOG: ") && err.lines().count() == 1, "{err}");
}

#[test]
fn a_start_that_fails_exits_70_and_says_so_in_json() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("bound").to_string();
    let env = [("MILLPOND__SERVER__LISTEN", listen.as_str()), ("MILLPOND__SERVER__ADMIN", "127.0.0.1:0")];
    let (out, err) = ends(&Place::new().millpond(&["serve"], &env), 70);
    assert_eq!(out, "");
    assert!(err.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "no terminal, so JSON: {err}");
    let (_, err) = ends(&Place::new().millpond(&["serve", "--log", "text"], &env), 70);
    assert!(err.lines().all(|line| !line.starts_with('{')) && err.contains("ERROR"), "{err}");
}
