//! Connections a second over TLS: each is made, asks for the held tag, and is left. With a full handshake, or with the session of
//! the one before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bench::{Bench, Purpose};
use crate::held::{What, asked};
use crate::servers::Server;
use crate::table::Measure;
use crate::{http, pause, tls};

pub fn run(bench: &mut Bench, work: &'static str, resumes: bool) -> io::Result<()> {
    let content = Arc::clone(&bench.content);
    let (ask, expected) = asked(&content, What::Tag);
    let servers = bench.start_warm(work, &ask, expected, Purpose { is_tls: true, ..Purpose::default() });
    for round in 0..bench.rounds {
        for server in &servers {
            let values = once(bench, server, &ask.path, resumes)?;
            bench.note(work, &server.name, round, &values);
        }
    }
    Ok(())
}

fn once(bench: &Bench, server: &Server, path: &str, resumes: bool) -> io::Result<Vec<(Measure, f64)>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (over, made, resumed, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let client = bench.tls.client(resumes);
            let (over, made, resumed, failed) = (&over, &made, &resumed, &failed);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let count = match visit(&client, server.port, path) {
                        Ok(true) => resumed,
                        Ok(false) => made,
                        Err(_) => failed,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let both = || made.load(Ordering::Relaxed) + resumed.load(Ordering::Relaxed);
        pause(bench.window / 10);
        let before = server.cpu().map(|cpu| (cpu, both()));
        pause(bench.window);
        let after = server.cpu().map(|cpu| (cpu, both()));
        over.store(true, Ordering::Relaxed);
        let ((cpu_before, before), (cpu_after, after)) = (before?, after?);
        let count = (after - before) as f64;
        let share = resumed.load(Ordering::Relaxed) as f64 / both().max(1) as f64;
        Ok(vec![
            (Measure::Connections, count / bench.window.as_secs_f64()),
            (Measure::CpuPerConnection, (cpu_after - cpu_before) * 1e6 / count),
            (Measure::Resumed, share),
            (Measure::Failed, failed.load(Ordering::Relaxed) as f64),
        ])
    })
}

/// One connection; true if it went on with an earlier session.
fn visit(client: &Arc<rustls::ClientConfig>, port: u16, path: &str) -> io::Result<bool> {
    let mut stream = tls::connect(client, port)?;
    http::get(&mut stream, path, None, |_| ())?;
    let resumed = stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    stream.conn.send_close_notify();
    stream.conn.write_tls(&mut stream.sock)?;
    Ok(resumed)
}
