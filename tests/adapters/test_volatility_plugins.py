"""volatility3's own plug-ins print the same, byte for byte, with its layers taken over as without."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fastmmu.adapters import volatility
from fastmmu.image import open_image, read_guest
from fastmmu.trace.source import ByteSource
from tests.support.recordings import all_of, sample_of
from tests.support.volatility_plugins import OTHERS, PLUGINS, Plugin, layer_config, processes, raw_image, run

volatility3 = pytest.importorskip("volatility3", reason="skipped: volatility3 is not installed")

IMAGES = all_of("files", "FASTMMU_FILES") / "images"
SAMPLES = {"lime": "lime.zst", "elf": "qemu_core.elf.zst", "dmp": "windows_full.dmp.zst"}
CR3 = 0x1_0000_0000  # of the samples
FOUND = {"regexscan", "yarascan", "yarascan, wide", "configwriter", "layerwriter, list", "windows.statistics"}
"""What has something to print of the samples."""

have_images = pytest.mark.skipif(not IMAGES.is_dir(), reason="skipped: no images; FASTMMU_FILES names the folder")


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    yield
    volatility.uninstall()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("images")

    @cache
    def of(name: str) -> Path:
        path = place / name.removesuffix(".zst")
        with ByteSource(str(IMAGES / name)) as source, path.open("wb") as out:
            while data := source.read(1 << 22):
                out.write(data)
        return path

    return of


def same(plugin: Plugin, config: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """What it prints and writes, without fastmmu; with it the same."""
    if plugin[0].startswith(("yarascan", "windows.mftscan")):
        pytest.importorskip("yara", reason="skipped: yara-python is not installed")
    volatility.uninstall()
    alone = run(plugin, config)
    volatility.install()
    assert run(plugin, config) == alone
    return alone


@have_images
@pytest.mark.parametrize(("file", "kind"), [("elf", "Intel32e"), ("lime", "LinuxIntel32e"), ("dmp", "WindowsIntel32e")])
@pytest.mark.parametrize("name", PLUGINS)
def test_without_symbols(name: str, file: str, kind: str, unpacked: Any) -> None:
    config = layer_config(unpacked(SAMPLES[file]), file, kind, CR3)
    said, _ = same(PLUGINS[name], {f"primary.{key}": value for key, value in config.items()})
    assert (said.count("\n") > 2) == (name in FOUND)


@have_images
def test_crashinfo_and_layerwriter(unpacked: Any) -> None:
    config = layer_config(unpacked(SAMPLES["dmp"]), "dmp", "WindowsIntel32e", CR3)
    said, _ = same(("windows.crashinfo.Crashinfo", {}), {f"primary.{key}": value for key, value in config.items()})
    assert f"{CR3:#x}" in said
    low = unpacked("low.raw.zst")
    config = layer_config(low, "raw", "Intel32e", 0x1000)
    _, files = same(("layerwriter.LayerWriter", {}), {f"primary.{key}": value for key, value in config.items()})
    assert files == {"memory_layer.raw": low.read_bytes()}


def _guests() -> list[Path]:
    recorded = all_of("guests", "FASTMMU_GUESTS")
    place = recorded if recorded.is_dir() else sample_of("guests")
    return [place / "l4kpti_idle", place / "l4_user"]


SLOW = pytest.mark.slow
"""A space of 65,536 aliases of one page, which volatility3 goes through one by one."""


@pytest.mark.parametrize(
    "place", [pytest.param(p, id=p.name, marks=SLOW if "user" in p.name else ()) for p in _guests()]
)
def test_lists_of_the_mappings_of_processes(place: Path, tmp_path: Path) -> None:
    """memmap and strings, of two processes: with KPTI those of the kernel's tables and of the user's."""
    guest = read_guest(place)
    path = tmp_path / "guest.raw"
    raw_image(guest.memory, path)
    cr3 = guest.state.cr3
    roots = [cr3, cr3 ^ 0x1000] if "kpti" in place.name else [cr3, cr3]
    config = processes(guest.memory, cr3, roots, path, "WindowsIntel32e", tmp_path)
    said, files = same(("windows.memmap.Memmap", {"pid": 4}), config)
    assert said.count("\n") > 100
    assert not files
    strings = tmp_path / "strings.txt"
    strings.write_text("".join(f"{pa} word at {pa:x}\n" for pa in range(9, 1 << 23, 0x1000)))
    said, _ = same(("windows.strings.Strings", {"strings_file": strings.as_uri()}), config)
    assert {name for name in ("kernel:", "Process 4:", "Process 8:") if name in said} >= {"kernel:", "Process 4:"}


@have_images
def test_memmap_writes_what_is_mapped(unpacked: Any, tmp_path: Path) -> None:
    image = open_image(IMAGES / SAMPLES["elf"])
    path = tmp_path / "memory.raw"
    raw_image(image.memory, path)
    config = processes(image.memory, CR3, [CR3], path, "WindowsIntel32e", tmp_path)
    said, files = same(("windows.memmap.Memmap", {"dump": True}), config)
    assert said.count("\n") > 20
    assert len(files["pid.4.dmp"]) > 1 << 20


def _plugins() -> dict[str, Any]:
    framework = importlib.import_module("volatility3.framework")
    framework.require_interface_version(2, 0, 0)
    framework.import_files(importlib.import_module("volatility3.plugins"), True)
    found: dict[str, Any] = framework.list_plugins()
    return found


def _needs_symbols(plugin: Any) -> bool:
    requirements = importlib.import_module("volatility3.framework.configuration.requirements")
    kinds = (requirements.ModuleRequirement, requirements.SymbolTableRequirement)
    return any(isinstance(each, kinds) for each in plugin.get_requirements())


def test_each_plugin_is_tried_or_needs_symbols() -> None:
    tried = {name for name, _ in PLUGINS.values()} | set(OTHERS)
    left = [name for name, plugin in _plugins().items() if name not in tried and not _needs_symbols(plugin)]
    assert left == [], "these need no symbols: try them too"


@pytest.mark.parametrize("system", ["linux", "mac", "windows"])
def test_plugins_that_need_symbols(system: str) -> None:
    names = [name for name, plugin in _plugins().items() if name.startswith(system) and _needs_symbols(plugin)]
    assert len(names) > 5
    pytest.skip(
        f"not tried: {len(names) - 2 * (system == 'windows')} plug-ins of {system} want the symbols of the kernel in "
        "the image; the samples hold a program of our own and no kernel, so there are none to be had"
    )


@have_images
def test_the_command_line(unpacked: Any, tmp_path: Path) -> None:
    """`vol`, and `python -m fastmmu.adapters.volatility` in its place."""
    config = layer_config(unpacked(SAMPLES["elf"]), "elf", "Intel32e", CR3)
    (tmp_path / "config.json").write_text(json.dumps({f"primary.{key}": value for key, value in config.items()}))
    words = ["-q", "--offline", "-r", "csv", "-c", str(tmp_path / "config.json")]
    words += ["regexscan.RegExScan", "--pattern", "[A-Z]{4}"]
    (tmp_path / "vol.py").write_text("from volatility3.cli import main\n\nmain()\n")
    said = [
        subprocess.run([sys.executable, *command, *words], capture_output=True, check=True).stdout
        for command in ([str(tmp_path / "vol.py")], ["-m", "fastmmu.adapters.volatility"])
    ]
    assert said[0] == said[1]
    assert said[0].count(b"\n") > 5
