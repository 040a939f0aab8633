"""The yardstick (tuned C) as the benches use it: built once, run on files, its printed figures read back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = "FASTMMU_YARDSTICK"


class TlbFigures(NamedTuple):
    """Time per access (best of the runs), first-level hits, second-level hits, misses."""

    ns: float
    hits1: int
    hits2: int
    misses: int


def build(where: Path) -> Path:
    """Compile the yardstick into a directory; its source comes from the variable FASTMMU_YARDSTICK."""
    source = Path(os.environ.get(SOURCE, Path(__file__).parents[2] / "shared" / "yardstick"))
    if source.is_dir():
        source /= "yardstick.c"
    if not source.exists():
        raise SystemExit(f"no yardstick at {source}; set {SOURCE} to yardstick.c")
    program = where / "yardstick"
    subprocess.run(["cc", "-O3", "-march=native", "-o", str(program), str(source)], check=True)
    return program


def yardstick_tlb(program: Path, addresses: Path, geometry: str, runs: int = 1) -> TlbFigures:
    """`yardstick tlb SETS1,WAYS1,SETS2,WAYS2 va.u64`."""
    output = subprocess.run(
        [str(program), "tlb", geometry, str(addresses), str(runs)], check=True, capture_output=True, text=True
    ).stdout.split()
    return TlbFigures(float(output[1]), int(output[2]), int(output[3]), int(output[4]))
