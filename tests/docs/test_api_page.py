"""docs/api.md lists the public names with their signatures."""

import ast
import inspect
import re
from operator import attrgetter
from pathlib import Path

import crosspair
import crosspair.library
from crosspair import errors

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^\| `((?:Model\.)?\w+)(\(.*?\))` \|", PAGE, re.MULTILINE)


def test_signatures() -> None:
    signatures = {name: parameters for name, parameters in CALLS if name != "Searcher"}
    assert set(signatures) == {
        "pretrain", "finetune", "evaluate", "load", "Windows",
        *(f"Model.{name}" for name in vars(crosspair.Model) if name[0] != "_"),
    }  # fmt: skip
    for name, parameters in signatures.items():
        assert _normalize(parameters) == _normalize(_signature(attrgetter(name)(crosspair))), name


def test_all_names_are_on_the_page() -> None:
    assert all(f"`{name}" in PAGE for name in crosspair.__all__)
    library_names = {"Searcher", "index_videos", "remove_videos", "SearchHit"}
    assert library_names <= set(crosspair.library.__all__)
    assert all(f"`{name}" in PAGE for name in library_names)
    names = {
        name for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, errors.CrosspairError)
    }  # fmt: skip
    assert all(f"{name}`" in PAGE for name in names - {"InvalidVideoError"})


def _signature(function: object) -> str:
    """The parameters without annotations and without self."""
    signature = inspect.signature(function)
    kept = [
        each.replace(annotation=inspect.Parameter.empty)
        for name, each in signature.parameters.items() if name != "self"
    ]  # fmt: skip
    return str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


def _normalize(parameters: str) -> str:
    """Format parameters with uniform quotes and spaces."""
    return ast.unparse(ast.parse(f"def f{parameters}: ..."))
