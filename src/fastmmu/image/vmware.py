"""VMware: memory raw in a .vmem, and where its parts lie in the .vmss or .vmsn beside it."""

from __future__ import annotations

from pathlib import Path

from fastmmu.image.layout import PAGE, Layout
from fastmmu.image.source import Source, open_source

__all__ = ["beside", "read"]

_GROUP = 80  # bytes: name, place of its tags, size
_MOST_TAGS = 1 << 20
_PACKED = ("", ".zst", ".gz", ".xz")
_LONG = (62, 63)  # lengths that say that a longer one follows


def beside(name: str) -> Path | None:
    """The description of a .vmem: the .vmss or .vmsn of the same name, each perhaps packed."""
    stem = _stem(name)
    return _there(stem, ".vmss", ".vmsn") if stem.suffix.lower() == ".vmem" else None


def _stem(name: str) -> Path:
    path = Path(name)
    return path.with_suffix("") if path.suffix in _PACKED[1:] else path


def _there(stem: Path, *suffixes: str) -> Path | None:
    places = (Path(f"{stem.with_suffix(suffix)}{packed}") for suffix in suffixes for packed in _PACKED)
    return next((place for place in places if place.exists()), None)


def read(source: Source) -> Layout:
    """The parts that a .vmss or .vmsn names; `source` becomes the .vmem beside it."""
    regions = _regions(source)
    path = _there(_stem(source.name), ".vmem")
    if path is None:
        raise source.wrong("holds no memory; give the .vmem of the same name beside it")
    memory = open_source(path)
    source.become(memory)
    layout = Layout(info={"regions": str(len(regions))})
    if not regions:
        layout.add(0, memory.size, 0)
    for page, place, count in regions:
        layout.add(page * PAGE, count * PAGE, place * PAGE)
    return layout


def _regions(source: Source) -> list[tuple[int, int, int]]:
    # (physical page, page in the file, pages); none: the memory is in one piece
    (groups,) = source.fields("<I", 8)
    places = {}
    for i in range(min(groups, source.size // _GROUP)):
        name, at = source.fields("<64sQ8x", 12 + _GROUP * i)
        places[name.rstrip(b"\0")] = at
    if b"memory" not in places:
        raise source.wrong("has no group 'memory'; give a .vmss or .vmsn that was written with the memory")
    tags = _tags(source, places[b"memory"])
    count = tags.get((b"regionsCount",), 0)
    try:
        return [(tags[b"regionPPN", i], tags[b"regionPageNum", i], tags[b"regionSize", i]) for i in range(count)]
    except KeyError as error:
        raise source.wrong(f"has {count} regions, and no tag {error.args[0]}") from error


def _tags(source: Source, at: int) -> dict[tuple[bytes | int, ...], int]:
    # flags, length of the name, name, indices of 4 bytes, content; numbers alone are kept
    wide = 4 if source.bytes_at(0, 1)[0] & 0x0F == 0 else 8
    found: dict[tuple[bytes | int, ...], int] = {}
    for _ in range(_MOST_TAGS):
        flags, length = source.fields("<BB", at)
        if not flags and not length:
            return found
        name = source.bytes_at(at + 2, length)
        at += 2 + length
        indices = source.fields(f"<{flags >> 6}I", at)
        at += 4 * len(indices)
        n = flags & 0x3F
        if n in _LONG:
            at += 2 * wide + 2 + int.from_bytes(source.bytes_at(at, wide), "little")
        else:
            found[name, *indices] = int.from_bytes(source.bytes_at(at, n), "little")
            at += n
    raise source.wrong(f"its group 'memory' has more than {_MOST_TAGS} tags")
