"""Sizes: one parser, in any case of letters."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, ConfigError, read_trace
from fastmmu.cli import main
from fastmmu.sizes import PAGE_SIZES, page_size, parse_bytes
from fastmmu.study import tlb_curve

SRC = Path(__file__).parents[2] / "src" / "fastmmu"
TRUE = Path(__file__).parents[1] / "data" / "true.lackey"


def test_sizes() -> None:
    for unit, power in (("", 0), ("k", 10), ("m", 20), ("g", 30), ("t", 40)):
        longer = (f"{unit}ib", f"{unit.upper()}iB") if unit else ()
        for text in (unit, unit.upper(), f" {unit}b", f"{unit.upper()}B", *longer):
            assert parse_bytes(f" 12{text} ") == 12 << power
    assert parse_bytes(5) == parse_bytes(np.int64(5)) == parse_bytes("5") == 5
    assert parse_bytes("1_000") == 1000
    for wrong in (
        "",
        "k",
        "1.5G",
        "-1",
        "1e3",
        "4kk",
        "4 k b",
        "64ib",
        "\u0661k",
        "0x10",
        -1,
        True,
        1.5,
        None,
        b"4k",
        [4],
    ):
        with pytest.raises(
            ConfigError, match=re.escape(f"{wrong!r} is no size; write bytes, or a whole number with k")
        ):
            parse_bytes(wrong)  # type: ignore[arg-type]


def test_page_sizes() -> None:
    for name, size in PAGE_SIZES.items():
        number, unit = name[:-1], name[-1]
        for text in (name, name.upper(), f"{number} {unit.upper()}iB", str(size), f"{size >> 10}K"):
            assert page_size(text) == name
    assert [page_size(text) for text in ("THP", "Untouched", "8K", "x")] == ["thp", "untouched", "8k", "x"]


def test_configurations_take_them() -> None:
    config = Config(pages="2M", host_pages="4KiB")  # type: ignore[arg-type]
    assert config == Config(pages="2m", host_pages="4k")
    assert config.replace(pages="4K").pages == "4k"  # type: ignore[arg-type]
    assert Config(memory="1GB").memory_bytes == 1 << 30
    with pytest.raises(ConfigError, match="host_pages='1g': choose from '4k', '2m', 'untouched'"):
        Config(host_pages="1G")  # type: ignore[arg-type]
    assert tlb_curve(read_trace(TRUE), pages="2M").pages == "2m"


LINES = ["run --host-pages {}", "run --pages {}", "compare --pages {}", "vpid --rates 1 --pages {}",
         "tlb-curve --pages {}", "host --pages {}", "host --host-pages {}"]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_commands_take_them(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = set()
    for size in ("2m", "2M", "2MB"):
        assert main([*line.format(size).split(), str(TRUE), "--json", "-"]) == 0
        found.add(re.sub(r'"(seconds|accesses_per_second|command)": [^,]+', "", capsys.readouterr().out))
    assert len(found) == 1


def test_no_other_parser() -> None:
    """Units are written down there for sizes, and in the options for numbers."""
    sources = [path for path in SRC.rglob("*") if path.suffix in (".py", ".pyx", ".pxd")]
    found = {str(path.relative_to(SRC)) for path in sources if re.search(r"""["']k["']: 1""", path.read_text())}
    assert found == {"sizes.py", "cli/options.py"}
