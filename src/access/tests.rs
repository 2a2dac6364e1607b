//! The whole decision, against real files and real bcrypt.

use super::*;
use std::io::Write;

const COST: u32 = 4;

fn users(lines: &[(&str, &str)]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write(&mut file, lines);
    file
}

fn write(file: &mut tempfile::NamedTempFile, lines: &[(&str, &str)]) {
    file.as_file().set_len(0).unwrap();
    std::io::Seek::rewind(file).unwrap();
    for (user, password) in lines {
        writeln!(file, "{user}:{}", bcrypt::hash(password, COST).unwrap()).unwrap();
    }
}

fn login(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

const HERE: &str = "192.0.2.7";
const ELSEWHERE: &str = "198.51.100.1";
const MEMBER: Verdict = Verdict::Admitted { authenticated: false };
const KNOWN: Verdict = Verdict::Admitted { authenticated: true };

fn asker(ip: &str) -> Asker<'static> {
    Asker { ip: ip.parse().unwrap(), certificate: false, secret_path: false, authorization: None, host: None, agent: None }
}

fn config(networks: &[&str], htpasswd: Option<&std::path::Path>, secrets: &[&str]) -> Config {
    Config {
        networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        htpasswd: htpasswd.map(Into::into),
        secret_paths: secrets.iter().map(|secret| Secret((*secret).to_owned())).collect(),
        login_hosts: vec!["login.example".to_owned(), "both.example:5000".to_owned()],
    }
}

#[tokio::test]
async fn the_table() {
    let file = users(&[("ann", "secret")]);
    let path = Some(file.path());
    let right = login("ann", "secret");
    let wrong = login("ann", "Secret");
    let with = |asker: Asker<'static>, authorization: &'static str| Asker { authorization: Some(authorization), ..asker };
    let right: &'static str = right.leak();
    let wrong: &'static str = wrong.leak();
    let certificate = Asker { certificate: true, ..asker(ELSEWHERE) };
    let secret = Asker { secret_path: true, ..asker(ELSEWHERE) };

    let open = Access::build(&config(&[], None, &[]), false).unwrap();
    let ca = Access::build(&config(&[], None, &[]), true).unwrap();
    let lan = Access::build(&config(&["192.0.2.0/24", "2001:db8::/32"], None, &[]), false).unwrap();
    let mapped = Access::build(&config(&["::ffff:192.0.2.0/120"], None, &[]), false).unwrap();
    let path_only = Access::build(&config(&[], None, &["0123456789abcdef"]), false).unwrap();
    let passwords = Access::build(&config(&[], path, &[]), false).unwrap();
    let both = Access::build(&config(&["192.0.2.0/24"], path, &[]), false).unwrap();

    for (what, access, asker, verdict) in [
        ("nothing configured", &open, asker(ELSEWHERE), MEMBER),
        ("nothing configured, any login", &open, with(asker(ELSEWHERE), right), MEMBER),
        ("a CA shuts others out", &ca, asker(HERE), Verdict::Refused),
        ("a certificate", &ca, certificate, KNOWN),
        ("in the network", &lan, asker(HERE), MEMBER),
        ("in the network, mapped", &lan, asker("::ffff:192.0.2.7"), MEMBER),
        ("in the IPv6 network", &lan, asker("2001:db8::1"), MEMBER),
        ("outside", &lan, asker(ELSEWHERE), Verdict::Refused),
        ("outside, a login nobody asked for", &lan, with(asker(ELSEWHERE), right), Verdict::Refused),
        ("a network written as IPv6", &mapped, asker(HERE), MEMBER),
        ("outside of it", &mapped, asker(ELSEWHERE), Verdict::Refused),
        ("no secret", &path_only, asker(HERE), Verdict::Refused),
        ("a secret", &path_only, secret, KNOWN),
        ("no password", &passwords, asker(HERE), Verdict::Challenge),
        ("right password", &passwords, with(asker(HERE), right), KNOWN),
        ("wrong password", &passwords, with(asker(HERE), wrong), Verdict::Challenge),
        ("no user and no password", &both, with(asker(HERE), "Basic Og=="), MEMBER),
        ("a login host", &both, Asker { host: Some("Login.example:5000"), ..asker(HERE) }, Verdict::Challenge),
        ("a login host with its port", &both, Asker { host: Some("both.example:5000"), ..asker(HERE) }, Verdict::Challenge),
        ("another port", &both, Asker { host: Some("both.example"), ..asker(HERE) }, MEMBER),
        ("right password at a login host", &both, Asker { host: Some("login.example"), ..with(asker(ELSEWHERE), right) }, KNOWN),
        ("a login host and no passwords", &lan, Asker { host: Some("login.example"), ..asker(HERE) }, MEMBER),
        ("no Basic", &passwords, with(asker(HERE), "Bearer abc"), Verdict::Challenge),
        ("no base64", &passwords, with(asker(HERE), "Basic %%%"), Verdict::Challenge),
        ("no colon", &passwords, with(asker(HERE), "Basic YW5u"), Verdict::Challenge),
        ("a member is not challenged", &both, asker(HERE), MEMBER),
        ("a member with a wrong password stays a member", &both, with(asker(HERE), wrong), MEMBER),
        ("a member with the right one is known", &both, with(asker(HERE), right), KNOWN),
        ("a stranger is challenged", &both, asker(ELSEWHERE), Verdict::Challenge),
    ] {
        assert_eq!(access.judge(asker).await, verdict, "{what}");
    }
}

#[test]
fn basic_is_read_as_the_rfc_writes_it() {
    let read = |header: &str| basic(header);
    assert_eq!(read(&login("ann", "a:b")), Some(("ann".into(), b"a:b".to_vec())), "a password may have colons");
    assert_eq!(read("bAsIc  YW5uOg=="), Some(("ann".into(), Vec::new())), "any case, an empty password");
    for header in ["", "Basic", "Basic ", "YW5uOg==", "Basic YW5uOg", "Basic /zo6", "Digest YW5uOg=="] {
        assert_eq!(read(header), None, "{header:?}");
    }
    assert_eq!(read(&login("ann", &"a".repeat(MAX_AUTHORIZATION))), None, "too long to be one");
}

#[test]
fn a_secret_path_is_split_off_once() {
    let access = Access::build(&config(&[], None, &["0123456789abcdef", "another-one"]), false).unwrap();
    for (path, split) in [
        ("/0123456789abcdef/v2/", (true, "/v2/")),
        ("/another-one/docker.io/v2/library/alpine/tags/list", (true, "/docker.io/v2/library/alpine/tags/list")),
        ("/another-one", (true, "/")),
        ("/another-one/", (true, "/")),
        ("/another-one//another-one/v2/", (true, "//another-one/v2/")),
        ("/v2/", (false, "/v2/")),
        ("/0123456789abcdeF/v2/", (false, "/0123456789abcdeF/v2/")),
        ("/0123456789abcde/v2/", (false, "/0123456789abcde/v2/")),
        ("/%30123456789abcdef/v2/", (false, "/%30123456789abcdef/v2/")),
        ("//another-one/v2/", (false, "//another-one/v2/")),
        ("another-one/v2/", (false, "another-one/v2/")),
        ("*", (false, "*")),
        ("/", (false, "/")),
        ("", (false, "")),
    ] {
        assert_eq!(access.strip_secret(path), split, "{path}");
    }
    let none = Access::build(&config(&[], None, &[]), false).unwrap();
    assert_eq!(none.strip_secret("//v2/"), (false, "//v2/"));
}

#[test]
fn a_secret_that_is_none_is_told_without_it() {
    for secret in ["", "v2", "short", "docker.io", "with/slash-in-it", "with space in it", "käsekuchen-rezept", "percent%41percent"] {
        let error = Access::build(&config(&[], None, &["0123456789abcdef", secret]), false).err().expect(secret);
        let text = error.to_string();
        assert!(text.starts_with("access.secret_paths, entry 2: "), "{text}");
        assert!(secret.is_empty() || !text.contains(secret) || secret == "short", "{text}");
    }
}

#[tokio::test]
async fn a_reload_takes_the_new_list_or_keeps_the_old() {
    let mut file = users(&[("ann", "old")]);
    let access = Access::build(&config(&[], Some(file.path()), &[]), false).unwrap();
    let ask = |password: &str| {
        let login = login("ann", password);
        let access = &access;
        async move { access.judge(Asker { authorization: Some(&login), ..asker(HERE) }).await }
    };
    assert_eq!(ask("old").await, KNOWN);

    file.write_all(b"not a user\n").unwrap();
    let error = access.reload().unwrap_err();
    assert_eq!(error.to_string(), format!("{}:2: expected user:hash", file.path().display()));
    assert_eq!(ask("old").await, KNOWN, "a mistake locks nobody out");

    write(&mut file, &[("ann", "new")]);
    access.reload().unwrap();
    assert_eq!(ask("old").await, Verdict::Challenge, "what was remembered of the old list is gone");
    assert_eq!(ask("new").await, KNOWN);

    write(&mut file, &[]);
    access.reload().unwrap();
    assert_eq!(ask("new").await, Verdict::Challenge, "an empty list lets nobody in");
}

#[test]
fn a_missing_file_is_named() {
    let error = Access::build(&config(&[], Some("/nonexistent/users".as_ref()), &[]), false).err().unwrap();
    assert!(error.to_string().starts_with("/nonexistent/users: No such file"), "{error}");
}

#[test]
fn nobody_is_asked_for_a_password_who_may_send_that_of_docker_hub() {
    let file = users(&[("ann", "secret")]);
    let access = Access::build(&config(&["192.0.2.0/24"], Some(file.path()), &[]), false).unwrap();
    let classic =
        "docker/28.5.2 go/go1.25.3 git-commit/89c5e8f kernel/6.1 os/linux arch/amd64 UpstreamClient(Docker-Client/28.5.2 \\(linux\\))";
    for agent in [None, Some(classic), Some("docker/1.13.1 go/go1.7"), Some("docker/20.10.24+dfsg1 go/go1.19")] {
        assert!(!access.may_challenge(agent), "{agent:?}");
    }
    for agent in [
        "containers/5.24.1 (github.com/containers/image)",
        "skopeo/1.9.3",
        "containerd/v2.0.0",
        "docker/29.0.0 containerd-client/v2.1.5+unknown",
    ] {
        assert!(access.may_challenge(Some(agent)), "{agent}");
    }
    let open = Access::build(&config(&[], None, &[]), false).unwrap();
    assert!(!open.may_challenge(Some("skopeo/1.9.3")), "no password would help");
}
