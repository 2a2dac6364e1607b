//! The process has no file descriptor left: nothing spins, nothing ends, and what comes later is served.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::time::Instant;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::REPO;
use crate::support::client::{Connection, get, pull};
use crate::support::mirror::{Builder, Process};
use crate::support::patience::within;
use crate::support::registry::{Image, Registry};
use crate::support::tally::Tally;
use crate::support::{KIB, MIB};

/// Descriptors that are left to the program when the flood comes.
const SPARE: u64 = 24;

/// Connections of the flood; `MILLPOND_FLOOD` for a larger one.
fn flood() -> usize {
    std::env::var("MILLPOND_FLOOD").ok().and_then(|text| text.parse().ok()).unwrap_or(150)
}

/// How often a second the program may try to accept at the most, as it promises, and as much again for a bad clock.
const TRIES_A_SECOND: u64 = 2 * 20;

fn limit(program: &Process, files: u64) {
    let pid = Pid::from_raw(program.id().cast_signed());
    // The hard limit stays what it was; the program has it from this process.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(files), maximum }).unwrap();
}

fn open_files(program: &Process) -> u64 {
    u64::try_from(fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap().count()).unwrap()
}

/// The lines that the program logs, as they come.
fn log_of(command: &mut tokio::process::Command) -> mpsc::UnboundedReceiver<String> {
    let (reader, writer) = std::io::pipe().unwrap();
    let (sender, lines) = mpsc::unbounded_channel();
    command.stderr(writer);
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

#[tokio::test]
async fn a_process_without_descriptors_waits_for_some_and_goes_on() {
    let plain = Registry::plain().await;
    let held = plain.image(REPO, "held", Image::layers([2 * MIB, 10 * KIB]));
    let settings = Builder::in_memory().upstream("docker.io", &plain);
    let mut log = None;
    let program = settings.spawn_with(|command| log = Some(log_of(command))).await;
    let mut log = log.unwrap();
    pull(&program.url(), REPO, "held").await.unwrap();
    program.settled().await;
    let url = program.blob(REPO, held.layers[0].digest);
    let mut early = Connection::open(&get(&url)).await.unwrap();
    assert_eq!(early.ask(get(&url)).await.unwrap().hash().await.digest, held.layers[0].digest);

    let open = open_files(&program);
    limit(&program, open + SPARE);
    let mut tally = Tally::of("no file descriptor left");
    let mut crowd = Vec::new();
    for _ in 0..flood() {
        crowd.push(TcpStream::connect(program.address()).await.unwrap());
    }
    // It says so once a second, and how often it tried meanwhile.
    let mut missed = Vec::new();
    while missed.len() < 3 {
        let line = within("a line about a connection that cannot be accepted", log.recv()).await.unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if line["message"] == "cannot accept a connection" {
            missed.push(line["missed"].as_u64().unwrap());
        }
    }
    assert!(missed.iter().all(|missed| *missed <= TRIES_A_SECOND), "it spins: {missed:?} tries between two lines");
    // Who has a connection is served from what is held.
    assert_eq!(early.ask(get(&url)).await.unwrap().hash().await.digest, held.layers[0].digest);

    let ended = Instant::now();
    drop(crowd);
    within("the end of the crowd's connections", async {
        while open_files(&program) > open + SPARE / 2 {
            early.ask(get(&url)).await.unwrap().hash().await;
        }
    })
    .await;
    tally.again(ended.elapsed());
    tally.note();
    let new = plain.image(REPO, "new", Image::layers([2 * MIB, 10 * KIB]).seed(2));
    assert_eq!(pull(&program.url(), REPO, "new").await.map(|pulled| pulled.digest), Ok(new.digest));
    program.settled().await;
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0));
    settings.audit().assert_sound().assert_temporary(0);
    settings.verify().await.unwrap();
}
