"""`--vmm`: who is KVM in a run, the kernels, `fastmmu.Kvm`, or a class of one's own by its module and name."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from fastmmu.errors import ConfigError

__all__ = ["add_vmm", "vmm_of"]


def add_vmm(group: Any) -> None:
    """--vmm."""
    group.add_argument(
        "--vmm",
        metavar="kernel|python|MODULE:CLASS",
        help="who handles the VM exits: the kernels (the default), the same rules in Python, or a class of your own "
        "that derives from fastmmu.Kvm; MODULE is also looked for in the current directory",
    )


def vmm_of(text: str) -> Any:
    """The value of ``Config.vmm`` that a text names.

    :raises ConfigError: there is no such module or class, or its import fails.
    """
    if text in ("kernel", "python"):
        return text
    module, colon, name = text.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(
            f"--vmm {text!r}: choose kernel, python or MODULE:CLASS, as in mine:Hot for class Hot of mine.py"
        )
    before = sys.path.copy()
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise ConfigError(f"--vmm {text}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = before
    if found is None:
        raise ConfigError(f"--vmm {text}: module {module} has no {name}")
    return found
