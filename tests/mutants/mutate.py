"""Mutants of a module: its source with one small fault each. What no test could tell is left alone: annotations, texts,
logs, `__slots__`, what stands under TYPE_CHECKING."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    module: str
    line: int
    change: str
    code: str
    """The whole module."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.change}"


def mutants(module: str, source: str) -> list[Mutant]:
    """All of a module, in the order of its text."""
    tree = ast.parse(source)
    found = []
    for index, node in enumerate(ast.walk(tree)):
        node.index = index  # type: ignore[attr-defined]
    for node in _told(tree):
        for change, changed in _changes(node):
            mutated = _Replace(node.index, changed).visit(copy.deepcopy(tree))
            code = ast.unparse(ast.fix_missing_locations(mutated))
            found.append(Mutant(module, node.lineno, change, code))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.change))


class _Replace(ast.NodeTransformer):
    def __init__(self, index: int, changed: ast.AST) -> None:
        self._index = index
        self._changed = changed

    def generic_visit(self, node: ast.AST) -> ast.AST:
        return self._changed if getattr(node, "index", None) == self._index else super().generic_visit(node)


def _told(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes whose change somebody could notice."""
    if isinstance(node, ast.JoinedStr | ast.Raise):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # A guard against a bug of ours.
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value).startswith("log."):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _told(child)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:  # noqa: C901 - a table of cases
    """What may stand in the place of a node, in words."""
    new: ast.AST | None = None
    match node:
        case ast.Compare(ops=[op, *more]) if type(op) in _COMPARE:
            new = copy.copy(node)
            new.ops = [_COMPARE[type(op)](), *more]
        case ast.BinOp() | ast.AugAssign() if type(node.op) in _BINARY and not _is_text(node):
            new = copy.copy(node)
            new.op = _BINARY[type(node.op)]()
        case ast.BoolOp():
            new = copy.copy(node)
            new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not()):
            new = node.operand
        case ast.Constant(value=bool()):
            new = ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            new = ast.Constant(node.value + 1)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            new = ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            new = ast.Pass()
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call()):
            new = copy.copy(node)
            new.test = ast.UnaryOp(ast.Not(), node.test)
    if new is not None:
        if isinstance(new, ast.stmt | ast.expr):
            new = ast.copy_location(new, node)
        before, after = (ast.unparse(each).partition("\n")[0] for each in (node, new))
        yield f"{before}  ->  {after}", new


def _is_text(node: ast.BinOp | ast.AugAssign) -> bool:
    """Types in a union, and texts."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    return any(isinstance(side, ast.JoinedStr) or _is_str(side) for side in sides)


def _is_str(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | type(None))
