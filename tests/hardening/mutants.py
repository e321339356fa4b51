"""Small wrong edits of a module, each of which some test should notice.

Comparisons are flipped or moved by their boundary, operators exchanged, numbers changed by one,
conditions and signs negated, functions such as ``min`` exchanged or dropped, statements left out.
What is said (texts, ``raise``), annotations and defaults stay, and so does code outside functions.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
EXCHANGED = {
    **{"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any"},
    **{"minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin"},
    **{"sum": "mean", "mean": "sum"},
}
DROPPED = {
    *("abs", "sqrt", "square", "exp", "log", "flip", "cumsum", "clamp", "clamp_min", "nan_to_num"),
    *("fillna", "tanh", "sigmoid", "reversed", "sorted"),
}
KEPT = (ast.JoinedStr, ast.Raise, ast.Assert, ast.AnnAssign)
"""Nodes that are left alone: what is said, and what is checked of our own."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """A wrong edit: what stood at some lines, what stands there now, and the module with it."""

    lines: range
    before: str
    after: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"{self.lines[0]}: {self.before} -> {self.after}"


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every edit of the functions of a module."""
    tree = ast.parse(source)
    for place, node in _within(tree, (), inside=False):
        for after in _edits(node):
            before = ast.unparse(node)
            yield Mutant(
                range(node.lineno, (node.end_lineno or node.lineno) + 1),
                before,
                ast.unparse(after),
                _replaced(tree, place, after),
            )


Place = tuple[tuple[str, int | None], ...]
"""Fields, and positions in those that are lists, that lead to a node."""


def _within(
    node: ast.AST, place: Place, inside: bool
) -> Iterator[tuple[Place, ast.expr | ast.stmt]]:
    """Yield the statements and expressions within functions, with their places."""
    if isinstance(node, KEPT):
        return
    if inside and isinstance(node, ast.expr | ast.stmt):
        yield place, node
    for field, value in ast.iter_fields(node):
        if field in ("decorator_list", "returns", "args") and isinstance(node, Function):
            continue
        now = inside or isinstance(node, Function)
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST):
                yield from _within(child, (*place, (field, index)), now)


def _replaced(tree: ast.Module, place: Place, after: ast.AST) -> ast.Module:
    """Return a copy of a module in which another node is at a place."""
    changed = copy.deepcopy(tree)
    node: ast.AST = changed
    for field, index in place[:-1]:
        node = getattr(node, field) if index is None else getattr(node, field)[index]
    field, index = place[-1]
    if index is None:
        setattr(node, field, after)
    else:
        getattr(node, field)[index] = after
    return ast.fix_missing_locations(changed)


def _edits(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what could stand in the place of one node."""
    edit = EDITS.get(type(node))
    for after in edit(node) if edit else ():
        yield ast.copy_location(after, node)


def _compared(node: ast.Compare) -> Iterator[ast.AST]:
    for index, operator in enumerate(node.ops):
        for other in COMPARISONS[type(operator)]:
            operators = [*node.ops[:index], other(), *node.ops[index + 1 :]]
            yield ast.Compare(node.left, operators, node.comparators)


def _computed(node: ast.BinOp | ast.AugAssign) -> Iterator[ast.AST]:
    other = OPERATORS.get(type(node.op))
    if other is not None:
        changed = copy.copy(node)
        changed.op = other()
        yield changed
    if isinstance(node, ast.AugAssign):
        yield ast.Pass()


def _number(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int | float):
        yield from (ast.Constant(node.value + step) for step in (1, -1))


def _joined(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def _signed(node: ast.UnaryOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand


def _branched(node: ast.If | ast.IfExp | ast.While) -> Iterator[ast.AST]:
    """Negate a condition that no other edit does."""
    if not isinstance(node.test, ast.Compare | ast.UnaryOp | ast.BoolOp):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed


def _called(node: ast.Call) -> Iterator[ast.AST]:
    function = node.func
    if isinstance(function, ast.Name):
        if function.id in EXCHANGED and function.id != "sum":
            yield ast.Call(ast.Name(EXCHANGED[function.id], ast.Load()), node.args, node.keywords)
        if function.id in DROPPED and node.args:
            yield node.args[0]
    elif isinstance(function, ast.Attribute):
        if function.attr in EXCHANGED:
            other = ast.Attribute(function.value, EXCHANGED[function.attr], ast.Load())
            yield ast.Call(other, node.args, node.keywords)
        if function.attr in DROPPED:
            # ``np.abs(x)`` becomes ``x`` as ``x.abs()`` does.
            module = isinstance(function.value, ast.Name) and function.value.id in MODULES
            yield node.args[0] if module else function.value


MODULES = ("np", "torch", "math", "linalg", "functional")


def _stated(node: ast.Expr) -> Iterator[ast.AST]:
    """Leave out a statement that is a call."""
    if isinstance(node.value, ast.Call):
        yield ast.Pass()


EDITS: dict[type[ast.AST], Callable[..., Iterator[ast.AST]]] = {
    ast.Compare: _compared,
    ast.BinOp: _computed,
    ast.AugAssign: _computed,
    ast.Constant: _number,
    ast.BoolOp: _joined,
    ast.UnaryOp: _signed,
    ast.If: _branched,
    ast.IfExp: _branched,
    ast.While: _branched,
    ast.Call: _called,
    ast.Expr: _stated,
}
