"""Lines per second of lackey text: read_trace(...).batches(), a plain Python parser, and wc -l, on one file.

    python bench/traces.py [--lines N] [--runs R] [TRACE]

The text is that of TRACE (default: the bundled traces one after the other), repeated to at least N lines in a temporary
file, which is uncompressed and in the page cache. Seconds are those of the processor, user and system, since each of
the three uses one core and the machine may be shared. Target: 20 times the plain Python parser.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastmmu.trace import CHUNK, bundled, read_trace, write_trace

OPS = {"I  ": 3, " L ": 0, " S ": 1, " M ": 2}


def plain_python(path: Path) -> int:
    """What one writes first: a loop over the lines that keeps operation, size and address of each."""
    events: list[tuple[int, int, int]] = []
    total = 0
    with path.open() as file:
        for line in file:
            if line.startswith("=="):
                continue
            addr, size = line[3:].split(",")
            events.append((OPS[line[:3]], int(size), int(addr, 16)))
            if len(events) == CHUNK:  # as a batch goes to the simulator
                total += CHUNK
                events = []
    return total + len(events)


def fastmmu_reader(path: Path) -> int:
    """Events that the reader gives."""
    return sum(len(batch) for batch in read_trace(path, "lackey").batches())


def wc(path: Path) -> int:
    """Lines that wc counts."""
    return int(subprocess.run(["wc", "-l", str(path)], check=True, capture_output=True, text=True).stdout.split()[0])


def write_text(sources: list[Path], lines: int, path: Path) -> int:
    """Write at least `lines` lines; the number of them."""
    part = path.with_suffix(".part")
    text = b""
    for source in sources:
        write_trace(read_trace(source), part, format="lackey")
        text += part.read_bytes()
    once = text.count(b"\n")
    with path.open("wb") as out:
        for _ in range(-(-lines // once)):
            out.write(text)
    return once * -(-lines // once)


def processor_seconds() -> float:
    """User and system time of this process and of those it ran."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    readers: dict[str, Callable[[Path], int]] = {"fastmmu": fastmmu_reader, "wc -l": wc, "plain Python": plain_python}
    times: dict[str, list[float]] = {name: [] for name in readers}
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "text.lackey"
        lines = write_text([args.trace] if args.trace else list(bundled().values()), args.lines, path)
        print(f"{lines:,} lines of {path.stat().st_size / lines:.1f} bytes, {args.runs} runs")
        for _ in range(args.runs):
            for name, reader in readers.items():
                start = processor_seconds()
                found = reader(path)
                times[name].append(processor_seconds() - start)
                assert found == lines, f"{name} found {found} lines"
    plain = statistics.median(times["plain Python"])
    print(f"{'median of runs':<16}{'M lines/s':>10}{'(best)':>10}{'x plain Python':>16}")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<16}{lines / median / 1e6:>10.1f}{lines / min(taken) / 1e6:>10.1f}{plain / median:>16.1f}")


if __name__ == "__main__":
    main()
