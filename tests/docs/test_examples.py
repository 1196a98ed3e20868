"""Every command and every Python example of the pages does what it says, in a tiny world.

What cannot run in a test is named in `ONLY_PARSED` with the reason; the real parser reads it all
the same, so that no option that a page names is wrong.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from crosspair.cli import _parser, main
from tests.docs.world import TINY, TINY_PAIRS, make_world

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|bash|sbatch|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

ONLY_PARSED = {
    r"^serve ": "does not end by itself, and has tests of its own",
    r"imagenet:": "weights that are not here",
    r"^import-weights ": "weights that are not here",
    r"--init (slow-r50|cpd)": "weights that are not here",
    r"--to ": "uploads",
    r"--splits ": "three times what the same without --splits does",
    r"--engine ray": "a cluster",
    r"--recipe kinetics210k": "the paper's size",
    r"^ablate (?!.*--dry-run)": "an hour, and has tests of its own",
    r"^ablate table-1a-ucf": "more pairs than there are here",
}
# So that it takes seconds: appended to each command that runs.
FAST = {
    "plan": [*TINY_PAIRS, "--seconds", "1"],
    "pretrain": TINY_PAIRS,
    "finetune": TINY,
    "evaluate": ["--clips", "1", "--workers", "0"],
    "evaluate all": ["--k", "3"],
    "titles": ["--workers", "1"],
    "check": ["--workers", "1"],
    "prepare": ["--workers", "1"],
    "embed": ["--workers", "0"],
    "classify": ["--workers", "0"],
    "index": ["--workers", "0"],
    "search": ["--workers", "0"],
}
# Programs that are not of this package.
OTHERS = {"ssh": "another machine", "source": "the shell's"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of a page's examples."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and not re.match(r"\w+=", words[0]):  # no assignment
            yield words[words[0] == "srun" :]


def of_crosspair(page: Path) -> list[list[str]]:
    """The arguments of each call of this package's command, bare or under torchrun."""
    lines = [line for lang, text in blocks(page) if lang != "python" for line in commands(text)]
    of_ours = [line for line in lines if line[0] in {"crosspair", "torchrun"}]
    return [line[line.index("crosspair") + 1 :] for line in of_ours]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_world(root, make_video)
    return root


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_are_the_command_s(page: Path) -> None:
    for arguments in of_crosspair(page):
        _parser().parse_args(arguments)  # ends the test by SystemExit


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_the_text_exist(page: Path) -> None:
    told = re.findall(r"`(?:crosspair [\w ]+)?(--[a-z][a-z-]+)", page.read_text(encoding="utf-8"))
    assert set(told) <= set(_options(_parser())) | {"--"}


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of all verbs."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _options(verb)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_other_commands_exist(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    verbs = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for _, text in (each for each in blocks(page) if each[0] != "python"):
        for program, *rest in commands(text):
            if program == "make":
                assert set(rest) <= set(verbs)
            elif program == "pip":
                (names,) = re.findall(r"crosspair\[([\w,]+)\]", rest[-1])
                assert set(names.split(",")) <= set(extras)
            else:
                assert program in {"crosspair", "torchrun", *OTHERS}, program


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "world"
    shutil.copytree(world, here)
    monkeypatch.chdir(here)
    _without_what_is_made(page, here)
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
            continue
        for program, *arguments in commands(text):
            if program == "crosspair" and not _only_parsed(arguments):
                _run(arguments)


def test_every_exception_is_needed() -> None:
    lines = [shlex.join(arguments) for page in PAGES for arguments in of_crosspair(page)]
    assert all(any(re.search(each, line) for line in lines) for each in ONLY_PARSED)


def _only_parsed(arguments: list[str]) -> bool:
    return any(re.search(each, shlex.join(arguments)) for each in ONLY_PARSED)


def _run(arguments: list[str]) -> None:
    fast = FAST.get(arguments[0], []) + FAST.get(" ".join(arguments[:2]), [])
    status = 0
    try:
        main([*arguments, *fast])
    except SystemExit as ended:
        status = ended.code
    # A machine may lack what doctor looks for; nothing else may fail.
    assert status == 0 or arguments == ["doctor"], arguments


def _without_what_is_made(page: Path, here: Path) -> None:
    """Take out of the world what the page's own commands make."""
    for arguments in of_crosspair(page):
        for option, value in pairwise(arguments):
            made = here / value
            made_here = option in {"--out", "--run"} and not _only_parsed(arguments)
            if made_here and made.is_dir():
                shutil.rmtree(made)
            elif made_here:
                made.unlink(missing_ok=True)
