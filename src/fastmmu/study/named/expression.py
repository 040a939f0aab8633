"""Arithmetic and comparisons over named figures, as they stand in the file of an experiment.

    uniform.both.cycles / uniform.guest.cycles - 1        0.15 <= ours <= 0.38 and ours > 0

Numbers, names with dots, + - * /, comparisons, and, or, not, min, max, abs; nothing else is evaluated.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from fastmmu.errors import ConfigError

__all__ = ["Expression"]

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_CALLED: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}
_MOST = 1000  # characters


class Expression:
    """One, checked when it is made. ``names``: the figures that it uses.

    :raises ConfigError: it is none.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: set[str] = set()
        if len(text) > _MOST:
            raise ConfigError(f"an expression of {len(text)} characters; give at most {_MOST}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{text!r} is no expression: {getattr(error, 'msg', error)}") from error
        self._check(self._tree)

    def __repr__(self) -> str:
        return self.text

    def _check(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=bool() | int() | float()):
                return
            case ast.Name() | ast.Attribute():
                self.names.add(self._name(node))
                return
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                parts = [node.left, node.right]
            case ast.UnaryOp(op=ast.USub() | ast.Not()):
                parts = [node.operand]
            case ast.BoolOp():
                parts = node.values
            case ast.Compare(ops=ops) if all(type(op) in _COMPARED for op in ops):
                parts = [node.left, *node.comparators]
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _CALLED and node.args:
                parts = node.args
            case _:
                raise ConfigError(
                    f"{self.text!r}: {ast.unparse(node)!r} is not taken; there are numbers, names of figures, + - * /, "
                    f"comparisons, and, or, not, {', '.join(_CALLED)}"
                )
        for part in parts:
            self._check(part)

    def _name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._name(node.value)}.{node.attr}"
        raise ConfigError(f"{self.text!r}: {ast.unparse(node)!r} is no name of a figure")

    def value(self, figures: Mapping[str, Any]) -> Any:
        """What it comes to.

        :raises ConfigError: a figure is missing, or it divides by 0.
        """
        try:
            return self._value(self._tree, figures)
        except KeyError as error:
            raise ConfigError(f"{self.text!r}: there is no figure {error.args[0]}") from error
        except ZeroDivisionError as error:
            raise ConfigError(f"{self.text!r} divides by 0: what it counts did not happen") from error
        except TypeError as error:
            raise ConfigError(f"{self.text!r}: a figure is no number here: {error}") from error

    def _value(self, node: ast.expr, figures: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.BinOp():
                left, right = self._value(node.left, figures), self._value(node.right, figures)
                return _ARITHMETIC[type(node.op)](left, right)
            case ast.UnaryOp():
                value = self._value(node.operand, figures)
                return -value if isinstance(node.op, ast.USub) else not value
            case ast.BoolOp():
                values = (bool(self._value(part, figures)) for part in node.values)
                return all(values) if isinstance(node.op, ast.And) else any(values)
            case ast.Compare():
                each = [self._value(part, figures) for part in (node.left, *node.comparators)]
                return all(_COMPARED[type(op)](a, b) for op, a, b in zip(node.ops, each[:-1], each[1:], strict=True))
            case ast.Call(func=ast.Name(id=name)):
                return _CALLED[name](*(self._value(part, figures) for part in node.args))
        return figures[self._name(node)]
