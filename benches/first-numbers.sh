#!/bin/bash
# First numbers: one layer of 300 MB, straight from its registry, through docker-registry as a pull-through proxy, and through millpond.
#
#   benches/first-numbers.sh [path to millpond]        default: target/release/millpond
#
# Everything is on loopback and on this machine's one disk, so the numbers compare the three; they do not predict a network. The upstream is Debian's
# docker-registry over the fixtures of tests/clients (`cargo test --test clients` makes them); its access log says what it was asked for.
# Prints a table; ends what it started.
set -euo pipefail
cd "$(dirname "$0")/.."

millpond=$(realpath "${1:-target/release/millpond}")
storage=$(realpath "$(ls -d target/clients-fixtures/v*/registry 2>/dev/null | tail -1)") || { echo "no fixtures: run cargo test --test clients first" >&2; exit 1; }
[ -x "$millpond" ] || { echo "no $millpond: cargo build --release" >&2; exit 1; }
many=32 # clients at once

work=$(mktemp -d)
declare -A pids=()
stop() { # name: SIGTERM, and wait for the end
    [ -n "${pids[$1]:-}" ] || return 0
    kill "${pids[$1]}" 2>/dev/null || true
    wait "${pids[$1]}" 2>/dev/null || true
    unset "pids[$1]"
}
trap 'for name in "${!pids[@]}"; do stop "$name"; done; rm -rf "$work"' EXIT

now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.3f", b - a }'; }

# start NAME PATTERN COMMAND…: sets `port` to what the log says after PATTERN.
start() {
    local name=$1 pattern=$2
    shift 2
    : >"$work/$name.log"
    "$@" >"$work/$name.log" 2>&1 &
    pids[$name]=$!
    for _ in $(seq 6000); do
        port=$(grep -o -m1 "$pattern[0-9]*" "$work/$name.log" | grep -o '[0-9]*$' || true)
        [ -n "$port" ] && return
        kill -0 "${pids[$name]}" 2>/dev/null || { tail "$work/$name.log" >&2; exit 1; }
        sleep 0.005
    done
    echo "$name does not start" >&2
    exit 1
}

# registry_config FOLDER EXTRA
registry_config() {
    printf 'version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %s}\n  maintenance: {uploadpurging: {enabled: false}}\n' "$1"
    printf 'http: {addr: 127.0.0.1:0}\n%s\n' "$2"
}

start_proxy() {
    registry_config "$work/proxy" "proxy: {remoteurl: http://127.0.0.1:$upstream}" >"$work/proxy.yml"
    start proxy 'listening on 127.0.0.1:' docker-registry serve "$work/proxy.yml"
}

start_millpond() {
    cat >"$work/mirror.toml" <<END
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[cache]
dir = "$work/millpond"
[upstreams."docker.io"]
endpoints = ["http://127.0.0.1:$upstream"]
END
    start millpond 'registry API on http://127.0.0.1:' "$millpond" serve --config "$work/mirror.toml"
}

# pull PORT: one client; prints its seconds, and fails unless all bytes came.
pull() {
    local said
    said=$(curl -sS -o /dev/null -w '%{time_total} %{http_code} %{size_download}' "http://127.0.0.1:$1/v2/library/big/blobs/$digest")
    [ "${said#* }" = "200 $size" ] || { echo "a pull from port $1 ended with: $said" >&2; return 1; }
    echo "${said%% *}"
}

# best PORT: the quickest of three pulls.
best() { for _ in 1 2 3; do pull "$1"; done | sort -n | head -1; }

# pull_many PORT: all clients at once; prints the seconds until the last has everything.
pull_many() {
    local began failed=0 clients=()
    began=$(now)
    for _ in $(seq "$many"); do
        pull "$1" >/dev/null &
        clients+=($!)
    done
    for client in "${clients[@]}"; do wait "$client" || failed=$((failed + 1)); done
    [ "$failed" = 0 ] || echo "$failed of $many clients failed at port $1" >&2
    since "$began"
}

# The upstream logs a request at its end, and docker-registry may go on fetching after its client is served: wait for two quiet seconds.
settle() {
    local before=-1 after=0
    while [ "$before" != "$after" ]; do
        before=$after
        sleep 2
        after=$(wc -l <"$work/upstream.log")
    done
}

# What the upstream was asked since the last call: requests, and bytes as a multiple of the layer.
asked() {
    settle
    tail -n "+$((seen + 1))" "$work/upstream.log" | awk -v size="$size" '
        match($0, /"(GET|HEAD) \/v2\/[^"]*" [0-9]+ [0-9]+/) { n++; split(substr($0, RSTART, RLENGTH), w, " "); bytes += w[5] }
        END { printf "%d | %.2f", n, bytes / size }'
    echo
}
mark() { settle; seen=$(wc -l <"$work/upstream.log"); }

memory() { awk '/^VmRSS|^RssAnon/ { kb[$1] = $2 } END { printf "%.0f (%.0f)", kb["VmRSS:"] / 1024, kb["RssAnon:"] / 1024 }' "/proc/${pids[$1]}/status"; }
cpu() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); printf "%.2f", ($12 + $13) / hz }' "/proc/${pids[$1]}/stat"; }

# measure NAME: every number of one mirror, as one row of the table. `cold` is the quickest of three starts with nothing held.
measure() {
    local name=$1 cold hot one all at_many begun ready
    for _ in 1 2 3; do
        "start_$name"
        mark
        pull "$port" >>"$work/$name.cold"
        one=$(asked)
        hot=$(best "$port")
        stop "$name"
        rm -rf "${work:?}/$name"
    done
    cold=$(sort -n "$work/$name.cold" | head -1)

    "start_$name"
    mark
    all=$(pull_many "$port")
    at_many=$(asked)
    local rss seconds
    rss=$(memory "$name")
    seconds=$(cpu "$name")
    stop "$name"

    begun=$(now)
    "start_$name"
    ready=$(since "$begun")
    pull "$port" >/dev/null
    stop "$name"
    echo "| $name | $cold | $hot | $all | $one | $at_many | $rss | $seconds | $ready |"
}

registry_config "$storage" "" >"$work/upstream.yml"
start upstream 'listening on 127.0.0.1:' docker-registry serve "$work/upstream.yml"
upstream=$port seen=0
# The biggest layer of the manifest, which has one descriptor a line group: digest, then size.
read -r size digest < <(curl -sS -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://127.0.0.1:$upstream/v2/library/big/manifests/latest" |
    tr -d ' \n' | grep -o '"digest":"[^"]*","size":[0-9]*' | sed 's/"digest":"\([^"]*\)","size":\(.*\)/\2 \1/' | sort -n | tail -1)

pull "$upstream" >/dev/null # the fixture comes from the page cache from here on
echo "layer of $size bytes; $(nproc) processors; $millpond; $(docker-registry --version | tr -s ' ')"
echo
echo "| | cold, s | hot, s | $many at once, cold, s | upstream requests, 1 client | upstream bytes / layer, 1 client | requests, $many | bytes / layer, $many | RSS (anonymous) after $many, MiB | CPU for $many, s | start with a warm cache, s |"
echo "|---|---|---|---|---|---|---|---|---|---|---|"
straight=$(best "$upstream")
mark
all=$(pull_many "$upstream")
echo "| straight | $straight | $straight | $all | 1 | 1.00 | $(asked) | - | - | - |"
measure proxy
measure millpond
