"""The command line: help, number of options, errors of usage."""

import io
import json
import os
import platform
import resource
import subprocess
import sys
from itertools import pairwise

import pytest

from crosspair.cli import VERBS, build_parser, main
from crosspair.cli.parser import print_json
from crosspair.errors import CrosspairError


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_fits_a_page(name: str) -> None:
    parser = build_parser(name)
    lines = parser.format_help().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert all(action.help for action in [*parser.options, *parser.positionals])


def test_number_of_options() -> None:
    assert sum(len(build_parser(name).options) for name in VERBS) <= 198


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
        ("quickstart --out=", ("--out",)),
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


def test_an_empty_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["index", "", "--library", "l", "--forget"], ["search", "x", "--library", "l", "--where", ""]):
        with pytest.raises(CrosspairError, match="empty"):
            build_parser(words[0]).parse_words(words[1:])


def run_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in which $C is the command."""
    settings = {**os.environ, "C": f"{sys.executable} -m crosspair", **environment}
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, env=settings)


def test_a_closed_pipe_and_a_full_disk() -> None:
    closed = run_shell("$C doctor | true; echo ${PIPESTATUS[0]}")
    assert (closed.stdout, closed.stderr) == ("141\n", "")
    full = run_shell("$C --help > /dev/full")
    assert full.returncode == 2
    assert full.stderr.startswith("crosspair: error: ")
    assert full.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    done = run_shell(f"$C --help {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert run_shell(f"$C check none.parquet {closed}").returncode == 2


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_names_do_not_control_the_terminal(encoding: str) -> None:
    name = "a\x1b[31m\n\x9b日\udce9"
    for line in ('$C check "$NAME"', '$C check "$NAME" 2>&1'):
        done = run_shell(line, NAME=name, PYTHONIOENCODING=encoding)
        assert done.returncode == 2
        shown = done.stdout + done.stderr
        assert shown.count("\n") == 1
        assert "\x1b" not in shown
        assert "\\u001b" in shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_is_valid_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    value = {"title": "a\x1b\n\x9b日😀\udce9"}
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    print_json(value)
    stream.seek(0)
    shown = stream.read()
    assert json.loads(shown) == value
    assert shown.isascii() == (encoding == "ascii")
    assert "\x9b" not in shown


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns freed memory at once")
def test_freed_memory_is_reused() -> None:
    program = """if True:
        import resource, sys
        import numpy as np
        from crosspair.workers import keep_freed_memory
        if sys.argv[1] == "keep":
            keep_freed_memory()
        np.ones(2**23)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(2**23)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", program, way], stdout=subprocess.PIPE, check=True).stdout)
        for way in ("keep", "return")
    )
    assert kept < 10 < returned
