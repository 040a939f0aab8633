"""Which commands there are, and what it takes to list them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from fastmmu import Config, study
from fastmmu.cli import main, options
from fastmmu.cli.commands import OWN, commands
from fastmmu.machine import replay
from fastmmu.study.consolidate.command import METHODS
from fastmmu.study.replay import command
from fastmmu.study.schemes import RECLAIM
from fastmmu.trace.tpr import PROFILES

ROOMS = sorted(path.parent for path in Path(study.__path__[0]).glob("*/__init__.py"))


def test_every_study_has_its_command() -> None:
    assert len(ROOMS) > 5
    found = commands()
    assert {command.module for command in found} - {command.module for command in OWN} == {
        f"fastmmu.study.{room.name}.command" for room in ROOMS
    }
    assert len({command.name for command in found}) == len({command.place for command in found}) == len(found)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_the_rooms_of_studies_are_alike(room: Path) -> None:
    files = {path.name for path in room.glob("*.py")}
    assert {"__init__.py", "run.py", "command.py"} <= files
    assert "table.py" in files or room.name == "compare"  # whose table is report.comparison
    more = files - {"__init__.py", "run.py", "command.py", "table.py"}  # what they are is told at length
    assert more or len(importlib.import_module(f"fastmmu.study.{room.name}").__doc__.splitlines()) == 1


def test_a_folder_is_all_that_a_study_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room = tmp_path / "nothing"
    room.mkdir()
    (room / "__init__.py").write_text('COMMAND, HELP, PLACE = "nothing", "does nothing", 99\n')
    (room / "command.py").write_text(
        'USAGE, DESCRIPTION, EPILOG = "[--much]", "Nothing at all.", None\n'
        'def add(parser):\n    parser.add_argument("--much", action="store_true")\n'
        "def handle(options):\n    print(options.much)\n    return 7\n"
    )
    monkeypatch.setattr(study, "__path__", [*study.__path__, str(tmp_path)])
    assert main(["nothing", "--much"]) == 7
    assert capsys.readouterr().out == "True\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.count("does nothing") == 1
    for module in [name for name in sys.modules if name.startswith("fastmmu.study.nothing")]:
        monkeypatch.delitem(sys.modules, module)


def test_what_the_help_names_is_what_there_is() -> None:
    kinds = get_type_hints(Config)
    assert tuple(PROFILES) == options.WORKLOADS
    assert set(options.WAYS) == set(get_args(get_args(kinds["tpr"])[0]))
    assert set(METHODS) == set(get_args(kinds["shootdown"]))
    assert set(RECLAIM) == set(get_args(kinds["host_reclaim"]))
    assert command.OMISSIONS == replay.OMISSIONS


@pytest.mark.parametrize("name", ["", *(command.name for command in commands())])
def test_help_loads_neither_kernels_nor_numpy(name: str) -> None:
    program = (
        "import json, sys\nfrom fastmmu.cli import main\n"
        f"try: main({[*name.split(), '--help']!r})\nexcept SystemExit: pass\n"
        "print(json.dumps([m for m, v in sys.modules.items() if str(getattr(v, '__file__', '')).endswith('.so')]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert [module for module in loaded if module.split(".")[0] in ("fastmmu", "numpy", "msgspec")] == []
