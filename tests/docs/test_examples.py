"""Run every command and every Python example of the docs on tiny files.

Commands that a test cannot run are listed in `ONLY_PARSED` with the reason; their options are still
parsed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from crosspair.cli import VERBS, build_parser, main, split_verb
from tests.docs.world import TINY, TINY_PAIRS, make_world

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|bash|sbatch|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

ONLY_PARSED = {
    r"^serve ": "runs until interrupted; has its own tests",
    r"imagenet:": "weights are not available",
    r"^import-weights ": "weights are not available",
    r"--init (slow-r50|cpd)": "weights are not available",
    r"(openai|google|facebook)/|--library clip\b": "weights are not available",
    r"--recipe (clip-adapt|laptop-pretrained) |runs/(adapted|heads1)/": "weights are not available",
    r"--hub ": "uploads",
    r"--splits ": "three times the work of the command without --splits",
    r"--engine ray": "needs a cluster",
    r"--recipe kinetics210k": "the paper's size",
    r"^ablate (?!.*--dry-run)": "takes an hour; has its own tests",
    r"^ablate table-1a-ucf": "needs more pairs",
}
# Options appended to a command to make it fast.
FAST = {
    "benchmark": [*TINY_PAIRS, "--seconds", "1"],
    "pretrain": TINY_PAIRS,
    "finetune": TINY,
    "evaluate": ["--clips", "1", "--workers", "0", "knn.k=3"],
    "titles clean": ["--workers", "1"],
    "check": ["--workers", "1"],
    "prepare": ["--workers", "1"],
    "embed": ["--workers", "0"],
    "classify": ["--workers", "0"],
    "index": ["--workers", "0"],
    "search": ["--workers", "0"],
}
# Programs of other packages.
OTHERS = {"curl", "ssh", "source", "xargs"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the examples of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and not re.match(r"\w+=", words[0]):  # no assignment
            end = words.index(">") if ">" in words else None
            yield words[words[0] == "srun" : end]


def crosspair_commands(page: Path) -> list[list[str]]:
    """Return the arguments of each call of crosspair, alone or under torchrun."""
    lines = [line for lang, text in blocks(page) if lang != "python" for line in commands(text)]
    return [line[line.index("crosspair") + 1 :] for line in lines if line[0] in {"crosspair", "torchrun"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_world(root, make_video)
    return root


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse(page: Path) -> None:
    for arguments in crosspair_commands(page):
        name, words = split_verb(arguments)
        if words[:1] != ["--help"]:
            build_parser(name).parse_words(words)  # raises CrosspairError on an error


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    parsers = [build_parser(name) for name in VERBS]
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_the_text_exist(page: Path, known_options: set[str]) -> None:
    options = re.findall(r"`(?:crosspair [\w ]+)?(--[a-z][a-z-]+)", page.read_text(encoding="utf-8"))
    assert set(options) <= known_options | {"--", "--quiet"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_other_commands_exist(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for _, text in (each for each in blocks(page) if each[0] != "python"):
        for program, *rest in commands(text):
            if program == "make":
                assert set(rest) <= set(targets)
            elif program == "pip":
                (names,) = re.findall(r"^\.\[([\w,]+)\]$", rest[-1])
                assert set(names.split(",")) <= set(extras)
            else:
                assert program in {"crosspair", "torchrun", *OTHERS}, program


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "world"
    shutil.copytree(world, here)
    monkeypatch.chdir(here)
    _remove_outputs(page, here)
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
            continue
        for program, *arguments in commands(text):
            if program == "crosspair" and not _only_parsed(arguments):
                _run(arguments)


def test_every_exception_is_needed() -> None:
    lines = [shlex.join(arguments) for page in PAGES for arguments in crosspair_commands(page)]
    assert all(any(re.search(each, line) for line in lines) for each in ONLY_PARSED)


def _only_parsed(arguments: list[str]) -> bool:
    return any(re.search(each, shlex.join(arguments)) for each in ONLY_PARSED)


def _run(arguments: list[str]) -> None:
    fast = FAST.get(split_verb(arguments)[0], [])
    status = 0
    try:
        main([*arguments, *fast])
    except SystemExit as ended:
        status = ended.code
    # doctor may report problems of this machine; no other command may fail.
    assert status == 0 or arguments == ["doctor"], arguments


def _remove_outputs(page: Path, here: Path) -> None:
    """Remove the outputs of the page's own commands."""
    for arguments in crosspair_commands(page):
        for option, value in pairwise(arguments):
            output = here / value
            runs = option in {"--out", "--run"} and not _only_parsed(arguments)
            if runs and output.is_dir():
                shutil.rmtree(output)
            elif runs:
                output.unlink(missing_ok=True)
