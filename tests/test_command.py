"""The command line: help, number of options, errors of usage."""

import resource
import subprocess
import sys
from itertools import pairwise

import pytest

from crosspair.cli import VERBS, build_parser, main
from crosspair.errors import CrosspairError


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_fits_a_page(name: str) -> None:
    parser = build_parser(name)
    lines = parser.format_help().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert all(action.help for action in [*parser.options, *parser.positionals])


def test_number_of_options() -> None:
    assert sum(len(build_parser(name).options) for name in VERBS) <= 180


def test_help_is_fast_and_lists_the_verbs() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([sys.executable, "-m", "crosspair", "--help"], capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(f"  {name} " in shown for name in VERBS)
    assert len(shown.splitlines()) <= 40
    # Not the elapsed time, since other processes may use the cores.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.parametrize("words", [["--help"], ["corpus", "--help"], ["evaluate", "--help"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    check = f"import sys, crosspair.cli as c\ntry: c.main({words})\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("", ("command",)),
        ("corpus", ("crosspair corpus",)),
        ("evalute", ("'evalute'", "'evaluate'")),
        ("corpus ucf", ("'corpus ucf'", "'corpus ucf101'")),
        ("evaluate --modl m --manifest m --out o --model m", ("--modl", "'--model'")),
        ("evaluate --model m", ("--manifest", "--out")),
        ("evaluate --model m --manifest m --out o --clips 0", ("--clips", "0")),
        ("evaluate --model m --manifest m --out o --workers x", ("--workers", "'x'")),
        ("finetune --recipe r --init i --manifest m --run r --split x", ("--split", "'x'", "'val'")),
        ("quickstart --out", ("--out",)),
        ("quickstart --out o more", ("more",)),
    ],
)
def test_errors_of_usage_name_the_option(
    line: str, values: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith("crosspair: error: ")
    assert all(value in shown for value in values)


def test_settings_may_be_anywhere() -> None:
    words = ["seeds=0", "table-1a", "--only", "a=b", "--out", "o", "training.epochs=1", "--only", "c", "--dry-run"]
    options = build_parser("ablate").parse_words(words)
    assert (options["plan"], options["only"], options["dry_run"]) == ("table-1a", ["a=b", "c"], True)
    assert options["overrides"] == ["seeds=0", "training.epochs=1"]
    with pytest.raises(CrosspairError, match=r"--only"):
        build_parser("ablate").parse_words(["table-1a", "--only", "--out", "o"])


def test_options_that_are_not_given_have_the_function_s_defaults() -> None:
    options = build_parser("evaluate").parse_words(["--model", "m", "--manifest", "m", "--out", "o"])
    assert not {"workers", "split", "random_baseline", "device"} & set(options)
    options = build_parser("evaluate").parse_words(
        ["--model", "m", "--manifest", "m", "--out", "o", "--no-random-baseline"]
    )
    assert options["random_baseline"] is False


def test_verbs_of_a_group_stand_together() -> None:
    groups = [name.split()[0] for name in VERBS]
    assert sum(one != other for one, other in pairwise(groups)) + 1 == len(set(groups))
