#!/usr/bin/env python3
"""What clients notice besides the speed of a hit: slow upstreams, what a tag costs the upstream, what a login costs.

    benches/clients.py [--program target/release/millpond] [slow] [budget] [login]        default: all three

slow    a blob of 256 MB from nginx that grants each connection 5 MB/s: over one connection, over four, and with a second
        endpoint that takes over when the first is killed half way. Every byte is compared by sha256. Three minutes.
budget  1000 pulls of a tag that is held, evenly over `--seconds` (600; another number scales `tag_ttl`, a minute, with it), each a
        HEAD of the tag, a GET of the manifest and one of the configuration. The upstream's access log says what it was asked.
login   requests a second for a manifest in memory, by wrk, with htpasswd and without, in turn.

Everything is on loopback. Wants nginx, docker-registry, wrk, perl, and the fixtures of tests/clients (for budget and login). Prints tables;
ends what it started.
"""

import argparse, base64, hashlib, http.client, json, os, pathlib, re, signal, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent.parent
BLOB = 256_000_000
RATE = 5_000_000
PULLS = 1000
running = []


def start(work, name, command, pattern):
    """Starts a program; the port that its log names after the pattern."""
    log = work / f"{name}-{len(running)}.log"
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log.open("w"), stderr=subprocess.STDOUT)
    running.append(process)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(pattern + r"(\d+)", log.read_text())
        if found:
            return process, int(found[1]), log
        time.sleep(0.01)
    sys.exit(f"{name} did not start:\n{log.read_text()[-2000:]}")


def stop(process):
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)


def millpond(work, program, endpoints, access="", cache="", upstream=""):
    folder = pathlib.Path(tempfile.mkdtemp(dir=work))
    config = folder / "mirror.toml"
    config.write_text(
        f'[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n[access]\n{access}\n[cache]\ndir = "{folder}/cache"\n{cache}\n'
        f'[upstreams."docker.io"]\nendpoints = {json.dumps(endpoints)}\nsearch = "none"\n{upstream}\n'
    )
    return start(work, "millpond", [program, "serve", "--config", str(config)], r"registry API on http://127\.0\.0\.1:")


def nginx(work, port, files):
    """One process that can be killed as one, on a port that was free a moment ago."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=work))
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr notice;\nevents {{}}\nhttp {{ access_log {folder}/access.log;\n"
        f"client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; "
        f"scgi_temp_path {folder}/e;\nserver {{ listen 127.0.0.1:{port}; root {files}; limit_rate {RATE}; }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    running.append(process)
    for _ in range(500):
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
            return process, folder / "access.log"
        except OSError:
            time.sleep(0.02)
    sys.exit("nginx did not start")


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def take(port, path, digest, half=None):
    """Seconds until the first byte and until the last; calls `half` when half of it is here."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"{path}: {answer.status} {answer.read()[:500]}")
    hashed, length, first, stall, last = hashlib.sha256(), 0, None, 0.0, began
    while chunk := answer.read1(1 << 20):
        now = time.monotonic()
        first = first or now - began
        stall = max(stall, now - last) if length else 0.0
        last = now
        hashed.update(chunk)
        length += len(chunk)
        if half and length >= BLOB // 2:
            half()
            half = None
    if "sha256:" + hashed.hexdigest() != digest or length != BLOB:
        sys.exit(f"{path}: {length} bytes with another digest")
    return first, time.monotonic() - began, stall


def slow(work, program):
    data = os.urandom(BLOB)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    folder = work / "files/v2/library/slow/blobs"
    folder.mkdir(parents=True)
    (folder / digest).write_bytes(data)
    path = f"/v2/library/slow/blobs/{digest}"
    print(f"\n256 MB, {RATE // 1_000_000} MB/s a connection\n\n| | s | MB/s | first byte, s | longest silence, s | upstream requests | bytes asked of the upstreams / blob |\n|---|---|---|---|---|---|---|")
    for what, parallel, dies in [
        ("`parallel = 1`", 1, False),
        ("`parallel = 4`", 4, False),
        ("`parallel = 1`, the first of two endpoints dies half way", 1, True),
        ("`parallel = 4`, the first of two endpoints dies half way", 4, True),
    ]:
        ports = [free_port() for _ in range(2 if dies else 1)]
        servers = [nginx(work, port, work / "files") for port in ports]
        endpoints = [f"http://127.0.0.1:{port}" for port in ports]
        mirror, port, _ = millpond(work, program, endpoints, upstream=f"parallel = {parallel}")
        first, seconds, silence = take(port, path, digest, (lambda: servers[0][0].kill()) if dies else None)
        stop(mirror)
        time.sleep(0.2)
        for process, _ in servers:
            if process.poll() is None:
                stop(process)
        lines = [line for _, log in servers for line in log.read_text().splitlines() if " /v2/library" in line]
        sent = sum(int(re.search(r'" \d+ (\d+) ', line)[1]) for line in lines)
        # What the killed one had sent is in no log.
        asked = "-" if dies else f"{sent / BLOB:.2f}"
        requests = f"{len(lines)} logged" if dies else str(len(lines))
        print(f"| {what} | {seconds:.1f} | {BLOB / seconds / 1e6:.1f} | {first:.3f} | {silence:.2f} | {requests} | {asked} |", flush=True)


def registry(work):
    storage = sorted(HERE.glob("target/clients-fixtures/v*/registry"))
    if not storage:
        sys.exit("no fixtures: run cargo test --test clients first")
    config = work / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {storage[-1]}}}\n"
        "  maintenance: {uploadpurging: {enabled: false}}\nhttp: {addr: 127.0.0.1:0}\n"
    )
    return start(work, "registry", ["docker-registry", "serve", str(config)], r"listening on 127\.0\.0\.1:")


TYPES = ", ".join(
    ["application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
    + ["application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json", "*/*"]
)


def ask(port, method, target):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, target, headers={"Accept": TYPES})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        sys.exit(f"{method} {target}: {answer.status}")
    return answer, body


def budget(work, program, seconds):
    upstream, there, log = registry(work)
    ttl = f"{seconds * 100}ms" # a minute of ten
    mirror, port, _ = millpond(work, program, [f"http://127.0.0.1:{there}"], cache=f'tag_ttl = "{ttl}"')
    base = "/v2/library/debian"

    def pull():
        resolved, _ = ask(port, "HEAD", f"{base}/manifests/latest?ns=docker.io")
        digest = resolved.getheader("Docker-Content-Digest")
        _, manifest = ask(port, "GET", f"{base}/manifests/{digest}?ns=docker.io")
        ask(port, "GET", f"{base}/blobs/{json.loads(manifest)['config']['digest']}?ns=docker.io")

    pull()
    time.sleep(1)
    seen = len(log.read_text())
    began = time.monotonic()
    for n in range(PULLS):
        time.sleep(max(0.0, began + n * seconds / PULLS - time.monotonic()))
        pull()
    took = time.monotonic() - began
    time.sleep(1)
    asked = re.findall(r'"(GET|HEAD) /v2/[^"]*" \d+', log.read_text()[seen:])
    stop(mirror)
    stop(upstream)
    print(f"\n{PULLS} pulls of a held tag in {took:.0f} s, `tag_ttl` {ttl}\n\n| pulls | upstream HEADs | upstream GETs |\n|---|---|---|")
    print(f"| {PULLS} | {asked.count('HEAD')} | {asked.count('GET')} |", flush=True)


def login(work, program, rounds):
    upstream, there, _ = registry(work)
    crypted = subprocess.check_output(["perl", "-e", 'print crypt("secret", q($2y$10$abcdefghijklmnopqrstuu))'], text=True)
    (work / "htpasswd").write_text(f"ann:{crypted}\n")
    header = "Authorization: Basic " + base64.b64encode(b"ann:secret").decode()
    ways = {"open": ("", []), "htpasswd": (f'htpasswd = "{work}/htpasswd"', ["-H", header])}
    mirrors = {name: millpond(work, program, [f"http://127.0.0.1:{there}"], access=access) for name, (access, _) in ways.items()}
    found = {name: [] for name in ways}
    for n in range(rounds + 1):
        for name, (_, headers) in ways.items():
            url = f"http://127.0.0.1:{mirrors[name][1]}/v2/library/debian/manifests/latest"
            said = subprocess.check_output(["wrk", "-t1", "-c32", "-d4", "-H", f"Accept: {TYPES}", *headers, url], text=True)
            if "Non-2xx" in said or "Socket errors" in said:
                sys.exit(said)
            if n: # the first fills the cache and proves the password
                found[name].append(float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]))
    for mirror, _, _ in mirrors.values():
        stop(mirror)
    stop(upstream)
    plain = statistics.median(found["open"])
    print(f"\nA manifest in memory, wrk -t1 -c32, {rounds} rounds of 4 s in turn\n\n| | requests a second, median | all rounds | of open |\n|---|---|---|---|")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):.0f} | {', '.join(f'{rate:.0f}' for rate in rates)} | {statistics.median(rates) / plain:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="slow, budget, login")
    parser.add_argument("--program", default=str(HERE / "target/release/millpond"))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    parts = options.parts or ["slow", "budget", "login"]
    if unknown := set(parts) - {"slow", "budget", "login"}:
        parser.error(f"no such part: {unknown}")
    with tempfile.TemporaryDirectory(prefix="millpond-clients-") as folder:
        work = pathlib.Path(folder)
        try:
            for part in parts:
                {"slow": lambda: slow(work, options.program), "budget": lambda: budget(work, options.program, options.seconds), "login": lambda: login(work, options.program, options.rounds)}[part]()
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()


main()
