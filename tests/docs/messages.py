"""What the package can say to a user: the texts of its errors, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "crosspair"
ERRORS = {
    "CrosspairError", "ManifestError", "VideoError", "RecipeError", "TextError", "ModelError",
    "RunError", "LibraryError", "BadVideoError",
}  # fmt: skip
HOLE = "…"  # what is only known when the error is raised


def messages() -> dict[str, str]:
    """Each message with its place, as file:line; what varies in it is a ``…``.

    A message that is made elsewhere, and only handed on, is found where it is made, if that is a
    function of the same file; otherwise it is nothing but a ``…`` and left out.
    """
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and _name(call.func) in ERRORS and call.args):
                continue
            # A BadVideoError has path and kind before its reason.
            at = 2 if _name(call.func) == "BadVideoError" else 0
            for number, text in enumerate(_texts(call.args[at], tree)):
                if text.replace(HOLE, "").strip(" :,"):
                    place = f"{path.relative_to(SOURCE)}:{call.lineno}"
                    found[f"{place}#{number}" if number else place] = text
    return found


def _texts(node: ast.expr, tree: ast.Module) -> Iterator[str]:
    """All that an expression may say."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(
                str(v.value) if isinstance(v, ast.Constant) else HOLE for v in values
            )  # fmt: skip
        case ast.BinOp(left=left, right=right):
            yield from (a + b for a in _texts(left, tree) for b in _texts(right, tree))
        case ast.IfExp(body=body, orelse=orelse):
            yield from (*_texts(body, tree), *_texts(orelse, tree))
        case ast.Call(func=ast.Name(id=name)) if returned := list(_returned(name, tree)):
            for each in returned:
                yield from _texts(each, ast.Module([], []))
        case _:
            yield HOLE


def _returned(function: str, tree: ast.Module) -> Iterator[ast.expr]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value:
                    yield inner.value


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))
