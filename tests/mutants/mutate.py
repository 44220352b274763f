"""Mutants of a module: its source with one small fault each.

Not drawn is what no test is to pin: annotations, and what stands under TYPE_CHECKING; texts, logs, what is raised (its
condition is drawn) and `__repr__`; `__slots__`, decorators and `strict=` of zip, which change nothing that works; and
the number itself that a private name of a module stands for, as in `_WEIGHT = 8` (a weight, pause or cap one greater
is no fault: what is compared or reckoned with it is drawn).
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

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
    lines: tuple[int, ...]
    """Where it is: those of the changed part."""
    change: str
    index: int
    changed: ast.AST

    def __str__(self) -> str:
        return f"{self.module}:{self.lines[0]}: {self.change}"

    def code(self, source: str, path: str) -> CodeType:
        """The whole module's, its lines where they were."""
        tree = _Replace(self.index, self.changed).visit(_numbered(source))
        return compile(ast.fix_missing_locations(tree), path, "exec")


def mutants(module: str, source: str) -> list[Mutant]:
    """All of a module, in the order of its text."""
    found = [
        Mutant(module, _lines(node), change, node.index, changed)
        for node in _told(_numbered(source))
        for change, changed in _changes(node)
    ]
    return sorted(found, key=lambda mutant: (mutant.lines, mutant.change))


def _lines(node: ast.AST) -> tuple[int, ...]:
    where = node.test if isinstance(node, ast.If) else node
    return tuple(range(where.lineno, (where.end_lineno or where.lineno) + 1))


def _numbered(source: str) -> ast.Module:
    tree = ast.parse(source)
    for index, node in enumerate(ast.walk(tree)):
        node.index = index  # type: ignore[attr-defined]
    return tree


class _Replace(ast.NodeTransformer):
    def __init__(self, index: int, changed: ast.AST) -> None:
        self._index = index
        self._changed = changed

    def generic_visit(self, node: ast.AST) -> ast.AST:
        return self._changed if getattr(node, "index", None) == self._index else super().generic_visit(node)


def _told(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes whose change somebody could notice."""
    if _is_left_alone(node):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(node, ast.Module) and _is_private_number(child)):
                yield from _told(child)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Raise() | ast.keyword(arg="strict") | ast.FunctionDef(name="__repr__"):
            return True
        case ast.If(test=ast.Name("TYPE_CHECKING")) | ast.Assign(targets=[ast.Name("__slots__")]):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name("log")))):
            return True
    return False


def _is_private_number(node: ast.AST) -> bool:
    """`_NAME = 16 * 1024` and the like."""
    match node:
        case ast.Assign(targets=[ast.Name(name)]) if name.startswith("_"):
            arithmetic = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
            return all(isinstance(part, arithmetic) for part in ast.walk(node.value))
    return False


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
        case ast.Return(value=ast.expr() as value) if not _is_told(value):
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


def _is_told(value: ast.expr) -> bool:
    """In the place of None there is nothing to put; of True and False there is the other one."""
    return isinstance(value, ast.Constant) and isinstance(value.value, bool | None)


def _is_text(node: ast.BinOp | ast.AugAssign) -> bool:
    """Types in a union, and texts."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    return any(isinstance(side, ast.JoinedStr) or _is_str(side) for side in sides)


def _is_str(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | type(None))
