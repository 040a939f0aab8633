"""TLB counts against an independent count: the yardstick's two-level true-LRU TLB of 4 KB pages, in C.

FASTMMU_YARDSTICK: its source; default ../shared/yardstick/yardstick.c beside the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import Config, Op, simulate
from tests.support.event_lists import real_trace

SOURCE = Path(os.environ.get("FASTMMU_YARDSTICK") or Path(__file__).parents[3] / "shared/yardstick/yardstick.c")
GEOMETRIES = [("64/4", "1536/12"), ("16/2", "64/8"), ("8/8", "512/4")]
N = 200_000


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SOURCE.is_file():
        pytest.skip(f"no yardstick at {SOURCE}; set FASTMMU_YARDSTICK to its source")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("yardstick") / "yardstick"
    subprocess.run([*compiler.split(), "-O2", "-w", "-o", str(program), str(SOURCE)], check=True)
    return program


@pytest.fixture(scope="module", params=["sequential", "uniform", "real"])
def stream(request: pytest.FixtureRequest) -> npt.NDArray[np.uint64]:
    if request.param == "sequential":
        return 0x10_0000_0000 + np.arange(N, dtype=np.uint64) * 256 % (4 << 20)
    if request.param == "uniform":
        return 0x10_0000_0000 + np.random.default_rng(0).integers(0, 16 << 20, N).astype(np.uint64)
    batches = [batch.addr[batch.op != Op.FETCH] for batch in real_trace(2 * N).data_only().batches()]
    return np.concatenate(batches)


@pytest.mark.parametrize(("l1d", "stlb"), GEOMETRIES)
def test_hits_and_misses_are_those_of_the_yardstick(
    yardstick: Path, tmp_path: Path, stream: npt.NDArray[np.uint64], l1d: str, stlb: str
) -> None:
    stream.tofile(tmp_path / "va.u64")
    sizes = [(int(entries) // int(ways), int(ways)) for entries, ways in (x.split("/") for x in (l1d, stlb))]
    geometry = ",".join(str(number) for pair in sizes for number in pair)
    command = [str(yardstick), "tlb", geometry, str(tmp_path / "va.u64"), "1"]
    name, _, *counts = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert name == "tlb"
    counters = simulate(stream, Config(premapped=True, l1d=l1d, stlb=stlb)).counters
    assert [counters[key] for key in ("l1d_hits", "stlb_hits", "tlb_misses")] == [int(count) for count in counts]
    assert counters["accesses"] == len(stream) == sum(map(int, counts))
    assert counters["tlb_misses"] > 0
