"""What the name of a file says: t.lackey.xz is lackey text compressed by xz, and the trace is called t."""

from __future__ import annotations

from pathlib import PurePath

from fastmmu.trace.formats import FORMATS

__all__ = ["CODECS", "codec_of_name", "format_of_name", "printable", "trace_name", "uncompressed"]

CODECS = {
    ".gz": "gz", ".xz": "xz", ".zst": "zst", ".bz2": "bz2", ".lz4": "lz4", ".sz": "sz", ".lzma": "lzma", ".zip": "zip"
}  # fmt: skip
_FORMATS = {suffix: format.name for format in FORMATS.values() for suffix in format.suffixes}


def codec_of_name(path: str) -> str | None:
    """Compression that the last suffix stands for, or None."""
    return CODECS.get(PurePath(path).suffix.lower())


def format_of_name(path: str) -> str | None:
    """Format that the suffix before any of a compression stands for, or None."""
    return _FORMATS.get(uncompressed(path).suffix.lower())


def trace_name(path: str) -> str:
    """The name without the suffixes that are known, in characters that can be printed."""
    name = uncompressed(path)
    return printable(name.stem if name.suffix.lower() in _FORMATS else name.name)


def uncompressed(path: str) -> PurePath:
    """The name without the suffix of a compression."""
    name = PurePath(path)
    return name.with_suffix("") if codec_of_name(path) else name


def printable(text: str) -> str:
    """A text of one line: newlines, escapes and what is no character (bytes of a name) as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1].replace("\\udc", "\\x") for c in text)
