#!/bin/bash
# Captures the bundled traces from real programs with Valgrind's lackey: every instruction fetch, load, store and
# modify of a window of the run, in order, as Valgrind prints them.
#
#   scripts/capture_traces.sh [DIRECTORY]          default: src/fastmmu/traces
#   scripts/capture_traces.sh --big FILE.zst       60 million events of a larger run, for measurements
#
# Needs valgrind, python3 (for its library's sources, as text), sqlite3 (the program), zstd and xz. Takes several
# minutes: Valgrind is slow. Another machine's programs give other traces of the same kind.
set -euo pipefail

for tool in valgrind python3 sqlite3 zstd xz; do
    command -v $tool >/dev/null || { echo "capture_traces.sh needs $tool" >&2; exit 1; }
done
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'kill -KILL $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

# ---- the programs ------------------------------------------------------------------------------------------------

# zstd: compresses program text. Each position looks into hash tables of many MB, so the TLB is missed all the time.
# The run begins with up to 150 million events that zero those tables, byte by byte; the window begins behind them.
make_text() { # bytes
    find "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')" -name '*.py' | LC_ALL=C sort |
        xargs cat >"$work/all"
    head -c "$1" "$work/all" >"$work/text"
}

# sqlite: joins 200,000 sales with 200,000 items through the items' B-tree, in a memory-mapped file: page after page is
# touched for the first time, by much more code. The window begins with the query.
make_shop() {
    sqlite3 "$work/shop.db" <<'SQL'
create table item(id integer primary key, code text, price real);
create table sale(id integer primary key, item int, n int);
with recursive s(i) as (select 1 union all select i + 1 from s where i < 200000)
    insert into item select i, hex(i * 7919 % 1000003) || '-item', i * 0.25 from s;
with recursive s(i) as (select 1 union all select i + 1 from s where i < 200000)
    insert into sale select i, i * 48271 % 200000 + 1, i % 7 from s;
SQL
}
QUERY='pragma mmap_size = 100000000;
select n, count(*), sum(price * n) from sale cross join item on item.id = sale.item group by n;'

# ---- capture -----------------------------------------------------------------------------------------------------

# window SKIP COUNT OUT PROGRAM ARGUMENTS...: events SKIP+1 to SKIP+COUNT of the run, compressed as OUT says
window() {
    local skip=$1 count=$2 out=$3 program running captured compress=(xz -9e -T1)
    if [ "${out##*.}" = zst ]; then compress=(zstd -q -8); fi
    program=$(command -v "$4")
    shift 4
    mkfifo "$work/pipe"
    env -i LC_ALL=C valgrind --tool=lackey --trace-mem=yes --log-fd=9 "$program" "$@" \
        9>"$work/pipe" >"$work/stdout" 2>"$work/stderr" </dev/null &
    running=$!
    set +o pipefail # the filters before head end by SIGPIPE
    grep '^[I ]' "$work/pipe" | tail -n +$((skip + 1)) | head -n "$count" | "${compress[@]}" >"$work/window"
    set -o pipefail
    kill -KILL $running 2>/dev/null || true # the closed pipe does not end Valgrind
    wait $running 2>/dev/null || true
    rm "$work/pipe"
    captured=$("${compress[0]}" -dc <"$work/window" | wc -l)
    if [ "$captured" -ne "$count" ]; then
        echo "capture_traces.sh: $captured events of $count: the run of $program ended too early" >&2
        cat "$work/stderr" >&2
        exit 1
    fi
    mv "$work/window" "$out"
    ls -l "$out"
}

if [ "${1:-}" = --big ]; then
    make_text 12000000
    window 150000000 60000000 "$2" zstd --single-thread -12 -c "$work/text"
    exit
fi

out=${1:-$root/src/fastmmu/traces}
mkdir -p "$out"
make_shop
window 2500000 4000000 "$out/sqlite.lackey.xz" sqlite3 "$work/shop.db" "$QUERY"
make_text 4000000
window 27000000 4000000 "$out/zstd.lackey.xz" zstd --single-thread -9 -c "$work/text"
