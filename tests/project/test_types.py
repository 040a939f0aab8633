"""What a type checker sees of mistakes: values that do not exist, fields that do not exist."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SNIPPET = """\
import numpy as np
from fastmmu import TLB, Config, Geometry, GuestState, Machine, PhysicalMemory, Policy, geometry
from fastmmu import simulate, translate, walk

memory, state = PhysicalMemory(1 << 16), GuestState()
addresses = np.arange(4, dtype=np.uint64)
walk(memory, state, 0, access="rw")
walk(memory, state, 0, access="q")  # error
translate(memory, state, addresses, access="x")
translate(memory, state, addresses, access="execute")  # error
TLB().lookup(0, "w")
TLB().lookup(0, "q")  # error
TLB.value(0, "3m")  # error
Machine(guest_kernel=False).access(0, "q")  # error

config = Config(mmu="ept", tlb=geometry("skylake", gpm="64/fa"))
config.replace(vpid=True, tlb="zen2", memory=1 << 30)
config.replace(vpdi=True)  # error
config.replace(mmu="epT")  # error
config.replace(exit_every="5")  # error
config.replace(vpid=True).replace(l1d="64/4").geometry.l1d[0].ways
config.replace(True)  # error
Config(replacement=5)  # error
Config(tlb=5)  # error
state.replace(cr3=0x1000, upper_a="lazy")
state.replace(cr5=0)  # error
state.replace(upper_a="never")  # error

simulate(addresses, config, policy=Policy())
simulate(addresses, {"mmu": "ept"})  # error
simulate(addresses, config, policy=Policy)  # error
"""


@pytest.mark.skipif(find_spec("mypy") is None, reason="skipped: mypy is not installed")
def test_a_type_checker_sees_what_would_fail(tmp_path: Path) -> None:
    source = tmp_path / "snippet.py"
    source.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(ROOT / ".mypy_cache")]
    environment = {"MYPYPATH": str(ROOT / "src"), "PATH": ""}
    done = subprocess.run([*command, str(source)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if re.match(r"snippet.py:\d+: error:", line)}
    wanted = {number for number, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# error")}
    assert len(wanted) == 15
    assert found == wanted, done.stdout + done.stderr
