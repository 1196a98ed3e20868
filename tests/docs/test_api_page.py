"""The page of the API has the signatures that the package has."""

import ast
import inspect
import re
from pathlib import Path

import crosspair
import crosspair.library
from crosspair import errors

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^\| `((?:Model\.)?\w+)(\(.*?\))` \|", PAGE, re.MULTILINE)


def test_signatures_are_those_of_the_package() -> None:
    told = {name: parameters for name, parameters in CALLS if name != "Searcher"}
    assert set(told) == {
        "load", "Windows", *(f"Model.{name}" for name in vars(crosspair.Model) if name[0] != "_"),
    }  # fmt: skip
    for name, parameters in told.items():
        thing = crosspair
        for part in name.split("."):
            thing = getattr(thing, part)
        assert _form(parameters) == _form(_signature(thing)), name


def test_all_names_are_on_the_page() -> None:
    assert all(f"`{name}" in PAGE for name in crosspair.__all__)
    of_library = {"Searcher", "index_videos", "remove_videos", "SearchHit"}
    assert of_library <= set(crosspair.library.__all__)
    assert all(f"`{name}" in PAGE for name in of_library)
    faults = {name for name, each in vars(errors).items() if inspect.isclass(each)}
    assert all(f"{name}`" in PAGE for name in faults)


def _signature(function: object) -> str:
    """The parameters without their types and without self."""
    signature = inspect.signature(function)
    kept = [
        each.replace(annotation=inspect.Parameter.empty)
        for name, each in signature.parameters.items() if name != "self"
    ]  # fmt: skip
    return str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


def _form(parameters: str) -> str:
    """As Python writes them, whatever the quotes and spaces."""
    return ast.unparse(ast.parse(f"def f{parameters}: ..."))
