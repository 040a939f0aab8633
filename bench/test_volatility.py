"""volatility3's plug-ins that go through an address space, with its layer taken over and without, in turns.

Of a recorded guest with a list of processes in it (tests/support/volatility_plugins.py); an item is a line printed.
What is not the enumeration takes as long with both: a scan of what is mapped, the table of strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.race import Race, Rival, Scale, timed
from fastmmu.adapters import volatility
from fastmmu.image import read_guest
from tests.support.recordings import all_of, sample_of
from tests.support.volatility_plugins import Plugin, processes, raw_image, run

pytest.importorskip("volatility3", reason="skipped: volatility3 is not installed")


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    yield
    volatility.uninstall()


@pytest.mark.benchmark(group="volatility3: plug-ins, a line")
@pytest.mark.parametrize("name", ["windows.memmap", "windows.strings"])
def test_plugins(race: Race, scale: Scale, tmp_path: Path, name: str) -> None:
    recorded = all_of("guests", "FASTMMU_GUESTS")
    place = recorded if recorded.is_dir() else sample_of("guests")
    place /= "l4kpti_idle" if scale.rounds == 1 else "l4_user"
    guest, path = read_guest(place), tmp_path / "guest.raw"
    raw_image(guest.memory, path)
    config = processes(guest.memory, guest.state.cr3, [guest.state.cr3], path, "WindowsIntel32e", tmp_path)
    strings = tmp_path / "strings.txt"
    strings.write_text("".join(f"{pa} word at {pa:x}\n" for pa in range(9, 1 << 23, 0x1000)))
    plugin: Plugin = ("windows.memmap.Memmap", {})
    if name == "windows.strings":
        plugin = ("windows.strings.Strings", {"strings_file": strings.as_uri()})

    def call(ours: bool) -> str:
        volatility.install() if ours else volatility.uninstall()
        return run(plugin, config)[0]

    said = call(False)
    lines = max(1, said.count("\n") - 2)
    assert race(lambda: call(True), lines, [Rival("its own layer", timed(lambda: call(False)), lines)]) == said
