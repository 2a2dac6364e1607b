use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::client::get;
use crate::support::mirror::{Builder, Process};
use crate::support::patience::within;
use crate::support::registry::{Image, Kind, Registry};
use crate::support::scene::REPO;

const TABLE: &str = "upstreams.\"docker.io\"";

/// A registry that shows its repository to ann only, whose password is this; and a mirror whose login comes from Docker's file.
async fn scene(password: &str, json: &str) -> (Registry, Builder) {
    let hub = Registry::hub().await;
    hub.user("ann", password);
    hub.private(REPO);
    for tag in ["one", "two", "three", "four", "five", "sixth"] {
        hub.image(REPO, tag, Image::layers([1000]).seed(u64::from(tag.as_bytes()[0]) * 300 + u64::from(tag.as_bytes()[2])));
    }
    let builder = Builder::new().upstream("docker.io", &hub).private_to_anyone("docker.io").set("cache", "tag_ttl", "\"0s\"");
    write(&builder, json);
    let path = format!("\"{}\"", builder.beside("config.json").display());
    (hub, builder.set(TABLE, "docker_config", &path))
}

fn write(builder: &Builder, json: &str) {
    fs::write(builder.beside("config.json"), json).unwrap();
}

/// `auths` with the login of ann.
fn auths(password: &str) -> String {
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("ann:{password}"));
    format!(r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}}}}}}"#)
}

/// A credential helper that notes each question and answers with what stands in a file beside it.
fn helper(dir: &Path, script: &str) {
    fs::create_dir_all(dir).unwrap();
    let file = dir.join("docker-credential-scripted");
    fs::write(&file, format!("#!/bin/sh\nread -r server\necho \"$1 $server\" >> '{0}/asked'\n{script}\n", dir.display())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The program, with helpers in its PATH.
async fn spawn(builder: &Builder, dir: &Path) -> Process {
    let path = format!("{}:/usr/bin:/bin", dir.display());
    builder
        .clone()
        .traced()
        .spawn_with(|command| {
            let _ = command.env("PATH", path);
        })
        .await
}

async fn status(process: &Process, tag: &str) -> u16 {
    get(process.manifest(REPO, tag)).send().await.status
}

/// How often a log says this.
fn said(process: &Process, words: &str) -> usize {
    process.log().matches(words).count()
}

#[tokio::test]
async fn a_login_of_docker_is_used_and_read_again_when_it_changed() {
    let (hub, builder) = scene("pw-alpha", &auths("pw-alpha")).await;
    let process = builder.clone().traced().spawn().await;
    assert_eq!(status(&process, "one").await, 200, "{}", process.log());
    // A mistake in the file changes nothing and is told once; the refusal that follows has it looked at.
    write(&builder, "{\"auths\": broken");
    hub.revoke_tokens();
    assert_eq!(status(&process, "two").await, 200, "{}", process.log());
    process.signal(Signal::HUP);
    within("a word on the mistake", async {
        while said(&process, "docker_config") == 0 {
            heard(&process).await;
        }
    })
    .await;
    assert_eq!(status(&process, "two").await, 200, "the old login stays");
    // The password is changed there, then here: a pull that comes between is refused, the next is not.
    hub.user("ann", "pw-beta");
    hub.revoke_tokens();
    assert_eq!(status(&process, "three").await, 403, "{}", process.log());
    write(&builder, &auths("pw-beta"));
    assert_eq!(status(&process, "four").await, 200, "{}", process.log());
    assert!(said(&process, "pw-alpha") == 0 && said(&process, "pw-beta") == 0 && said(&process, "Basic") == 0, "no password in the log");
}

async fn heard(process: &Process) {
    assert_eq!(get(format!("{}/v2/", process.url())).send().await.status, 200);
}

#[tokio::test]
async fn a_password_file_is_read_again_when_the_password_is_refused() {
    let hub = Registry::hub().await;
    hub.user("ann", "pw-alpha");
    hub.private(REPO);
    let image = hub.image(REPO, "one", Image::layers([1000]));
    hub.image(REPO, "two", Image::layers([2000]));
    let builder = Builder::new().upstream("docker.io", &hub).private_to_anyone("docker.io").login("docker.io", "ann", "pw-alpha");
    let mirror = builder.clone().start();
    assert_eq!(get(mirror.manifest(REPO, "one")).send().await.body, image.manifest);
    hub.user("ann", "pw-beta");
    hub.revoke_tokens();
    fs::write(builder.beside("password-docker.io"), "pw-beta\n").unwrap();
    assert_eq!(get(mirror.manifest(REPO, "two")).send().await.status, 200, "{}", hub.story());
}

#[tokio::test]
async fn a_helper_is_asked_once_and_again_when_it_is_refused() {
    let (hub, builder) = scene("pw-alpha", r#"{"credsStore":"scripted"}"#).await;
    let dir = builder.beside("bin");
    helper(&dir, &format!("cat '{}/answer'", dir.display()));
    let answer =
        |password: &str| fs::write(dir.join("answer"), format!(r#"{{"ServerURL":"x","Username":"ann","Secret":"{password}"}}"#)).unwrap();
    let asked = || fs::read_to_string(dir.join("asked")).unwrap_or_default();
    answer("pw-alpha");
    let process = spawn(&builder, &dir).await;
    assert_eq!(asked(), "", "not before it is needed");
    let crowd: Vec<_> = ["one", "two"].into_iter().map(|tag| tokio::spawn(get(process.manifest(REPO, tag)).send())).collect();
    for reply in crowd {
        assert_eq!(reply.await.unwrap().status, 200, "{}", process.log());
    }
    assert_eq!(asked(), "get https://index.docker.io/v1/\n", "once for all");
    hub.user("ann", "pw-beta");
    hub.revoke_tokens();
    answer("pw-beta");
    let began = Instant::now();
    assert_eq!(status(&process, "three").await, 200, "{}", process.log());
    assert_eq!(asked().lines().count(), 2);
    // A password that stays wrong is no reason to run it for every request.
    hub.user("ann", "pw-gamma");
    hub.revoke_tokens();
    for tag in ["four", "five"] {
        assert_eq!(status(&process, tag).await, 403);
    }
    // Once in half a minute at most: a machine that took so long for the lines above proves nothing.
    assert!(began.elapsed() > Duration::from_secs(30) || asked().lines().count() == 2, "{}", process.log());
    // SIGHUP has it asked again, whatever it said before.
    answer("pw-gamma");
    process.signal(Signal::HUP);
    within("the new login", async { while status(&process, "sixth").await != 200 {} }).await;
    for word in ["pw-alpha", "pw-beta", "pw-gamma", "Basic "] {
        assert_eq!(said(&process, word), 0, "{word}");
    }
}

#[tokio::test]
async fn a_helper_that_has_nothing_or_fails_is_nobody_in_particular() {
    for (script, words) in [
        ("echo 'credentials not found in native keychain'; exit 1", None),
        ("echo hunter2; exit 1", Some("exit status: 1")),
        ("echo hunter2", Some("no login")),
        ("head -c 100000 /dev/zero", Some("too much")),
        ("exec > /dev/null; kill -9 $$", Some("signal: 9")),
    ] {
        let (hub, builder) = scene("pw-alpha", r#"{"credHelpers":{"docker.io":"scripted"}}"#).await;
        let dir = builder.beside("bin");
        helper(&dir, script);
        let process = spawn(&builder, &dir).await;
        assert_eq!(status(&process, "one").await, 404, "{script}: {}", process.log());
        hub.public(REPO);
        assert_eq!(status(&process, "two").await, 200, "{script}: {}", process.log());
        assert_eq!(hub.matching(Kind::Token).iter().filter(|record| record.header("authorization").is_some()).count(), 0);
        assert_eq!(said(&process, "the credential helper gave no login"), usize::from(words.is_some()), "{}", process.log());
        assert!(words.is_none_or(|words| process.log().contains(words)), "{words:?}: {}", process.log());
        assert_eq!(said(&process, "hunter2"), 0);
    }
}

#[tokio::test]
async fn a_helper_that_hangs_is_ended_and_nothing_is_left_of_it() {
    let (hub, builder) = scene("pw-alpha", r#"{"credsStore":"scripted"}"#).await;
    hub.public(REPO);
    let dir = builder.beside("bin");
    helper(&dir, &format!("echo $$ > '{}/pid'; exec sleep 1000", dir.display()));
    let process = spawn(&builder, &dir).await;
    // Its own limit is 10 s; the request goes on as anybody's.
    assert_eq!(status(&process, "one").await, 200, "{}", process.log());
    assert!(process.log().contains("no answer within 10 s"), "{}", process.log());
    let pid = fs::read_to_string(dir.join("pid")).unwrap();
    let state = format!("/proc/{}/stat", pid.trim());
    let is_gone = || fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z "));
    within("the end of the helper", async {
        while !is_gone() {
            heard(&process).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_wrong_at_the_start_is_told_by_check_without_what_is_in_it() {
    let (_, builder) = scene("pw-alpha", r#"{"auths":{"docker.io":{"auth":"hunter2!"}}}"#).await;
    let file = builder.beside("check.toml");
    fs::write(&file, builder.toml()).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.arg("check").arg("--config").arg(&file).env_clear();
    let output = within("the end of check", command.output()).await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("upstreams.\"docker.io\".docker_config: ") && text.contains("is not the base64 of user:password"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}
