"""A run that is ended half way goes on from its checkpoint, and comes to the same result.

`python examples/checkpoint.py FOLDER` keeps the checkpoint in FOLDER: run it twice, and nothing is simulated again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from fastmmu import Checkpoint, Config, read_trace, simulate
from fastmmu.trace import bundled


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    trace, config = read_trace(bundled()["sqlite"]).head(1_000_000), Config(mmu="ept", vpid=True, memory="2G")
    kept = Checkpoint(folder / "sqlite.ckpt", every=100_000)
    if not (folder / "sqlite.ckpt").exists():
        simulate(trace.head(450_000), config, checkpoint=kept)  # as if it had been ended there
    print(f"checkpoint of {(folder / 'sqlite.ckpt').stat().st_size // 1000} KB")
    again, whole = simulate(trace, config, checkpoint=kept), simulate(trace, config)
    print(f"{again.counters['tlb_misses']:,} TLB misses, {again.cycles_per_access:.2f} cycles an access")
    print("the same" if (again.counters, again.tlb) == (whole.counters, whole.tlb) else "another result")


if __name__ == "__main__":
    main()
