//! The configuration as a whole: sources in, a configuration or all mistakes out.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::*;
use crate::access::Secret;
use crate::cache::MaxSize;
use crate::upstream::{Credentials, Private, Settings};

const REFERENCE: &str = include_str!("../../mirror.toml");

fn environment(env: &[(&str, &str)]) -> std::collections::BTreeMap<String, OsString> {
    env.iter().chain(&[("HOME", "/home/someone")]).map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect()
}

fn sources(text: &str, env: &[(&str, &str)]) -> Sources {
    let file = File { name: "mirror.toml".into(), text: text.into() };
    Sources { file: Some(file), env: environment(env), ..Sources::default() }
}

fn loaded(text: &str, env: &[(&str, &str)]) -> Loaded {
    load(&sources(text, env)).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn mistakes(sources: &Sources) -> Vec<String> {
    let mistakes = load(sources).expect_err("mistakes");
    mistakes.0.iter().map(ToString::to_string).collect()
}

fn upstream<'c>(config: &'c Config, name: &str) -> &'c Settings {
    &config.upstreams.upstreams[&Registry::parse(name).expect("a name")]
}

fn origin_of(loaded: &Loaded, section: &str, key: &str) -> String {
    let line = loaded.lines.iter().find(|line| line.section == section && line.key == key);
    line.unwrap_or_else(|| panic!("no {key} in [{section}]")).origin.clone()
}

/// The lines of the reference that are examples, without their `#`, each under its own table.
fn examples() -> String {
    let is_example = |line: &&str| line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c != ' '));
    let lines = REFERENCE.lines().filter(|line| line.starts_with('[') || is_example(line));
    lines.map(|line| line.trim_start_matches('#')).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_reference_is_the_defaults() {
    let reference = loaded(REFERENCE, &[]);
    let nothing = load(&Sources { env: environment(&[]), ..Sources::default() }).expect("no file is no mistake");
    assert_eq!(format!("{:#?}", reference.config), format!("{:#?}", nothing.config));

    // Every key that has a value without being written is written in the reference; its upstream stands for all of them.
    let stands_for_another = |line: &Line| line.section.starts_with("upstreams.") && !line.section.contains("docker.io");
    for line in nothing.lines.iter().filter(|line| line.key != "dir" && !stands_for_another(line)) {
        assert_eq!(origin_of(&reference, &line.section, &line.key), "mirror.toml", "{} of [{}]", line.key, line.section);
    }
}

#[test]
fn every_key_without_a_default_has_an_example_that_works() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = examples().replace("/etc/millpond", folder.path().to_str().expect("text"));
    for named in text.split('"').filter(|part| part.starts_with('/') && Path::new(part).starts_with(folder.path())) {
        fs::write(named, "").expect("a stub");
    }
    let mut sources = sources(&text, &[]);
    let loaded = load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"));
    sources.profile = Some("laptop".into());
    let laptop = load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"));

    let mut reader = read(&sources);
    everything(&mut reader.root(), crate::upstream::proxy::Environment::default());
    // An example at one upstream is one for all.
    let of_any_upstream = |key: String| match key.rsplit_once('.') {
        Some((table, key)) if table.starts_with("upstreams.") => format!("upstreams.*.{key}"),
        _ => key,
    };
    let keys: BTreeSet<String> = reader.keys().into_iter().map(of_any_upstream).collect();
    let shown: BTreeSet<String> = loaded.lines.iter().map(|line| of_any_upstream(section::join(&line.section, &line.key))).collect();
    assert_eq!(keys.difference(&shown).collect::<Vec<_>>(), Vec::<&String>::new(), "keys without an example");

    let config = &loaded.config;
    assert_eq!(upstream(config, "registry.lan:5000").endpoints[0].as_str(), "http://registry.lan:5000/");
    assert_eq!(upstream(config, "registry.example.com").endpoints[0].as_str(), "https://registry.example.com/");
    assert_eq!(upstream(config, "docker.io").endpoints.len(), 2);
    assert_eq!(laptop.config.cache.max_size, MaxSize::Bytes(10 << 30));
    assert_eq!(laptop.config.server.listen.to_string(), "127.0.0.1:5000");
}

#[test]
fn every_bad_value_is_told_with_its_file_and_key() {
    let table = [
        ("log = 'xml'", "log: \"xml\" is none of \"auto\", \"text\" and \"json\""),
        ("server = 5000", "server: is a number where a table belongs"),
        ("[server]\nlisten = 5000", "server.listen: is a number; put it in quotes, with its unit if it has one"),
        (
            "[server]\nlisten = ':5000'",
            "server.listen: \":5000\" is not an IP address and a port; write for example 0.0.0.0:5000 or [::]:5000",
        ),
        (
            "[server]\nlisten = '[::]:5001'",
            "server.listen: server.listen ([::]:5001) and server.admin (127.0.0.1:5001) take the same port; give each its own",
        ),
        ("[server]\ndrain = '2h'", "server.drain: \"2h\" is longer than 1h"),
        ("[server]\ntls = { cert = '/dev/null' }", "server.tls.cert: needs server.tls.key beside it"),
        ("[server]\ntls = { key = '/dev/null' }", "server.tls.key: needs server.tls.cert beside it"),
        ("[server]\ntls = { client_ca = '/dev/null' }", "server.tls.client_ca: needs server.tls.cert beside it"),
        ("[access]\nhtpasswd = '/no/file'", "access.htpasswd: \"/no/file\" cannot be read: No such file or directory (os error 2)"),
        (
            "[access]\nnetworks = ['::1', 'lan']",
            "access.networks: item 2: \"lan\" is not a network; write for example 10.0.0.0/8 or 192.168.1.7",
        ),
        ("[access]\nnetworks = [7]", "access.networks: holds a number; put it in quotes"),
        ("[access]\nnetworks = true", "access.networks: is true or false where a list belongs"),
        (
            "[access]\nsecret_paths = ['short-secret']",
            "access.secret_paths: item 1: must have 16 to 128 characters; make one with: openssl rand -hex 16",
        ),
        ("[cache]\nmax_size = '50GB5'", "cache.max_size: \"50GB5\" is not a size; write for example 50GiB or 80%"),
        ("[cache]\ntag_ttl = 'soon'", "cache.tag_ttl: \"soon\" is not a duration; write for example 90s, 1m or 30d"),
        ("[cache]\nmax_stale = '11y'", "cache.max_stale: \"11y\" is longer than 10years"),
        ("[cache]\nmemory = '10%'", "cache.memory: \"10%\" is not a size; write for example 64MiB"),
        ("[cache]\noffline = 'maybe'", "cache.offline: \"maybe\" is neither true nor false"),
        ("[cache]\noffline = 1", "cache.offline: is a number; write true or false"),
        ("[cache]\ndir = '/dev/null'", "cache.dir: \"/dev/null\" is a file, not a folder"),
        (
            "[upstreams.'a b']",
            "upstreams.\"a b\": a registry is a host name with an optional port, such as docker.io or registry.example:5000",
        ),
        ("[upstreams.a]\nendpoints = []", "upstreams.a.endpoints: is empty; write for example [\"https://a\"]"),
        ("[upstreams.a]\nendpoints = ['a']", "upstreams.a.endpoints: item 1: \"a\" does not begin with https:// or http://"),
        ("[upstreams.a]\nusername = 'x'", "upstreams.a.username: needs upstreams.a.password_file beside it"),
        ("[upstreams.a]\npassword_file = '/dev/null'", "upstreams.a.password_file: needs upstreams.a.username beside it"),
        ("[upstreams.a]\nprivate = 'yes'", "upstreams.a.private: \"yes\" is neither \"authenticated\" nor \"anyone\""),
        (
            "[upstreams.a]\nauth_hosts = ['https://x']",
            "upstreams.a.auth_hosts: item 1: \"https://x\" is not a host; write for example auth.docker.io",
        ),
        ("[upstreams.a]\nca_file = '/no/file'", "upstreams.a.ca_file: \"/no/file\" cannot be read: No such file or directory (os error 2)"),
        ("[upstreams.a]\nclient_cert = '/dev/null'", "upstreams.a.client_cert: needs upstreams.a.client_key beside it"),
        (
            "[upstreams.a]\nusername = 'x'\ndocker_config = '/dev/null'",
            "upstreams.a.username: cannot stand beside docker_config, which has the login",
        ),
        (
            "[upstreams.a]\nproxy = 'ftp://u:hunter2@p'",
            "upstreams.a.proxy: this address is a kind of proxy that millpond does not speak with; write for example http://proxy.lan:3128, socks5://proxy.lan:1080 or socks5h://proxy.lan:1080",
        ),
        ("[upstreams.a]\nconnections = 1", "upstreams.a.connections: is no number from 2 to 1024"),
        ("[upstreams.a]\nconnections = 'many'", "upstreams.a.connections: is no number from 2 to 1024"),
        (
            "[upstreams.a]\nallow = ['a', 'docker.io/A']",
            "upstreams.a.allow: item 2: \"docker.io/A\" is not a pattern of repositories, which are of lower case letters, digits, ., _, - and /; write for example library/*, team/** or org/app",
        ),
        ("[upstreams.A]\n[upstreams.a]", "upstreams.a: stands here twice, in upper and in lower case"),
        ("profile = 1", "profile: is not a table"),
        ("[cache]\ndir = /var", "line 2, column 7: "),
    ];
    for (text, sentence) in table {
        let mistakes = mistakes(&sources(text, &[]));
        assert_eq!(mistakes.len(), 1, "{text}: {mistakes:#?}");
        let is = &mistakes[0];
        assert!(
            *is == format!("mirror.toml: {sentence}") || sentence.ends_with(": ") && is.starts_with(&format!("mirror.toml: {sentence}")),
            "{is}"
        );
    }
}

#[test]
fn a_proxy_is_shown_without_its_login_and_with_who_named_it() {
    let text =
        "[upstreams.a]\nproxy = 'http://user:hunter2@p:3128'\n[upstreams.b]\n[upstreams.c]\nproxy = ''\n[upstreams.d]\nconnections = 8";
    let loaded = loaded(text, &[("HTTPS_PROXY", "http://u:hunter2@q"), ("NO_PROXY", "d"), ("MILLPOND__UPSTREAMS__d__CONNECTIONS", "9")]);
    let shown = |name: &str| {
        let line = loaded.lines.iter().find(|line| line.section == format!("upstreams.{name}") && line.key == "proxy");
        line.map(|line| format!("{} # {}", line.value, line.origin))
    };
    assert_eq!(shown("a").as_deref(), Some("\"http://***@p:3128\" # mirror.toml"));
    assert_eq!(shown("b").as_deref(), Some("\"http://***@q:80\" # environment HTTPS_PROXY"));
    assert_eq!(shown("c").as_deref(), Some("\"none\" # mirror.toml"));
    assert_eq!(shown("d"), None, "NO_PROXY");
    assert_eq!(upstream(&loaded.config, "d").connections, 9);
    assert!(!loaded.effective().contains("hunter2") && !format!("{:?}", loaded.config).contains("hunter2"));
    let wrong = mistakes(&sources("", &[("all_proxy", "socks4://u:hunter2@p")]));
    assert!(
        wrong.len() == 1 && wrong[0].starts_with("environment all_proxy: this address is a kind") && !wrong[0].contains("hunter2"),
        "{wrong:?}"
    );
}

#[test]
fn unknown_keys_are_refused_and_understood() {
    let table = [
        ("[cashe]\ndir = '/x'", "cashe: is not a key; did you mean cache?"),
        ("max_size = '1GiB'", "max_size: is not a key; did you mean cache.max_size?"),
        ("[cache]\nmaxsize = '1GiB'", "cache.maxsize: is not a key; did you mean max_size?"),
        ("[cache]\nlisten = ':5000'", "cache.listen: is not a key; did you mean server.listen?"),
        (
            "[server]\ntls = { cert = '/dev/null', key = '/dev/null', ca = '' }",
            "server.tls.ca: is not a key; there are cert, key, client_ca",
        ),
        ("[upstreams.a]\npassword = 'hunter2'", "upstreams.a.password: is not a key; did you mean password_file?"),
        ("[access]\n'a b' = 1", "access.\"a b\": is not a key; there are networks, htpasswd, secret_paths, login_hosts"),
    ];
    for (text, sentence) in table {
        assert_eq!(mistakes(&sources(text, &[])), [format!("mirror.toml: {sentence}")], "{text}");
    }
}

#[test]
fn all_mistakes_are_reported_together() {
    let text = "colour = 'red'\n[cache]\nmax_size = '50GB5'\nsize = 1\n[access]\nnetworks = ['a', 'b']\n[server]\ndrain = 30";
    let sources = sources(text, &[("MILLPOND__CACHE__TAG_TTL", "soon"), ("MILLPOND__CACHE__MAXSTALE", "1d"), ("MILLPOND__SERVER", "x")]);
    let mistakes = mistakes(&Sources { profile: Some("none".into()), ..sources });
    let keys: Vec<&str> = mistakes.iter().map(|line| line.rsplit_once(": ").map_or("", |(head, _)| head)).collect();
    assert_eq!(mistakes.len(), 9, "{mistakes:#?}");
    for origin_and_key in [
        "flag --profile",
        "mirror.toml: colour",
        "mirror.toml: cache.max_size",
        "mirror.toml: cache.size",
        "mirror.toml: access.networks: item 1",
        "mirror.toml: access.networks: item 2",
        "environment MILLPOND__CACHE__TAG_TTL: cache.tag_ttl",
        "environment MILLPOND__CACHE__MAXSTALE: cache.maxstale",
        "environment MILLPOND__SERVER: server",
    ] {
        assert!(keys.contains(&origin_and_key), "{origin_and_key} is not among {mistakes:#?}");
    }
}

#[test]
fn the_environment_overrides_the_file_and_says_so() {
    let text = "[cache]\nmax_size = '1GiB'\ntag_ttl = 'broken, but overridden'\nmemory = '1MiB'";
    let env = [
        ("MILLPOND__CACHE__MAX_SIZE", "20GiB"),
        ("MILLPOND__CACHE__TAG_TTL", "5m"),
        ("MILLPOND__CACHE__OFFLINE", "true"),
        ("MILLPOND__ACCESS__NETWORKS", "10.0.0.0/8, ::1"),
        ("MILLPOND__ACCESS__SECRET_PATHS", "0123456789abcdef"),
        ("MILLPOND__LOG", "json"),
        ("MILLPOND__UPSTREAMS__docker.io__USERNAME", "12345"),
        ("MILLPOND__UPSTREAMS__DOCKER_IO__PASSWORD_FILE", "/dev/null"),
        ("MILLPOND__UPSTREAMS__new.example:80__ENDPOINTS", "http://new.example"),
    ];
    let loaded = loaded(text, &env);
    let config = &loaded.config;
    assert_eq!(config.cache.max_size, MaxSize::Bytes(20 << 30));
    assert_eq!(config.cache.memory, 1 << 20);
    assert_eq!(config.pull.tag_ttl, Duration::from_secs(300));
    assert!(config.pull.offline);
    assert_eq!(config.access.networks.len(), 2);
    assert!(config.access.secret_paths == [Secret("0123456789abcdef".into())]);
    assert_eq!(config.log, LogFormat::Json);
    let credentials = Credentials::Password { username: "12345".into(), password_file: "/dev/null".into() };
    assert_eq!(upstream(config, "docker.io").credentials, Some(credentials));
    assert_eq!(upstream(config, "docker.io").auth_hosts, ["auth.docker.io"], "the rest stays as it is built in");
    assert_eq!(upstream(config, "new.example:80").endpoints[0].as_str(), "http://new.example/");

    assert_eq!(origin_of(&loaded, "cache", "max_size"), "environment MILLPOND__CACHE__MAX_SIZE");
    assert_eq!(origin_of(&loaded, "cache", "memory"), "mirror.toml");
    assert_eq!(origin_of(&loaded, "cache", "max_stale"), "default");
    assert_eq!(origin_of(&loaded, "cache", "dir"), "$HOME");
    assert_eq!(origin_of(&loaded, "upstreams.\"docker.io\"", "username"), "environment MILLPOND__UPSTREAMS__docker.io__USERNAME");
    assert_eq!(origin_of(&loaded, "upstreams.\"docker.io\"", "endpoints"), "built in");
}

#[test]
fn an_empty_variable_lets_nobody_in() {
    let text = "[access]\nnetworks = ['10.0.0.0/8']";
    for value in ["", " ", ",", "10.0.0.0/8,"] {
        let mistakes = mistakes(&sources(text, &[("MILLPOND__ACCESS__NETWORKS", value)]));
        assert!(mistakes[0].contains("is not a network"), "{value:?}: {mistakes:?}");
    }
    assert!(loaded(text, &[("MILLPOND__ACCESS__NETWORKS", "[]")]).config.access.networks.is_empty(), "who writes it means it");
}

#[test]
fn variables_of_others_do_not_disturb() {
    let service = [
        ("MILLPOND_PORT", "tcp://10.0.0.1:5000"),
        ("MILLPOND_SERVICE_HOST", "10.0.0.1"),
        ("MILLPOND_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("MILLPOND_CACHE_PORT", "tcp://10.0.0.2:5000"),
        ("MILLPOND_CONFIG", "/etc/mirror.toml"),
        ("MILLPOND_PROFILE", ""),
        ("CACHE__DIR", "/x"),
        ("MILLPONDS__CACHE__DIR", "/x"),
    ];
    assert_eq!(loaded("", &service).config.cache.dir, Path::new("/home/someone/.cache/millpond"));
    let lines = mistakes(&sources("", &[("MILLPOND_CACHE_MAX_SIZE", "1GiB")]));
    assert_eq!(
        lines,
        ["environment MILLPOND_CACHE_MAX_SIZE: has no effect; write MILLPOND__CACHE__MAX_SIZE with two underscores between the parts"]
    );
    let lines = mistakes(&sources("", &[("MILLPOND__PROFILE", "prod"), ("MILLPOND__CONFIG", "/x")]));
    let right = |name: &str| format!("environment MILLPOND__{name}: has no effect; write MILLPOND_{name} with one underscore");
    assert_eq!(lines, [right("CONFIG"), right("PROFILE")]);
}

#[test]
fn a_flag_is_over_everything() {
    let mut sources = sources("log = 'text'", &[("MILLPOND__LOG", "text")]);
    sources.log = Some("json".into());
    let loaded = load(&sources).expect("valid");
    assert_eq!(loaded.config.log, LogFormat::Json);
    assert_eq!(origin_of(&loaded, "", "log"), "flag --log");
}

#[test]
fn a_profile_lies_over_the_file_and_under_the_environment() {
    let text = "[cache]\nmax_size = '1GiB'\nmemory = '1MiB'\n\
        [profile.prod.cache]\nmax_size = '2GiB'\nmemory = '2MiB'\n[profile.prod.upstreams.'Docker.io']\nprivate = 'anyone'\n\
        [profile.dev.cache]\nmax_size = 'not looked at'";
    let env = [("MILLPOND_PROFILE", "prod"), ("MILLPOND__CACHE__MEMORY", "3MiB")];
    let prod = loaded(text, &env);
    assert_eq!(prod.config.cache.max_size, MaxSize::Bytes(2 << 30));
    assert_eq!(prod.config.cache.memory, 3 << 20);
    assert_eq!(upstream(&prod.config, "docker.io").private, Private::Anyone);
    assert_eq!(origin_of(&prod, "cache", "max_size"), "mirror.toml [profile.prod]");
    assert!(prod.effective().starts_with("# mirror.toml, profile prod\n"), "{}", prod.effective());
    assert_eq!(loaded(text, &[]).config.cache.max_size, MaxSize::Bytes(1 << 30));

    let dev = Sources { profile: Some("dev".into()), ..sources(text, &env) };
    assert_eq!(
        mistakes(&dev),
        ["mirror.toml [profile.dev]: cache.max_size: \"not looked at\" is not a size; write for example 50GiB or 80%"],
        "the flag is over the environment"
    );
    let none = Sources { profile: Some("test".into()), ..sources(text, &[]) };
    assert_eq!(mistakes(&none), ["flag --profile: \"test\" is no profile of mirror.toml; it has dev, prod"]);
    let no_file = Sources { file: None, ..none };
    assert_eq!(mistakes(&no_file), ["flag --profile: there is no configuration file that could hold a profile \"test\""]);
    assert_eq!(mistakes(&sources("profile.a = 1", &[("MILLPOND_PROFILE", "a")])), ["mirror.toml: profile.a: is not a table"]);
}

#[test]
fn the_data_folder_is_where_the_system_wants_it() {
    let dir = |env: &[(&str, &str)]| {
        let loaded = loaded("", env);
        (loaded.config.cache.dir.display().to_string(), origin_of(&loaded, "cache", "dir"))
    };
    let is = |path: &str, origin: &str| (path.to_owned(), origin.to_owned());
    assert_eq!(dir(&[]), is("/home/someone/.cache/millpond", "$HOME"));
    assert_eq!(dir(&[("XDG_CACHE_HOME", "/xdg/")]), is("/xdg/millpond", "$XDG_CACHE_HOME"));
    assert_eq!(dir(&[("XDG_CACHE_HOME", "relative")]), is("/home/someone/.cache/millpond", "$HOME"));
    assert_eq!(dir(&[("STATE_DIRECTORY", "/state/one:/state/two"), ("XDG_CACHE_HOME", "/xdg")]), is("/state/one", "$STATE_DIRECTORY"));
    assert_eq!(dir(&[("STATE_DIRECTORY", ""), ("MILLPOND__CACHE__DIR", "here")]), is("here", "environment MILLPOND__CACHE__DIR"));

    assert_eq!(
        mistakes(&Sources::default()),
        [
            "default: cache.dir: there is none: neither STATE_DIRECTORY, XDG_CACHE_HOME nor HOME names a folder; write where the data shall be"
        ]
    );
    let written = Sources { env: [("MILLPOND__CACHE__DIR".to_owned(), "/x".into())].into(), ..Sources::default() };
    assert!(load(&written).is_ok(), "nobody needs a home who says where");
}

#[test]
fn an_entry_changes_the_built_in_one_key_by_key() {
    let text = "[upstreams.'GHCR.io']\nendpoints = ['https://mirror.example/ghcr', 'https://ghcr.io']\n[upstreams.'new.example:5000']";
    let loaded = loaded(text, &[]);
    let ghcr = upstream(&loaded.config, "ghcr.io");
    assert_eq!(ghcr.endpoints.iter().map(url::Url::as_str).collect::<Vec<_>>(), ["https://mirror.example/ghcr", "https://ghcr.io/"]);
    assert_eq!(upstream(&loaded.config, "new.example:5000").endpoints[0].as_str(), "https://new.example:5000/");
    assert_eq!(origin_of(&loaded, "upstreams.\"new.example:5000\"", "endpoints"), "default");
    assert_eq!(upstream(&loaded.config, "docker.io").endpoints[0].as_str(), "https://registry-1.docker.io/");
}

#[test]
fn what_is_in_effect_hides_secrets_and_reads_back() {
    let text = "[server]\ntls = { cert = '/dev/null', key = '/dev/null' }\n[cache]\ndir = 'a \"b\" \\ c'\n\
        [access]\nsecret_paths = ['0123456789-hunter2']";
    let loaded = loaded(text, &[]);
    let effective = loaded.effective();
    assert!(effective.contains("secret_paths = [\"***\"]"), "{effective}");
    for shown in [effective.clone(), format!("{loaded:?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let again =
        load(&sources(&effective.replace("***", "0123456789-hunter2"), &[])).unwrap_or_else(|mistakes| panic!("{mistakes}\n{effective}"));
    assert_eq!(format!("{:#?}", again.config), format!("{:#?}", loaded.config));
}

#[test]
fn no_mistake_repeats_a_secret_or_takes_two_lines() {
    for text in [
        "[access]\nsecret_paths = ['hunter2']",
        "[access]\nsecret_paths = 'hunter2'",
        "[access]\nsecret_paths = ['hunter2', 'hunter2",
        "[access]\nsecret_paths = ['hunter2'] x",
        "[upstreams.a]\npassword = 'hunter2'",
        "[upstreams.a]\nendpoints = ['https://me:hunter2@a']",
        "[server]\nlisten = \"a\\nb\"",
        "[server]\n\"a\\nb\" = 1",
        "[server]\n\"a\\u001bb\" = 1",
    ] {
        for line in mistakes(&sources(text, &[])) {
            assert!(!line.contains("hunter2") && !line.contains(char::is_control), "{line:?}");
        }
    }
}

#[test]
fn accounts_are_logins_with_a_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    fs::write(&file, "hunter2").expect("a file");
    let login = format!("username = 'u'\npassword_file = '{}'\n", file.display());
    let text = format!("[upstreams.'docker.io']\n{login}anonymous = true\n[upstreams.'docker.io'.accounts.team-a]\n{login}");
    let loaded = loaded(&text, &[]);
    let hub = upstream(&loaded.config, "docker.io");
    assert_eq!(
        (hub.credentials.is_some(), hub.accounts.keys().map(String::as_str).collect::<Vec<_>>(), hub.anonymous),
        (true, vec!["team-a"], true)
    );
    let shown = loaded.effective();
    assert!(shown.contains("[upstreams.\"docker.io\".accounts.team-a]\nusername = \"u\"") && !shown.contains("hunter2"), "{shown}");

    for (accounts, sentence) in [
        ("[upstreams.a.accounts.x]\n", "upstreams.a.accounts.x.username: is missing; write username and password_file, or docker_config"),
        (
            "[upstreams.a.accounts.x]\nusername = 'u'\n",
            "upstreams.a.accounts.x.username: needs upstreams.a.accounts.x.password_file beside it",
        ),
        ("[upstreams.a.accounts.anonymous]\n", "upstreams.a.accounts.anonymous: is what the log calls another one; choose another name"),
        (
            "[upstreams.a.accounts.'x y']\n",
            "upstreams.a.accounts.\"x y\": is no name of an account; write 1 to 64 letters, digits, - and _",
        ),
        ("[upstreams.a]\naccounts = ['x']\n", "upstreams.a.accounts: is a list where a table belongs"),
    ] {
        let mistakes = mistakes(&sources(accounts, &[]));
        assert!(mistakes.iter().any(|mistake| mistake.ends_with(sentence)), "{mistakes:#?}");
    }
    let many = (0..8).map(|n| format!("[upstreams.a.accounts.x{n}]\n{login}")).collect::<Vec<_>>().concat();
    let mistakes = mistakes(&sources(&many, &[]));
    assert!(mistakes.len() == 1 && mistakes[0].contains("x7: is one account too many"), "{mistakes:#?}");
}
