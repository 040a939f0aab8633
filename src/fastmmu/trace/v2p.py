"""v2p.textproto, which drmemtrace has beside its traces: where the pages of a program lay in physical memory.

A text of protocol buffers: groups `address_mapping_group { page_size: N address_mapping { virtual_address: N
physical_address: N } ... }`; what else stands in it is passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.trace.source import ByteSource

__all__ = ["NAME", "Placed", "place_events", "read_v2p"]

NAME = "v2p.textproto"
_SMALL, _LARGE, _MOST = 1 << 12, 1 << 21, 1 << 30
_BYTES = 1 << 28  # of the file
_TOKEN = re.compile(
    rb"""\s*(?:\#[^\n]*\s*)*(?:([A-Za-z_][\w.]*)|([-+]?[\w.+-]+|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|([{}<>\[\]:;,]))"""
)
_USER = 1 << 47


class Placed(NamedTuple):
    """A page: its linear and its physical address, and its bytes."""

    va: int
    pa: int
    nbytes: int


def read_v2p(path: str | os.PathLike[str]) -> list[Placed]:
    """The pages of a file.

    :raises TraceError: it cannot be read, is no such file, or has a page that is none.
    """
    name = os.fspath(path)
    with ByteSource(name) as source:
        text = source.read(_BYTES)
    if b"\0" in text or b"address_mapping" not in text:
        raise TraceError(f"this is no {NAME}: it names no address_mapping", path=name)
    found: list[Placed] = []
    sizes: list[int] = []  # of the groups that are open, the page size
    values: dict[str, int] = {}
    for kind, key, value, line in _fields(text, name):
        if kind == "{":
            sizes.append(sizes[-1] if sizes else _SMALL)
            values = {} if key == "address_mapping" else values
        elif kind == "}":
            sizes.pop()
            if key == "address_mapping":
                found.append(_page(values, sizes[-1] if sizes else _SMALL, name, line))
        elif key == "page_size":
            if not _SMALL <= value <= _MOST or value & (value - 1):
                raise TraceError(
                    f"pages of {value} bytes; there are powers of 2 from 4096 to 2**30", path=name, where=f"line {line}"
                )
            if sizes:
                sizes[-1] = value
        elif key in ("virtual_address", "physical_address"):
            values[key] = value
    return found


def _page(values: dict[str, int], nbytes: int, path: str, line: int) -> Placed:
    for key in ("virtual_address", "physical_address"):
        if key not in values:
            raise TraceError(f"an address_mapping without a {key}", path=path, where=f"line {line}")
        if values[key] % nbytes or not 0 <= values[key] < 1 << 64:
            raise TraceError(
                f"{key} {values[key]} is no multiple of page_size, {nbytes}", path=path, where=f"line {line}"
            )
    if values["physical_address"] + nbytes > 1 << 46:
        raise TraceError(
            f"physical_address {values['physical_address']} is not below 2**46", path=path, where=f"line {line}"
        )
    return Placed(values["virtual_address"], values["physical_address"], nbytes)


def _fields(text: bytes, path: str) -> Iterator[tuple[str, str, int, int]]:
    # ("{" or "}", name of the message), or ("", name, value): integers alone have one
    at, line, end = 0, 1, len(text.rstrip())
    names: list[str] = []
    key = ""
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            if re.compile(rb"(\s*#[^\n]*)*\s*\Z").match(text, at):
                break
            raise TraceError(f"this is no {NAME}: {text[at : at + 20]!r}", path=path, where=f"line {line}")
        line += text.count(b"\n", at, match.start(match.lastindex or 0))
        at = match.end()
        word, value, mark = match.groups()
        if mark in (b"{", b"<"):
            names.append(key)
            yield "{", key, 0, line
            key = ""
        elif mark in (b"}", b">"):
            if not names:
                raise TraceError("a message ends that did not begin", path=path, where=f"line {line}")
            yield "}", names.pop(), 0, line
        elif word is not None:
            key = word.decode()
        elif value is not None and key:
            try:
                yield "", key, int(value, 0), line
            except ValueError:
                if key in ("page_size", "virtual_address", "physical_address"):
                    raise TraceError(
                        f"{key} is {value.decode('ascii', 'replace')}, no integer", path=path, where=f"line {line}"
                    ) from None
            key = ""
    if names:
        raise TraceError("the file ends within a message: it was cut short", path=path, where=f"line {line}")


def place_events(pages: list[Placed]) -> list[tuple[int, int, int]]:
    """Events (op, size, addr) that say where pages lie, two for each of 4 KB or 2 MB; of addresses that no program of
    x86-64 has, none."""
    found: list[tuple[int, int, int]] = []
    for page in pages:
        if page.va + page.nbytes > _USER:
            continue
        step = _LARGE if page.nbytes >= _LARGE else _SMALL
        for at in range(0, page.nbytes, step):
            found.append((Op.PLACE, 0, page.va + at))
            found.append((Op.PLACE, step.bit_length() - 1, page.pa + at))
    return found
