"""Draws docs/pictures/walk.svg: every reference of a two-dimensional walk, in the order of `fastmmu.walk`.

    .venv/bin/python tools/draw_walk.py

tests/project/test_picture.py says whether the file is what this draws. The picture is read by light and by dark: alone
it goes by what the reader's system asks for, within a page of the documentation by the choice made there.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import fastmmu

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "walk.svg"

GUEST = ("PML4E", "PDPTE", "PDE", "PTE")
FROM = ("CR3", *GUEST)  # where the guest-physical address of a row comes from
LEFT, BOX, STEP, WIDE, TOP, ROW, HIGH = 72, 58, 70, 74, 58, 84, 46

LIGHT = "--ink:#1f2328;--soft:#57606a;--ept:#dcebfa;--ept-line:#0b5cad;--guest:#ffe7cc;--guest-line:#a84300"
DARK = "--ink:#e6edf3;--soft:#a5b0bb;--ept:#12304f;--ept-line:#79b8ff;--guest:#4a2b0a;--guest-line:#ffb066"
STYLE = f"""
.fm-walk{{{LIGHT}}}
@media (prefers-color-scheme:dark){{.fm-walk{{{DARK}}}}}
body[data-theme=light] .fm-walk{{{LIGHT}}}
body[data-theme=dark] .fm-walk{{{DARK}}}
.fm-walk text{{font:16px system-ui,sans-serif;fill:var(--ink);text-anchor:middle}}
.fm-walk .small{{font-size:14px;fill:var(--soft)}}
.fm-walk .number{{font-size:17px;font-weight:600}}
.fm-walk rect{{stroke-width:1.5;rx:6px}}
.fm-walk .ept{{fill:var(--ept);stroke:var(--ept-line)}}
.fm-walk .guest{{fill:var(--guest);stroke:var(--guest-line)}}
.fm-walk .data{{fill:none;stroke:var(--soft);stroke-dasharray:5 4}}
.fm-walk path{{fill:none;stroke:var(--soft);stroke-width:1.5}}
.fm-walk .head{{fill:var(--soft);stroke:none}}
"""


def references() -> list[str]:
    """Of each reference of a walk of 4 levels over 4, nothing cached, whose entry it reads: `ept` or `guest`."""
    memory = fastmmu.PhysicalMemory(1 << 20)
    for table in range(0x1000, 0x4000, 0x1000):  # the guest's: all in one EPT page table's reach
        memory.write64(table, table + 0x1000 | 0x67)
    memory.write64(0x4000, 0x5000 | 0x67)
    for table in range(0x10000, 0x13000, 0x1000):  # the EPT maps guest-physical pages to themselves
        memory.write64(table, table + 0x1000 | 7)
    for page in range(16):
        memory.write64(0x13000 + 8 * page, page << 12 | 6 << 3 | 7)
    walked = fastmmu.walk(memory, fastmmu.GuestState(cr3=0x1000, cpl=3), 0, eptp=fastmmu.Eptp(0x10000 | 0x1E))
    kinds = {fastmmu.StepKind.EPT: "ept", fastmmu.StepKind.GUEST: "guest"}
    return [kinds[fastmmu.StepKind(step.kind)] for step in walked.steps if step.kind in kinds]


def box(x: int, y: int, width: int, kind: str, number: int | None, label: str) -> str:
    """A reference, or what is found at the end."""
    middle = x + width / 2
    words = f'<text class="small" x="{middle:g}" y="{y + 37}">{escape(label)}</text>'
    if number is None:
        return f'<rect class="data" x="{x}" y="{y}" width="{width}" height="{HIGH}"/>' + words.replace(
            f'y="{y + 37}"', f'y="{y + 28}"'
        )
    return (
        f'<g class="reference" data-of="{kind}"><rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HIGH}"/>'
        f'<text class="number" x="{middle:g}" y="{y + 20}">{number}</text>{words}</g>'
    )


def arrow(x: int, y: int, to: int) -> str:
    """A short one to the right."""
    return f'<path d="M{x} {y}H{to - 5}"/><path class="head" d="M{to - 1} {y}l-7-4v8z"/>'


def drawn() -> str:
    """The picture."""
    order = iter(enumerate(references(), 1))
    last = LEFT + 4 * STEP
    right, parts = last + WIDE + 4, []
    heads = [(LEFT + STEP * i + BOX // 2, f"level {4 - i}") for i in range(4)] + [(last + WIDE // 2, "entry")]
    for x, words in heads:
        parts.append(f'<text class="small" x="{x}" y="44">{words}</text>')
    parts.append(f'<text x="{LEFT + (3 * STEP + BOX) // 2}" y="22">EPT</text>')
    parts.append(f'<text x="{last + WIDE // 2}" y="22">guest</text>')
    parts.append('<text class="small" x="30" y="22">address</text><text class="small" x="30" y="44">from</text>')
    for row, origin in enumerate(FROM):
        y = TOP + ROW * row
        middle = y + HIGH // 2
        parts.append(f'<text x="30" y="{middle + 6}">{origin}</text>')
        for column in range(4):
            x = LEFT + STEP * column
            number, kind = next(order)
            parts += [arrow(x - (8 if column == 0 else STEP - BOX), middle, x), box(x, y, BOX, kind, number, "EPT")]
        parts.append(arrow(last - (STEP - BOX), middle, last))
        if row < 4:
            number, kind = next(order)
            parts.append(box(last, y, WIDE, kind, number, GUEST[row]))
            down, below = y + HIGH + (ROW - HIGH) // 2, y + ROW
            parts.append(f'<path d="M{last + WIDE // 2} {y + HIGH}V{down}H30V{below - 3}"/>')
            parts.append(f'<path class="head" d="M30 {below + 2}l-4-7h8z"/>')
        else:
            parts.append(box(last, y, WIDE, "data", None, "data"))
    assert next(order, None) is None
    height = TOP + 4 * ROW + HIGH + 6
    return (
        f'<svg class="fm-walk" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {height}" role="img" '
        'aria-labelledby="fm-walk-title fm-walk-text">\n'
        '<title id="fm-walk-title">A two-dimensional page walk: 24 references to memory</title>\n'
        '<desc id="fm-walk-text">Five rows. In each the four levels of the EPT translate one guest-physical address: '
        "that in CR3, then those in PML4E, PDPTE, PDE and PTE. Behind each of the first four stands the entry of the "
        "guest that is read there; behind the fifth the data. 20 references are to the EPT, 4 to the guest's tables."
        f"</desc>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(drawn())
