"""The picture of the two-dimensional walk is the walk."""

from __future__ import annotations

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[2]
SVG = (ROOT / "docs" / "pictures" / "walk.svg").read_text()


def test_the_picture_is_what_its_program_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "tools" / "draw_walk.py"))["drawn"]
    assert drawn() == SVG, "run tools/draw_walk.py"


def test_it_has_24_references_in_the_order_of_the_walk() -> None:
    """ept.md, the two-dimensional walk: the four levels of the EPT before each entry of the guest, and for the data."""
    found = re.findall(r'<g class="reference" data-of="(\w+)">.*?<text class="number"[^>]*>(\d+)<', SVG)
    assert [int(number) for _, number in found] == list(range(1, 25))
    assert [of for of, _ in found] == [*["ept"] * 4, "guest"] * 4 + ["ept"] * 4


def test_it_is_xml_with_words_for_who_does_not_see_it() -> None:
    root = ET.fromstring(SVG)
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    named = {node.get("id") for node in root if node.tag in (f"{space}title", f"{space}desc")}
    assert named == set((root.get("aria-labelledby") or "").split())
    assert "24 references" in "".join(root.itertext())
    assert "prefers-color-scheme:dark" in SVG
