"""What an import loads: a public name when it is used (fastmmu/_lazy.py), while type checkers see them all."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastmmu

SRC = Path(__file__).parents[2] / "src"
LAZY = [path for path in sorted(SRC.rglob("__init__.py")) if "lazy(__name__" in path.read_text()]
PACKAGES = [".".join(path.relative_to(SRC).parts[:-1]) for path in LAZY]
KERNELS = {".".join(path.relative_to(SRC).with_suffix("").parts) for path in SRC.rglob("*.pyx")}


def after(program: str) -> Any:
    """What a program in a new interpreter gives for its expression `found`."""
    text = f"import json, sys\n{program}\nprint(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env={"PYTHONPATH": str(SRC)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_packages_are_found() -> None:
    assert {"fastmmu", "fastmmu.trace", "fastmmu.study", "fastmmu.report", "fastmmu.image"} <= set(PACKAGES)
    assert len(KERNELS) > 20


def test_import_fastmmu_loads_no_kernel() -> None:
    loaded = after("import fastmmu\nfound = sorted(sys.modules)")
    assert [name for name in loaded if name.startswith("fastmmu")] == ["fastmmu", "fastmmu._lazy"]
    assert {"numpy", "msgspec", "typing", "dataclasses"} & set(loaded) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    names: dict[str, Any] = {}
    exec(f"from {package} import *", names)
    assert set(names) - {"__builtins__"} == set(module.__all__)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize(("package", "path"), list(zip(PACKAGES, LAZY, strict=True)), ids=PACKAGES)
def test_type_checkers_see_what_the_table_says(package: str, path: Path) -> None:
    seen = {
        (f"{node.module}", alias.name)
        for block in ast.parse(path.read_text()).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != package
        for alias in node.names
    }
    module = importlib.import_module(package)
    assert seen == {(home, name) for home, names in module._HOMES.items() for name in names}
    modules = {name for name in module.__all__ if isinstance(getattr(module, name), ModuleType)}
    assert {name for _, name in seen} | modules == set(module.__all__)


def test_a_public_name_is_never_a_module_of_that_name() -> None:
    """Whichever is imported first."""
    every = [m.name for m in pkgutil.walk_packages(fastmmu.__path__, "fastmmu.") if not m.name.endswith("__main__")]
    assert "fastmmu.study.compare" in every
    found = after(
        f"import importlib\nfor name in {every!r}:\n    importlib.import_module(name)\n"
        f"packages = [sys.modules[name] for name in {PACKAGES!r}]\n"
        "found = [f'{p.__name__}.{n}' for p in packages for n in p.__all__ if isinstance(getattr(p, n), type(sys))]"
    )
    assert found == ["fastmmu.image", "fastmmu.space", "fastmmu.vmx"]


@pytest.mark.parametrize(
    "statement", ["import fastmmu.study.compare", "import fastmmu.tlb.geometry", "import fastmmu.cli.main"]
)
def test_the_functions_of_the_package_stay_functions(statement: str) -> None:
    program = f"{statement}\nimport fastmmu\nfrom fastmmu import compare, geometry, image, simulate\n"
    kinds = "[type(each).__name__ for each in (compare, geometry, simulate, image, fastmmu.study.compare)]"
    assert after(f"{program}found = {kinds}") == ["function", "function", "function", "module", "function"]


def test_modules_are_attributes_without_an_import() -> None:
    assert after("import fastmmu\nfound = fastmmu.trace.tpr.__name__") == "fastmmu.trace.tpr"


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match=r"^module 'fastmmu' has no attribute 'wlak'$"):
        _ = fastmmu.wlak  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'wlak'"):
        exec("from fastmmu import wlak")
