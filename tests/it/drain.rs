//! The end: SIGTERM with bodies in flight, idle connections, the deadline; and SIGHUP, which is no end.

use std::fs;

use rustix::process::Signal;

use crate::support::client::{Close, Connection, Ended, Raw, get, pull};
use crate::support::gate::Gate;
use crate::support::mirror::{Builder, Process};
use crate::support::patience::within;
use crate::support::registry::{Fault, Image, Kind, Pushed, Registry};
use crate::support::tls::{Certificate, leaf};
use crate::support::{KIB, MIB};

const REPO: &str = "library/debian";

/// A program that fetches a layer of 2 MiB, of which 1 MiB has come; and a client that has that.
struct InFlight {
    plain: Registry,
    image: Pushed,
    gate: Gate,
    program: Process,
    stream: crate::support::client::Stream,
}

impl InFlight {
    async fn with(settings: Builder) -> Self {
        let plain = Registry::plain().await;
        let image = plain.image(REPO, "latest", Image::layers([2 * MIB, KIB]));
        let gate = Gate::closed();
        plain.on(plain.body_of(&image.layers[0].digest), Fault::stall(MIB, &gate));
        let program = settings.upstream("docker.io", &plain).spawn().await;
        assert_eq!(get(program.manifest(REPO, "latest")).send().await.status, 200);
        let mut stream = get(program.blob(REPO, image.layers[0].digest)).stream().await;
        assert_eq!(stream.at_least(1 << 20).await.len() as u64, MIB);
        Self { plain, image, gate, program, stream }
    }
}

/// Waits until the program says that no more should be sent to it.
async fn draining(program: &Process) {
    let ready = async || get(program.admin("/readyz")).send().await;
    within("/readyz to say that it drains", async {
        loop {
            let reply = ready().await;
            // A program that was loaded heavily may answer before it has said that it is ready.
            if reply.status == 503 && !reply.text().contains("starting") {
                assert!(reply.text().contains("draining"), "{}", reply.text());
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_in_flight_is_finished_and_kept() {
    for signal in [Signal::TERM, Signal::INT] {
        let InFlight { plain, image, gate, program, stream } = InFlight::with(Builder::new()).await;
        assert_eq!(get(program.admin("/readyz")).send().await.status, 200);
        program.signal(signal);
        draining(&program).await;
        assert_eq!(get(program.admin("/healthz")).send().await.status, 200, "it lives");
        assert!(get(program.manifest(REPO, "latest")).try_send().await.is_err(), "nobody new is let in");
        gate.open();
        let rest = stream.rest().await;
        assert!(rest.is_whole() && rest.body.len() as u64 == MIB, "{:?}", rest.ended);
        let (status, settings) = program.terminate().await;
        assert_eq!(status.code(), Some(0));
        settings.audit().assert_sound().assert_temporary(0).assert_holds([&image.digest, &image.layers[0].digest]);

        plain.forget();
        let again = settings.spawn().await;
        assert_eq!(pull(&again.url(), REPO, "latest").await.unwrap().digest, image.digest);
        assert_eq!((plain.gets_of(&image.digest), plain.gets_of(&image.layers[0].digest)), (0, 0), "{}", plain.story());
        assert_eq!(again.terminate().await.0.code(), Some(0));
    }
}

#[tokio::test]
async fn a_request_that_waits_for_the_upstream_is_answered() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([KIB]));
    let gate = Gate::closed();
    plain.on(Kind::Manifest, Fault::wait(&gate));
    let program = Builder::new().upstream("docker.io", &plain).spawn().await;
    let asked = tokio::spawn(get(program.manifest(REPO, "latest")).send());
    gate.reached(1).await;
    program.signal(Signal::TERM);
    draining(&program).await;
    gate.open();
    let reply = asked.await.unwrap();
    assert_eq!((reply.status, &reply.body, reply.is_whole()), (200, &image.manifest, true));
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0));
    settings.audit().assert_sound().assert_temporary(0).assert_holds([&image.digest]);
    // The tag too: the next process needs nobody.
    plain.down().await;
    let again = settings.spawn().await;
    assert_eq!(get(again.manifest(REPO, "latest")).send().await.status, 200);
}

#[tokio::test]
async fn the_deadline_cuts_what_does_not_end_and_nothing_half_done_is_left() {
    let InFlight { image, program, stream, gate, plain: _plain, .. } =
        InFlight::with(Builder::new().set("server", "drain", "\"1s\"")).await;
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0));
    let Ended::Cut(_) = stream.rest().await.ended else { panic!("a body that is not whole must not end as one") };
    settings.audit().assert_sound().assert_temporary(0).assert_holds([&image.digest]);
    gate.open();
    let again = settings.spawn().await;
    assert_eq!(pull(&again.url(), REPO, "latest").await.unwrap().digest, image.digest);
    again.settled().await;
    again.terminate().await.1.audit().assert_sound().assert_temporary(0);
}

#[tokio::test]
async fn a_fill_that_nobody_waits_for_does_not_hold_up_the_end() {
    let InFlight { program, stream, gate, plain: _plain, .. } = InFlight::with(Builder::new()).await;
    drop(stream);
    // The default drain is as long as half of what the kit waits for anything.
    let began = std::time::Instant::now();
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0));
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    settings.audit().assert_sound().assert_temporary(0);
    drop(gate);
}

#[tokio::test]
async fn idle_connections_are_closed_and_answers_say_so() {
    let InFlight { program, stream, gate, image, plain: _plain, .. } = InFlight::with(Builder::new()).await;
    let mut idle = Raw::connect(program.address()).await;
    idle.get("/v2/").await;
    assert!(idle.head().await.starts_with("HTTP/1.1 200"));
    idle.read(2).await;
    let silent = Raw::connect(program.address()).await;
    let mut busy = Connection::open(&get(program.url())).await.unwrap();
    let digest = image.layers[0].digest;
    let mut late = busy.ask(get(program.blob(REPO, digest)).range(0, 9)).await.unwrap();
    assert_eq!(late.at_least(10).await.len(), 10);

    program.signal(Signal::TERM);
    draining(&program).await;
    assert_eq!(idle.drain().await, (Vec::new(), Close::Fin));
    let mut silent = silent;
    assert_eq!(silent.drain().await, (Vec::new(), Close::Fin));
    assert!(busy.ask(get(program.blob(REPO, digest))).await.is_err(), "an idle connection takes no more");
    gate.open();
    assert!(stream.rest().await.is_whole());
    assert_eq!(program.terminate().await.0.code(), Some(0));
}

#[tokio::test]
async fn an_idle_server_ends_at_once() {
    let program = Builder::new().spawn().await;
    let _keep_alive = Connection::open(&get(program.url())).await.unwrap();
    let began = std::time::Instant::now();
    assert_eq!(program.terminate().await.0.code(), Some(0));
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[tokio::test]
async fn sighup_reads_the_users_again_and_keeps_the_old_ones_when_it_cannot() {
    let settings = Builder::new().user("ann", "one");
    let program = settings.clone().spawn().await;
    let status = async |user: &str, password: &str| get(format!("{}/v2/", program.url())).basic(user, password).send().await.status;
    assert_eq!((status("ann", "one").await, status("bob", "two").await), (200, 401));

    let settings = settings.user("bob", "two").user("ann", "new");
    assert_eq!(status("bob", "two").await, 401, "not before it is told");
    program.signal(Signal::HUP);
    within("the new user to be let in", async { while status("bob", "two").await != 200 {} }).await;
    assert_eq!((status("ann", "one").await, status("ann", "new").await), (401, 200));

    fs::remove_file(settings.data().parent().unwrap().join("htpasswd")).unwrap();
    program.signal(Signal::HUP);
    // A signal is not answered; that of the next is seen, and this one was before it.
    let settings = settings.user("cid", "three");
    program.signal(Signal::HUP);
    within("the third user to be let in", async { while status("cid", "three").await != 200 {} }).await;
    assert_eq!((status("bob", "two").await, status("ann", "new").await), (200, 200));
    assert_eq!(program.terminate().await.0.code(), Some(0));
    drop(settings);
}

#[tokio::test]
async fn sighup_reads_the_certificate_again_and_cuts_nobody() {
    let settings = Builder::new().tls();
    let home = settings.data().parent().unwrap().to_owned();
    let InFlight { program, stream, gate, plain: _plain, .. } = InFlight::with(settings).await;
    let write = |kind| {
        let pem = leaf(kind);
        fs::write(home.join("cert.pem"), pem.cert).unwrap();
        fs::write(home.join("key.pem"), pem.key).unwrap();
    };
    let trusted = async || get(format!("{}/v2/", program.url())).try_send().await.is_ok();
    assert!(trusted().await);
    // One that clients do not trust is seen at once; whether it is a good one is for them to say.
    write(Certificate::UnknownAuthority);
    program.signal(Signal::HUP);
    within("the new certificate", async { while trusted().await {} }).await;
    // What cannot be read changes nothing.
    fs::write(home.join("key.pem"), "noise").unwrap();
    program.signal(Signal::HUP);
    assert!(!trusted().await);
    write(Certificate::Good);
    program.signal(Signal::HUP);
    within("the good certificate", async { while !trusted().await {} }).await;
    gate.open();
    assert!(stream.rest().await.is_whole(), "a body that was under way all the time");
    assert_eq!(program.terminate().await.0.code(), Some(0));
}
