use std::fs;
use std::net::TcpListener;
use std::process::Output;

use super::{REPO, run};
use crate::support::KIB;
use crate::support::client::pull;
use crate::support::mirror::Builder;
use crate::support::registry::{Image, Registry};

/// Asserts that the program ended with this code and one line that says all of these, and printed nothing else.
#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    assert!(out.is_empty(), "nothing was bound: {out}");
    assert_eq!(err.lines().count(), 1, "one line: {err}");
    for word in words {
        assert!(err.contains(word), "{word:?} is not in: {err}");
    }
}

#[tokio::test]
async fn a_second_server_on_a_folder_is_refused_and_the_first_goes_on() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([KIB]));
    let program = Builder::new().upstream("docker.io", &plain).spawn().await;
    for _ in 0..2 {
        assert_refused(&run(program.settings()).await, 75, &["in use by another millpond", "cache.dir"]);
    }
    assert_eq!(pull(&program.url(), REPO, "latest").await.unwrap().digest, image.digest);
    assert_eq!(program.terminate().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named() {
    let settings = Builder::new();
    let home = settings.data().parent().unwrap().to_owned();
    fs::write(home.join("file"), "").unwrap();
    let of = |path: std::path::PathBuf| settings.clone().set("cache", "dir", &format!("{:?}", path.display().to_string()));
    // What can be seen without touching anything is a mistake in the configuration.
    assert_refused(&run(&of(home.join("file"))).await, 64, &["cache.dir", "/file"]);
    assert_refused(&run(&of(home.join("file/below"))).await, 70, &["data folder", "/file/below"]);
    assert_refused(&run(&of("/proc/nowhere".into())).await, 70, &["data folder", "/proc/nowhere"]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_nothing_is_left() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["listen", "admin"] {
        let settings = Builder::new().set("server", key, &format!("\"{address}\""));
        assert_refused(&run(&settings).await, 70, &[&address]);
        // The folder is free for the next: its lock went with the process.
        let program = settings.set("server", key, "\"127.0.0.1:0\"").spawn().await;
        assert_eq!(program.terminate().await.0.code(), Some(0));
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let settings = Builder::new().tls();
    let home = settings.data().parent().unwrap().to_owned();
    for (name, contents, code) in
        [("key.pem", Some("noise"), 70), ("cert.pem", Some(""), 70), ("cert.pem", None, 64), ("key.pem", None, 64)]
    {
        let file = home.join(name);
        let before = fs::read(&file).unwrap();
        match contents {
            Some(contents) => fs::write(&file, contents).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        assert_refused(&run(&settings).await, code, &[name]);
        fs::write(&file, before).unwrap();
    }
}

#[tokio::test]
async fn a_folder_of_another_layout_is_left_alone() {
    let settings = Builder::new();
    let program = settings.spawn().await;
    let settings = program.terminate().await.1;
    let version = settings.data().join("VERSION");
    let ours = fs::read(&version).unwrap();
    for other in ["millpond 2\n", "", "something else entirely"] {
        fs::write(&version, other).unwrap();
        fs::write(settings.data().join("tmp/theirs"), "x").unwrap();
        assert_refused(&run(&settings).await, 70, &["layout", "cache.dir"]);
        assert!(settings.data().join("tmp/theirs").exists(), "nothing is cleared away in a folder that is not ours");
    }
    fs::write(&version, ours).unwrap();
    assert_eq!(settings.spawn().await.terminate().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_folder_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let settings = Builder::new();
    fs::create_dir_all(settings.data()).unwrap();
    fs::set_permissions(settings.data(), fs::Permissions::from_mode(0o755)).unwrap();
    let plain = Registry::plain().await;
    plain.image(REPO, "latest", Image::layers([KIB]));
    let program = settings.upstream("docker.io", &plain).spawn().await;
    pull(&program.url(), REPO, "latest").await.unwrap();
    program.settled().await;
    let data = program.settings().data();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for name in ["blobs", "repos", "tmp", "quarantine", "index"] {
        assert_eq!(mode(&data.join(name)), 0o700, "{name}");
    }
}
