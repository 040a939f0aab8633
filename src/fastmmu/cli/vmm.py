"""`--kvm`, `--vendor`, `--vmm`: which version of KVM, on whose processor; who is KVM: kernels, Python, a class.
`--agile`: the policy of agile paging."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from fastmmu.errors import ConfigError

__all__ = ["KVM_VERSIONS", "MMUS", "add_agile", "add_kvm", "add_vendor", "add_vmm", "vmm_of"]

MMUS = ("native", "shadow", "ept", "agile")
KVM_VERSIONS = ("slides", "5.10", "6.1", "6.12")
"""Named here so that --help need not load what has them; tests/cli/test_kvm_option.py holds both together."""


def add_kvm(group: Any, otherwise: str = "slides") -> None:
    """--kvm, one version; `otherwise`: what holds without it."""
    group.add_argument("--kvm", choices=KVM_VERSIONS, help=f"whose policy: a version of KVM; default: {otherwise}")


def add_vendor(group: Any) -> None:
    """--vendor."""
    group.add_argument("--vendor", choices=("intel", "amd"), help="whose processor: EPT (the default), or AMD's NPT")


def add_vmm(group: Any) -> None:
    """--vmm."""
    group.add_argument(
        "--vmm",
        metavar="kernel|python|MODULE:CLASS",
        help="who handles the VM exits: the kernels (the default), the same rules in Python, or a class of your own "
        "that derives from fastmmu.Kvm; MODULE is also looked for in the current directory",
    )


def add_agile(group: Any) -> None:
    """--agile."""
    group.add_argument(
        "--agile",
        metavar="POLICY",
        help='of --mmu agile: "writes=2 interval=4096 back=written begin=shadow", or a part',
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
