#!/usr/bin/env python3
"""A crowd that takes nothing, and the well-behaved clients beside it: are they served as if they were alone?

    benches/crowd.py [--clients 1000] [--rounds 3] [--only NAME]... [path to millpond]       default: target/release/millpond

For each kind of crowd a mirror of its own is started; in each round the same pulls are made alone and then beside the crowd, so that both are of one
minute of one machine. Prints a table: MB/s alone and beside (the median of all rounds), their ratio, and the mirror's own memory with the crowd
in place. Everything is on loopback; needs python3 and openssl, and nothing else. Ends what it started.
"""

import argparse
import contextlib
import hashlib
import http.server
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import socket
import socketserver
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20
LARGE, PART, COLD = 300 * MIB, 10 * MIB, 100 * MIB
PARTS = 16
REPO = "library/bench"
BESIDE = "127.0.0.9"  # the crowd's address has its own share of the seats
TIMES = 3  # pulls of a kind in a round; the median counts


def blob(folder, size):
    """Random bytes in a file named by their digest."""
    digest, name = hashlib.sha256(), folder / "new"
    with name.open("wb") as file:
        for _ in range(size // MIB):
            piece = os.urandom(MIB)
            digest.update(piece)
            file.write(piece)
    name.rename(folder / digest.hexdigest())
    return digest.hexdigest()


class Registry(http.server.BaseHTTPRequestHandler):
    """An upstream that knows blobs and nothing else."""

    protocol_version = "HTTP/1.1"
    folder = None

    def do_GET(self):
        path = self.folder / self.path.rpartition(":")[2]
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(file)

    def log_message(self, *_):
        pass


def registry(folder):
    """Serves a folder in a process of its own; gives its port."""

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    Registry.folder = folder
    server = Server(("127.0.0.1", 0), Registry)
    def serve():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        server.serve_forever()

    process = multiprocessing.Process(target=serve, daemon=True)
    process.start()
    return server.server_address[1]


class Mirror:
    """A millpond of its own folder."""

    def __init__(self, work, program, upstream, tls):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=work))
        self.tls = tls
        certificate = f'tls = {{ cert = "{work}/cert.pem", key = "{work}/key.pem" }}' if tls else ""
        (self.folder / "mirror.toml").write_text(
            f'[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n{certificate}\n[cache]\ndir = "{self.folder}/data"\n'
            f'[upstreams."docker.io"]\nendpoints = ["http://127.0.0.1:{upstream}"]\n'
        )
        log = self.folder / "log"
        self.process = subprocess.Popen([program, "serve", "--config", self.folder / "mirror.toml"], stdout=log.open("wb"), stderr=subprocess.STDOUT)
        while not (found := re.search(rb"registry API on https?://127.0.0.1:(\d+)", log.read_bytes())):
            if self.process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.01)
        self.port = int(found[1])

    def connect(self, source="127.0.0.1", protocol="http/1.1"):
        stream = socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0))
        if not self.tls:
            return stream
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        return context.wrap_socket(stream)

    def memory(self):
        """Its own, in MB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024 / 1e6

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


def request(digest):
    return f"GET /v2/{REPO}/blobs/sha256:{digest} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def pull(mirror, digest, size):
    """One client, from its connection to its last byte."""
    with mirror.connect(BESIDE) as stream:
        stream.sendall(request(digest))
        buffer, head = bytearray(256 << 10), b""
        while b"\r\n\r\n" not in head:
            more = stream.recv(4096)
            assert more, head
            head += more
        head, _, begun = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        got = len(begun)
        while got < size:
            more = stream.recv_into(buffer)
            assert more, f"the body ended after {got} of {size} bytes"
            got += more


def at_once(mirror, digests, size):
    """So many clients at once; gives MB a second of all."""
    threads = [threading.Thread(target=pull, args=(mirror, digest, size)) for digest in digests]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(digests) * size / 1e6 / (time.monotonic() - start)


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def text(first, value):
    """A literal of HPACK that is not indexed, its name by index."""
    length = bytes([len(value)]) if len(value) < 127 else bytes([127, len(value) - 127])
    assert len(value) < 127 + 128
    return bytes([first]) + length + value.encode()


def requests_http2(digest, streams):
    fields = b"\x82\x87" + text(4, f"/v2/{REPO}/blobs/sha256:{digest}") + text(1, "bench")
    heads = b"".join(frame(1, 5, n * 2 + 1, fields) for n in range(streams))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + heads


def crowd(mirror, clients, digest, kind, ready, leave):
    """Connects, asks, and takes nothing, or a byte a second."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    streams = []
    for _ in range(clients):
        stream = mirror.connect(protocol="h2" if kind == "HTTP/2" else "http/1.1")
        stream.sendall(requests_http2(digest, 32) if kind == "HTTP/2" else request(digest))
        streams.append(stream)
    for stream in streams:
        stream.recv(1)
    ready.set()
    while not leave.wait(1):
        if kind == "a byte a second":
            for stream in streams:
                stream.recv(1)


@contextlib.contextmanager
def crowded(*args):
    ready, leave = multiprocessing.Event(), multiprocessing.Event()
    process = multiprocessing.Process(target=crowd, args=(*args, ready, leave), daemon=True)
    process.start()
    ready.wait(120)
    time.sleep(1)  # every buffer that fills up does so
    yield
    assert process.is_alive(), "the crowd left early"
    leave.set()
    process.join()


def kernel_memory():
    """Of all TCP sockets, in MB."""
    pages = re.search(r"^TCP:.* mem (\d+)", pathlib.Path("/proc/net/sockstat").read_text(), re.M)[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(mirror, blobs, cold):
    large, parts = blobs
    median = lambda run: statistics.median(run() for _ in range(TIMES))
    return {
        "1 x 300 MiB": median(lambda: at_once(mirror, [large], LARGE)),
        "4 x 300 MiB": median(lambda: at_once(mirror, [large] * 4, LARGE)),
        "16 x 10 MiB": median(lambda: at_once(mirror, parts, PART)),
        "1 x 100 MiB, cold": at_once(mirror, [cold], COLD),
    }


KINDS = {
    # name: over TLS, share of the clients
    "reads nothing": (False, 1),
    "a byte a second": (False, 1),
    "reads nothing, TLS": (True, 1),
    "HTTP/2": (True, 0.1),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append")
    parser.add_argument("program", nargs="?", default=pathlib.Path(__file__).parent.parent / "target/release/millpond")
    options = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        run(options, work)
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
        shutil.rmtree(work)


def run(options, work):
    store = work / "upstream"
    store.mkdir()
    large, parts = blob(store, LARGE), [blob(store, PART) for _ in range(PARTS)]
    colds = [blob(store, COLD) for _ in range(2 * options.rounds)]
    openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subprocess.run([*openssl.split(), "-keyout", work / "key.pem", "-out", work / "cert.pem"], check=True, stderr=subprocess.DEVNULL)
    upstream = registry(store)
    print(f"{os.cpu_count()} processors, {options.program}\n")
    print("| crowd | pull beside it | alone, MB/s | beside, MB/s | ratio | own memory, MB | kernel's TCP memory, MB |\n|---|---|---|---|---|---|---|")
    for kind, (tls, share) in KINDS.items():
        if options.only and kind not in options.only:
            continue
        alone, beside, memory, kernel = [], [], 0, 0
        with contextlib.closing(Mirror(work, options.program, upstream, tls)) as mirror:
            for digest, size in [(large, LARGE), *((part, PART) for part in parts)]:
                pull(mirror, digest, size)
            for n in range(options.rounds):
                alone.append(measure(mirror, (large, parts), colds[2 * n]))
                with crowded(mirror, int(options.clients * share), large, kind):
                    beside.append(measure(mirror, (large, parts), colds[2 * n + 1]))
                    memory, kernel = max(memory, mirror.memory()), max(kernel, kernel_memory())
        for what in alone[0]:
            before, after = (statistics.median(run[what] for run in runs) for runs in (alone, beside))
            count = int(options.clients * share)
            print(f"| {count}: {kind} | {what} | {before:.0f} | {after:.0f} | {after / before:.2f} | {memory:.0f} | {kernel:.0f} |", flush=True)


if __name__ == "__main__":
    main()
