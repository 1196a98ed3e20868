"""The ``crosspair`` command.

A verb is a typed function ``run_VERB`` in one of the modules of this folder. Only that module is imported, and PyTorch
only when the verb runs. jsonargparse executes the `TYPE_CHECKING` block of the module, so it must be cheap, too.
"""

from __future__ import annotations

import inspect
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from crosspair.errors import CrosspairError, escape_controls, format_error
from crosspair.workers import keep_freed_memory

if TYPE_CHECKING:
    from crosspair.cli.parser import VerbParser

VERBS = {  # the module of each verb
    "quickstart": "train",
    "corpus rendered": "corpora",
    "corpus folder": "corpora",
    "corpus kinetics": "corpora",
    "corpus instagram": "corpora",
    "corpus ucf101": "corpora",
    "corpus hmdb51": "corpora",
    "corpus msrvtt": "corpora",
    "corpus msvd": "corpora",
    "corpus vatex": "corpora",
    "check": "corpora",
    "prepare": "corpora",
    "titles clean": "corpora",
    "titles words": "corpora",
    "pretrain": "train",
    "finetune": "train",
    "evaluate": "models",
    "report": "models",
    "ablate": "train",
    "embed": "videos",
    "classify": "videos",
    "index": "videos",
    "search": "videos",
    "serve": "videos",
    "benchmark": "train",
    "import-weights": "models",
    "export": "models",
    "doctor": "train",
}
HELP = {"-h", "--help"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb.

    A `CrosspairError`, or an error of the system such as a full disk, is printed on one line and exits
    with status 2; a closed pipe, Ctrl-C, SIGTERM and SIGHUP exit with 128 + the signal's number.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    quiet = words[:1] in (["-q"], ["--quiet"])
    # Idle OpenMP threads that spin take CPU time from the decoding workers: a quarter of the speed
    # on two cores. The variable has an effect only if it is set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):  # whose encoding may lack characters of names and titles
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            name, rest = split_verb(words[quiet:])
            options = build_parser(name).parse_words(rest)
            _log_to_terminal(quiet)
            with _interrupt_on_signals():
                verb_function(name)(**options)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(141)
    except CrosspairError as error:
        _exit_with_error(str(error))
    except OSError as error:
        _discard_output()
        _exit_with_error(f"{format_error(error)}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt as interrupt:
        sys.unraisablehook = lambda _: None  # destructors of half-built objects may raise
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))


@contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) interrupt as Ctrl-C does, so that the verb cleans up."""
    from crosspair.progress import discard_output, stop_signals

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            discard_output()
        raise KeyboardInterrupt(number)

    previous = {}
    with suppress(ValueError):  # not the main thread
        previous = {number: signal.signal(number, interrupt) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is interrupt:  # a process that lost others ignores SIGTERM
                signal.signal(number, handler)


def _exit_with_error(message: str) -> NoReturn:
    print(f"crosspair: error: {escape_controls(message)}", file=sys.stderr)
    sys.exit(2)


def _discard_output() -> None:
    """Prevent that the interpreter fails to write the rest of the output when it exits."""
    with suppress(OSError, ValueError):  # ValueError: no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def verb_function(name: str) -> Callable[..., None]:
    """Return the function of a verb, such as ``run_corpus_folder`` for "corpus folder"."""
    module = import_module(f"crosspair.cli.{VERBS[name]}")
    function: Callable[..., None] = getattr(module, f"run_{name.replace(' ', '_').replace('-', '_')}")
    return function


def build_parser(name: str) -> VerbParser:
    """Return the parser of a verb."""
    from crosspair.cli.parser import VerbParser

    return VerbParser.of_function(name, verb_function(name))


def split_verb(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the name of the verb and the words after it; exit with a list of the verbs on ``--help``."""
    for count in (1, 2):
        if (name := " ".join(words[:count])) in VERBS:
            return name, words[count:]
    group = words[0] if words and any(name.startswith(f"{words[0]} ") for name in VERBS) else ""
    names = {name: verb for name, verb in VERBS.items() if name.startswith(f"{group} " if group else "")}
    if HELP & set(words[bool(group) :][:1]):
        _print_verbs(group, names)
        sys.exit(0)
    from crosspair.recipes import suggest

    if not words[bool(group) :]:
        raise CrosspairError(f"a command is required; crosspair {group}{group and ' '}--help lists them")
    name = " ".join(words[: 2 if group else 1])
    raise CrosspairError(f"unknown command {name!r}; {suggest(name, names)}")


def _print_verbs(group: str, names: Mapping[str, Any]) -> None:
    """Print the first line of the docstring of each verb."""
    print(f"usage: crosspair [-q] {group or 'COMMAND'} ...\n")
    if not group:
        print("Learn video representations from videos and their text.\n")
    for name in names:
        summary = (inspect.getdoc(verb_function(name)) or "").partition("\n")[0]
        print(f"  {name:16}  {summary.removesuffix('.')}")
    if not group:
        print('\n"crosspair COMMAND --help" lists the options. -q, --quiet: log warnings and errors only.')


def _log_to_terminal(quiet: bool) -> None:
    from rich.logging import RichHandler

    from crosspair.progress import console

    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    handler.addFilter(_escape_record)
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("fsspec").setLevel(logging.WARNING)  # it logs every block that it reads


def _escape_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = escape_controls(record.getMessage()), ()
    return True
