"""What a program pays before it begins: `import fastmmu` and `fastmmu --help`, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.race import Race, Rival, Scale, timed

FORMS = {
    "import fastmmu": ("import fastmmu", "pass"),
    "import all of fastmmu": ("from fastmmu import *", "import numpy"),
}


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.benchmark(group="import")
@pytest.mark.parametrize("form", FORMS)
def test_import(race: Race, form: str) -> None:
    """Beside a process that does nothing, or imports NumPy alone."""
    ours, theirs = FORMS[form]
    said = "; import sys; print('fastmmu' in sys.modules)"
    rival = Rival(f"python -c '{theirs}'", timed(lambda: python("-c", theirs + said)), 1)
    assert race(lambda: python("-c", ours + said), 1, [rival]) == "True\n"


@pytest.mark.benchmark(group="import")
def test_help(race: Race, scale: Scale) -> None:
    nothing = Rival("python -c 'pass'", timed(lambda: python("-c", "pass")), 1)
    assert "compare" in race(lambda: python("-m", "fastmmu", "--help"), 1, [nothing])
