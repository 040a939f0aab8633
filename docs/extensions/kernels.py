"""What Sphinx must be told of this package: kernels have types in stubs, fields of docstrings may share a line; the
parser of the command line."""

from __future__ import annotations

import ast
import re
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.pycode import ModuleAnalyzer

from fastmmu.cli.main import parser

__all__ = ["commands", "fields_apart", "setup", "stubbed"]

FIELD = re.compile(r"(?<=\S)\s+(?=:(?:param|raises|returns|rtype)\b[^:]*:(?:\s|$))")
START = re.compile(r"\s*:(?:param|raises|returns|rtype)\b")
NAMES = re.compile(r"^(\s*:param )([\w*]+(?:, [\w*]+)+)(?=:)")
CLASS = re.compile(r"^(\.\. autoclass:: )([\w.]+)$", re.MULTILINE)
BOUNDED = re.compile(r"Annotated\[(\w+), msgspec\.Meta\([^)]*\)\]")
CHAPTERS = [path.stem for path in sorted((Path(__file__).parents[1] / "spec").glob("*.md")) if path.stem != "README"]
CITED = re.compile(rf"(?<![\w`/])({'|'.join(CHAPTERS)})\.md((?: §(?:[\dA-Z][\d.]*\d|\d))?)(?![\w`])")
ALIASES = {"_Rows": "np.recarray"}  # of stubs


def fields_apart(lines: list[str]) -> list[str]:
    """Lines of a docstring with each field, `:param x:` and so on, on a line of its own, behind a blank one."""
    found: list[str] = []
    indent = None  # of the fields, where the last line is one's
    for line in _names_together(lines):
        first, *others = FIELD.split(line)
        own = first[: len(first) - len(first.lstrip())]
        if indent is not None and not START.match(first) and not first.startswith(f"{indent} "):
            indent = None
        for part in (first, *others):
            if START.match(part):
                if indent is None:
                    indent = own
                    if found and found[-1].strip():
                        found.append("")
                found.append(indent + _one_name(part.lstrip()))
            else:
                found.append(part)
    return found


def _names_together(lines: list[str]) -> Iterator[str]:
    """The names of a field may go on in the next line."""
    begun = ""
    for line in lines:
        whole = f"{begun} {line.strip()}" if begun else line
        begun = whole if re.search(r":(?:param|raises)\b[^:]*$", whole) else ""
        if not begun:
            yield whole
    if begun:
        yield begun


def _one_name(line: str) -> str:
    """A field of several names is one: its name may hold no blank."""
    return NAMES.sub(lambda m: m[1] + m[2].replace(", ", ","), line)


@cache
def _stub(module: str) -> dict[str, tuple[str, str | None]]:
    """{qualified name: (arguments, what it returns)} of what the stub of a kernel declares."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    path = Path(file.partition(".")[0] + ".pyi") if file.endswith(".so") else Path(file).with_suffix(".pyi")
    found: dict[str, tuple[str, str | None]] = {}
    if not file.endswith(".so") or not path.is_file():
        return found

    def declared(body: list[ast.stmt], within: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                declared(node.body, f"{within}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                name = within[:-1] if within and node.name == "__init__" else f"{within}{node.name}"
                static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                found.setdefault(name, _signature(node, method=bool(within) and not static))

    declared(ast.parse(path.read_text()).body, "")
    return found


def _signature(node: ast.FunctionDef, *, method: bool) -> tuple[str, str | None]:
    arguments = node.args
    if method:
        (arguments.posonlyargs or arguments.args)[:1] = []
    returns = None if node.returns is None else _plain(ast.unparse(node.returns))
    return f"({_plain(ast.unparse(arguments))})", None if returns == "None" else returns


def _plain(text: str) -> str:
    return re.sub(r"\w+", lambda m: ALIASES.get(m[0], m[0]), text).replace("npt.", "")


def stubbed(obj: Any) -> tuple[str, str | None] | None:
    """Arguments and result of a kernel's class, function or method, by its stub."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    return _stub(module).get(name) if isinstance(module, str) and isinstance(name, str) else None


def _on_source(app: Any, page: str, source: list[str]) -> None:
    """Classes of kernels tell nothing of their arguments: they are written into the directive."""

    def with_arguments(found: re.Match[str]) -> str:
        declared = stubbed(_found(found[2]))
        return found[0] + (declared[0] if declared else "")

    source[0] = CLASS.sub(with_arguments, source[0])


def _on_signature(app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, returned: Any) -> Any:
    if what in ("class", "exception"):
        return None if signature is None else (BOUNDED.sub(r"\1", signature), returned)
    return stubbed(obj)


def _on_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what == "data":  # a value has the docstring of its class; its own stands where it is made
        package, _, last = name.rpartition(".")
        homes = getattr(sys.modules[package], "_HOMES", {})
        home = next((home for home, names in homes.items() if last in names), package)
        lines[:] = [*ModuleAnalyzer.for_module(home).find_attr_docs().get(("", last), [])]
    elif what == "class" and lines and lines[0].startswith(f"{name.rpartition('.')[2]}("):
        del lines[0]  # Cython's own idea of the signature
    lines[:] = [CITED.sub(r":doc:`\1.md\2 </spec/\1>`", line) for line in fields_apart(lines)]


def _on_page(app: Any, tree: nodes.document, page: str) -> None:
    """Pictures stand in the page itself, so that they go by its light or dark; names in code, `fastmmu.Config`, lead to
    where they are described."""
    for image in [*tree.findall(nodes.image)]:
        picture = Path(app.srcdir, image["uri"])
        if picture.suffix == ".svg" and app.builder.format == "html":
            image.replace_self(nodes.raw("", f'<div class="fm-picture">{picture.read_text()}</div>', format="html"))
    described = app.env.domains.python_domain.objects
    for literal in [*tree.findall(nodes.literal)]:
        found = described.get(literal.astext().removesuffix("()"))
        if found is not None and not isinstance(literal.parent, nodes.reference) and found.docname != page:
            target = f"{app.builder.get_relative_uri(page, found.docname)}#{found.node_id}"
            link = nodes.reference("", "", literal.deepcopy(), internal=True, refuri=target)
            literal.replace_self(link)


def commands() -> ArgumentParser:
    """The parser of the command line, its descriptions as sentences; what is set in columns stays."""

    def told(parser: ArgumentParser) -> None:
        if parser.description and not re.search(r"\n\s|\S {2,}", parser.description.replace("\n\n", "\n")):
            parser.description = " ".join(parser.description.split())
        for action in parser._actions:
            if isinstance(action, _SubParsersAction):
                for parser_of_command in action.choices.values():
                    told(parser_of_command)

    top: ArgumentParser = parser()
    told(top)
    return top


def _found(name: str) -> Any:
    module, *parts = name.split(".")
    found: Any = import_module(module)
    for part in parts:
        module = f"{module}.{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(module)
    return found


def setup(app: Any) -> dict[str, bool]:
    """For Sphinx."""
    app.connect("source-read", _on_source)
    app.connect("doctree-resolved", _on_page)
    app.connect("autodoc-process-signature", _on_signature)
    app.connect("autodoc-process-docstring", _on_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
