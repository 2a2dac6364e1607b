//! The log: every request is a line of it at a clean stop, and whoever does not read it holds up nobody.

use std::fs::{self, File};
use std::io::Read;

use crate::support::client::get;
use crate::support::mirror::{Builder, Process};

/// More lines than a pipe holds, which is 64 KiB.
const REQUESTS: usize = 1_000;

async fn ping(program: &Process) {
    assert_eq!(get(format!("{}/v2/", program.url())).send().await.status, 200);
}

/// How many lines tell of a request; each is an object, whole.
fn requests(log: &str) -> usize {
    let parsed = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    parsed.filter(|line| line["message"] == "request" && line["status"] == 200 && line["end"] == "whole").count()
}

#[tokio::test]
async fn a_clean_stop_loses_no_line() {
    let settings = Builder::new();
    let file = settings.beside("the-log");
    let log = File::create(&file).unwrap();
    let program = settings.spawn_with(|command| _ = command.stderr(log)).await;
    for _ in 0..REQUESTS {
        ping(&program).await;
    }
    let (status, _settings) = program.terminate().await;
    assert!(status.success(), "{status}");
    assert_eq!(requests(&fs::read_to_string(&file).unwrap()), REQUESTS);
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nobody() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let program = Builder::new().spawn_with(|command| _ = command.stderr(writer)).await;
    for _ in 0..REQUESTS {
        ping(&program).await;
    }
    // What is worth a look is waited for, once; not for ever.
    for tag in ["one", "two"] {
        assert_eq!(get(program.manifest("library/debian", tag)).send().await.status, 503);
    }
    ping(&program).await;
    let (status, _settings) = program.terminate().await;
    assert!(status.success(), "{status}");
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    // It ended in the middle of a line, or of several.
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let told = requests(whole);
    assert!(told > 0 && told < REQUESTS, "the pipe took {told} lines: nothing stood still");
}
