#!/usr/bin/env python3
"""A data folder with a million blobs: the start, the count, hits meanwhile, eviction, memory and the stop.

    benches/million.py [--blobs 1000000] [--folder DIR] [--only ROW]... [path to millpond]       default: target/release/millpond

Each row is a start: of ten blobs; of a million with their index as it was left, killed, removed, or full of noise; with half the room that they take (500,000 go);
with many repositories. It prints how long the start took until a hit was answered, how long the count of what is held went on behind it, what one
client waits for a hot blob meanwhile and afterwards (wrk, one connection, p50/p99 in microseconds), the mirror's own memory, and the stop.
The blobs have 8 bytes each and take 4 KiB and an inode each. With --folder they stay for the next run; else they are removed. Needs python3 and wrk.
"""

import argparse
import contextlib
import hashlib
import http.client
import http.server
import json
import multiprocessing
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

REPO = "repos/docker.io/library/bench"
HOT = {"40 kB": 40_000, "100 KiB": 100 << 10}  # from memory, and from an open file
REPOSITORIES, TAGS = 100_000, 2
SETTLE = 1.0  # seconds of a measurement at rest


def place(data, content):
    """A blob in its place, unless it is there; says its digest."""
    digest = hashlib.sha256(content).hexdigest()
    with contextlib.suppress(FileExistsError):
        file = os.open(f"{data}/blobs/sha256/{digest[:2]}/{digest}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, content)
        os.close(file)
    return digest


def fill(data, count):
    """So many tiny blobs, and the hot ones with their links; says the digests of those."""
    for shard in range(256):
        (data / f"blobs/sha256/{shard:02x}").mkdir(parents=True, exist_ok=True)
    if sum(len(os.listdir(shard)) for shard in (data / "blobs/sha256").iterdir()) < count + len(HOT):
        for n in range(count):
            place(data, n.to_bytes(8, "little"))
    links = data / REPO / "_blobs/sha256"
    links.mkdir(parents=True, exist_ok=True)
    hot = {name: place(data, random.Random(size).randbytes(size)) for name, size in HOT.items()}
    for digest in hot.values():
        (links / digest).touch()
    return hot


def tag_many(data, digest):
    """Many repositories with a tag or two each."""
    record = f'{{"digest":"sha256:{digest}","checked":{int(time.time())}}}'
    for n in range(REPOSITORIES):
        tags = data / f"repos/docker.io/org{n % 1000}/app{n // 1000}/_tags"
        if not tags.is_dir():
            tags.mkdir(parents=True)
            for tag in range(TAGS):
                (tags / f"v{tag}").write_text(record)


class Registry(http.server.BaseHTTPRequestHandler):
    """An upstream with one blob."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.end_headers()
        self.wfile.write(b"upstream")

    def log_message(self, *_):
        pass


class Mirror:
    """A running millpond. Watches its memory and what it counts."""

    running = []

    def __init__(self, program, work, data, upstream, max_size):
        (work / "mirror.toml").write_text(
            f'[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n[cache]\ndir = "{data}"\nmax_size = "{max_size}B"\n'
            f'[upstreams."docker.io"]\nendpoints = ["http://127.0.0.1:{upstream}"]\n'
        )
        self.log, self.peak = work / "log", 0
        self.began = time.monotonic()
        self.process = subprocess.Popen([program, "serve", "--config", work / "mirror.toml"], stdout=self.log.open("wb"), stderr=subprocess.STDOUT)
        self.running.append(self.process)
        while not (found := re.search(rb"registry API on http://127.0.0.1:(\d+)[^/]*//127.0.0.1:(\d+)|$", self.log.read_bytes()))[1]:
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text())
            time.sleep(0.002)
        self.port, self.admin = int(found[1]), int(found[2])
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        with contextlib.suppress(OSError, TypeError):
            while True:
                self.peak = max(self.peak, self.memory())
                time.sleep(0.02)

    def memory(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024 / 1e6

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, answer.status, body, self.log.read_text())
        return body

    def metric(self, name):
        return float(re.search(rf"^{name}(?:\{{.*\}})? (\S+)", self.get("/metrics", self.admin).decode(), re.M)[1])

    def until(self, done, limit=600):
        """Seconds since the start."""
        while not done():
            assert time.monotonic() < self.began + limit, self.log.read_text()
            time.sleep(0.02)
        return time.monotonic() - self.began

    @contextlib.contextmanager
    def hits(self, digest, into):
        """What one client waits for a hit meanwhile."""
        url = f"http://127.0.0.1:{self.port}/v2/library/bench/blobs/sha256:{digest}"
        load = subprocess.Popen(["wrk", "-t1", "-c1", "-d600s", "--latency", url], stdout=subprocess.PIPE, text=True)
        yield
        load.send_signal(signal.SIGINT)
        out = load.communicate()[0]
        assert "Non-2xx" not in out and "Socket errors" not in out, out
        units = {"us": 1, "ms": 1e3, "s": 1e6}
        found = dict((part, f"{float(value) * units[unit]:.0f}") for part, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", out))
        into.append(f"{found['50']}/{found['99']}" if found else "-")  # too short to say

    def rest(self, hot):
        waits = []
        for digest in hot.values():
            with self.hits(digest, waits):
                time.sleep(SETTLE)
        return waits

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        began = time.monotonic()
        self.process.wait()
        return time.monotonic() - began


def row(options, work, name, count, upstream, prepare=None, max_size=50 << 30):
    """One start, and what is to be said of it."""
    data = (options.folder or work) / ("ten" if count == 10 else "data")
    hot = fill(data, count)
    total = 8 * count + sum(HOT.values())
    start = lambda: Mirror(options.program, work, data, upstream, max_size)
    if prepare:
        prepare(data, start, hot)
    mirror, meanwhile = start(), []
    mirror.get(f"/v2/library/bench/blobs/sha256:{hot['40 kB']}")
    listening = time.monotonic() - mirror.began
    mirror.get(f"/v2/library/bench/blobs/sha256:{hot['100 KiB']}")
    with mirror.hits(hot["40 kB"], meanwhile):
        if max_size < total:
            # The limit is lower than what is held: room is made for the first blob that comes.
            while not mirror.metric("millpond_cache_evicted_bytes_total") or mirror.metric("millpond_cache_bytes") > max_size:
                mirror.get(f"/v2/library/bench/blobs/sha256:{hashlib.sha256(b'upstream').hexdigest()}")
                time.sleep(0.02)
            counted, done = time.monotonic() - mirror.began, mirror.metric("millpond_cache_evicted_bytes_total") / 8
        else:
            done = count
            counted = mirror.until(lambda: mirror.metric("millpond_cache_bytes") >= total)
    cpu, peak, mirror.peak = mirror.cpu(), mirror.peak, 0
    waits = mirror.rest(hot)
    resting = mirror.memory()
    catalog = ""
    if name == "many repositories":
        began = time.monotonic()
        page = mirror.get("/v2/_catalog?n=100")
        first = time.monotonic() - began
        began, pages, last = time.monotonic(), 0, ""
        while page:
            names = json.loads(page)["repositories"]
            pages += 1
            if not names:
                break
            last = names[-1]
            page = mirror.get(f"/v2/_catalog?n=1000&last={last}")
        catalog = f"; catalogue: first page {first:.3f} s, {pages} pages {time.monotonic() - began:.1f} s"
    stop = mirror.stop()
    rate = done / max(counted - listening, 0.001) / 1e3
    print(
        f"| {name} | {listening:.3f} | {counted:.1f} ({rate:.0f} k/s{catalog}) | {cpu:.1f} | {meanwhile[0]} | {waits[0]} | {waits[1]} | {peak:.0f} | {resting:.0f} | {stop:.2f} |",
        flush=True,
    )


def whole(data, start, hot):
    """A run that counted everything and ended well."""
    mirror = start()
    total = sum(entry.stat().st_size for shard in os.scandir(data / "blobs/sha256") for entry in os.scandir(shard))
    mirror.until(lambda: mirror.metric("millpond_cache_bytes") >= total)
    mirror.stop()


def killed(data, start, hot):
    mirror = start()
    mirror.get(f"/v2/library/bench/blobs/sha256:{hot['40 kB']}")
    time.sleep(1)
    mirror.stop(signal.SIGKILL)


def noise(data, *_):
    for file in (data / "index").rglob("*"):
        if file.is_file():
            file.write_bytes(random.randbytes(1 << 20))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--blobs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--only", action="append")
    parser.add_argument("program", nargs="?", default=pathlib.Path(__file__).parent.parent / "target/release/millpond")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    many = options.blobs
    rows = {
        "ten blobs": (10, whole, 50 << 30),
        "index removed": (many, lambda data, *_: shutil.rmtree(data / "index", ignore_errors=True), 50 << 30),
        "index kept": (many, None, 50 << 30),
        "killed": (many, killed, 50 << 30),
        "index full of noise": (many, noise, 50 << 30),
        "many repositories": (many, lambda data, _, hot: tag_many(data, hot["40 kB"]), 50 << 30),
        "half the room": (many, None, 4 * many),
    }
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    print(f"{os.cpu_count()} processors, Linux {platform.release()}, commit {commit}, {options.program}, {many} blobs\n")
    print("| start | first hit, s | counted, or evicted down to the limit, s (blobs/s) | CPU, s | 40 kB meanwhile | 40 kB after | 100 KiB after | RssAnon peak, MB | at rest | stop, s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    try:
        with tempfile.TemporaryDirectory() as work:
            for name, (count, prepare, max_size) in rows.items():
                if not options.only or name in options.only:
                    row(options, pathlib.Path(work), name, count, upstream.server_address[1], prepare, max_size)
    finally:
        for process in Mirror.running:
            process.kill()


if __name__ == "__main__":
    main()
