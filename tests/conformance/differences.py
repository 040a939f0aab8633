"""What two answers differ in, in words."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from fastmmu.dtypes import StepKind

from .cases import Observed

__all__ = ["differences", "shown"]


def shown(value: Any) -> str:
    """A field of an answer: numbers in hexadecimal, a step a line."""
    if isinstance(value, list):
        return "".join(f"\n        {StepKind(step[0]).name:8} {' '.join(f'{n:x}' for n in step[1:])}" for step in value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{hpa:x}: {qword:x}" for hpa, qword in sorted(value.items())) + "}"
    return f"{value:#x}" if isinstance(value, int) else repr(value)


def differences(want: Observed, got: Observed, unreported: Container[str], names: tuple[str, str]) -> list[str]:
    """A line for each field of the first answer that the second has otherwise; `names` are who gave them."""
    return [
        f"{key}: {names[0]} {shown(want[key])}, {names[1]} {shown(got.get(key))}"
        for key in sorted(want)
        if key not in unreported and want[key] != got.get(key)
    ]
