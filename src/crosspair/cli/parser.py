"""The parser of a verb, which is built from its function, and options that several verbs have."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Union, get_args, get_origin

import jsonargparse

from crosspair.errors import CrosspairError, escape_controls
from crosspair.recipes import suggest

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt

OVERRIDES = "overrides"  # parameter for words key=value, which may be anywhere after the verb
_OVERRIDE = re.compile(r"[a-z]\w*(\.\w+)*=")
_METAVARS = {
    int: "N", float: "X", Path: "PATH", "compare_with": "MODEL",
    "and": "TEXT", "not": "TEXT", "image": "FILE", "video": "FILE",
}  # fmt: skip

SHARED_HELP = {
    "address": "address of the Ray cluster, for example auto (default: start Ray here)",
    "batch_size": "maximum number of clips per forward pass (default: 32)",
    "class_names": "csv or tsv without header: official class name, readable class name",
    "clips": "clips per video (default: 10)",
    "device": "for example cuda:1 (default: auto)",
    "dir": "folder that is searched recursively for videos",
    "engine": "run on this machine, or on a Ray cluster with a shared file system",
    "init": "initial weights: random, a model folder or Hub name, of which matching parts are loaded, or "
    "imagenet:FILE, the state dict of a 2D ResNet, which is inflated",
    "json": "print JSON",
    "library": "library folder",
    "manifest": "the manifest, or its folder",
    "model": "model folder or Hub name",
    "out": "output folder",
    "precision": "auto (default): bf16 if the hardware supports it",
    "profile": "time the parts of 20 training steps and write a page and a Perfetto trace to profile/ in the run "
    "folder; results do not change",
    "resume": "resume the run in the folder",
    "seed": "random seed (default: 0)",
    "splits": "official splits, such as 1,2,3",
    "stride": "seconds between the starts of windows (default: half a window)",
    "templates": "prompts for class names, one per line, with {} for the name; averaged",
    "title_columns": "column names of the title file: COLUMN=NAME,..., for example video_id=id,title=caption",
    "titles": "csv, tsv, JSON Lines or Parquet: video_id, title; or the authors' tsv without header: id, processed "
    "title, original title",
    "val": "fraction of train to hold out as val; clips that are cut from one recording stay together",
    "videos": "files, folders, URLs or manifests (.parquet)",
    "workers": "worker processes (default: number of cores)",
}


class RunOptions(TypedDict, total=False):
    """Options of a training."""

    resume: bool
    profile: bool


class InferenceOptions(TypedDict, total=False):
    """Options of `crosspair.load`."""

    device: str
    precision: Literal["auto", "bf16", "fp32"]
    workers: NonNegativeInt
    batch_size: PositiveInt


class CorpusArguments(TypedDict, total=False):
    """Options of corpora on disk."""

    title_columns: str
    class_names: Path
    val: float


class TitledArguments(CorpusArguments, total=False):
    """Options of corpora whose own lists have no titles."""

    titles: Path


class VerbHelp(jsonargparse.DefaultHelpFormatter):  # type: ignore[misc]
    """Help with defaults, but without types."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=80)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        empty = action.default is None or action.default is False or action.default in ("", [], argparse.SUPPRESS)
        shown = action.option_strings and not empty
        return f"{text} (default: %(default)s)".strip() if shown and "default" not in text else text


class VerbParser(jsonargparse.ArgumentParser):  # type: ignore[misc]
    """The options of a verb: types and defaults from a function's signature, help from its docstring.

    Parameters before ``*`` are positional. A list takes one or more words, a tuple any number; an option with a tuple
    takes one word and can be repeated. A bool is a flag, and ``bool | None`` has also a flag ``--no-…``. The option of
    ``not_`` is ``--not``. Parameters that the docstring omits have the `SHARED_HELP`.
    """

    @classmethod
    def of_function(cls, name: str, function: Callable[..., None]) -> Self:
        """Build the parser of the verb with the given name."""
        description = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
        parser = cls(
            prog=f"crosspair {name}",
            description=description,
            formatter_class=VerbHelp,
            exit_on_error=False,
            allow_abbrev=False,
        )
        parser.add_function_arguments(function, as_group=False, as_positional=True)
        forms: dict[Any, str] = {None: "{}", "+": "{} ...", "*": "[{} ...]"}
        words = [forms[each.nargs].format(each.metavar) for each in parser.positionals if each.dest != OVERRIDES]
        words += [f"{each.option_strings[0]} {each.metavar}" for each in parser.options if each.required]
        words += ["[options]", *("[key=value ...]" for each in parser.positionals if each.dest == OVERRIDES)]
        parser.usage = textwrap.fill(" ".join([parser.prog, *words]), 72, subsequent_indent=" " * 9)
        return parser

    @property
    def positionals(self) -> list[argparse.Action]:
        """Return the positional arguments."""
        return [action for action in self._actions if not action.option_strings]

    @property
    def options(self) -> list[argparse.Action]:
        """Return the options without ``--help``."""
        return [action for action in self._actions if action.option_strings and action.dest != "help"]

    def add_argument(self, *names: str, **settings: Any) -> Any:
        """Add a parameter of a function, which `add_function_arguments` passes."""
        hint = getattr(settings.get("action"), "_typehint", settings.get("type"))
        if hint is None:  # no parameter, but --help or a completion of jsonargparse
            return super().add_argument(*names, **settings)
        container, value = get_origin(hint), hint
        if container in {Union, UnionType, list, tuple}:
            value = next(each for each in get_args(hint) if each is not type(None))
        is_option, dest = names[0].startswith("-"), names[0].lstrip("-")
        name = dest.rstrip("_")
        settings["help"] = settings["help"] or SHARED_HELP[name]
        if value is bool:
            flag = "store_true" if hint is bool else argparse.BooleanOptionalAction
            settings = {"action": flag, "default": settings["default"], "help": settings["help"]}
        else:
            if container in {list, tuple}:
                del settings["action"]
                settings |= {"type": value, "nargs": "+" if container is list else "*"}
                settings |= {"action": "extend"} if is_option else {}
                if is_option and container is tuple:
                    settings |= {"action": "append", "nargs": None, "default": []}
            settings["metavar"] = "key=value" if name == OVERRIDES else name.upper()
            if get_origin(value) is Literal:
                settings["metavar"] = f"{{{','.join(get_args(value))}}}"
            elif is_option:
                kinds = (_METAVARS.get(kind) for kind in (name, *inspect.getmro(value)))
                settings["metavar"] = next(filter(None, kinds), name.rpartition("_")[2].upper())
        if is_option:
            return super().add_argument(f"--{name.replace('_', '-')}", dest=dest, **settings)
        return super().add_argument(name, **settings)

    def parse_words(self, words: Sequence[str]) -> dict[str, Any]:
        """Parse the words after the verb.

        Raises:
            CrosspairError: an option is unknown, missing or invalid.
        """
        for before, word in zip(["", *words], words, strict=False):
            if not word or re.fullmatch(r"--[\w-]+=", word):
                place = f"{word or before}: " if before or word else ""
                raise CrosspairError(f"{place}an argument is empty; is a variable of the shell unset?")
        with_value = {name for action in self.options if action.nargs != 0 for name in action.option_strings}
        overrides = [False] * len(words)
        if any(action.dest == OVERRIDES for action in self.positionals):
            overrides = [
                bool(_OVERRIDE.match(word)) and before not in with_value
                for before, word in zip(["", *words], words, strict=False)
            ]
        try:
            options = self.parse_args([word for word, apart in zip(words, overrides, strict=True) if not apart])
        except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
            raise CrosspairError(self._explain(str(error))) from error
        if any(overrides):
            options[OVERRIDES] += [word for word, apart in zip(words, overrides, strict=True) if apart]
        return dict(options.as_dict())

    def _explain(self, message: str) -> str:
        """Reduce a message to one line with the option's name, and suggest a known one for an unknown one."""
        names = {action.dest: (action.option_strings or [action.metavar])[0] for action in self._actions}
        if unknown := re.search(r"unrecognized arguments: (\S+)", message):
            word = unknown[1].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings if name != "-h"]
            hint = f"unknown option; {suggest(word, known)}" if word.startswith("-") else "unexpected argument"
            return f"{word}: {hint} (see {self.prog} --help)"
        if missing := re.search(r"arguments are required: (.+)", message):
            listed = ", ".join(names.get(name, name) for name in missing[1].split(", "))
            return f"{listed}: required (see {self.prog} --help)"
        if invalid := re.match(r'Parser key "(\w+)":\s*(.+)', message, re.DOTALL):
            # For several types, the reason of the first one; the other one is None.
            reason = re.sub(r"^Does not validate.*?\n\s*- (.*?)\n.*", r"\1", invalid[2], flags=re.DOTALL)
            value = re.search(r"(?:Got|Given) value: (.*)", invalid[2])
            reason = re.sub(r"\. Got value: .*|\ba (?=typing)", "", " ".join(reason.split()))
            reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason).replace("typing.Literal", "one of ")
            reason = re.sub("^'utf-8' codec .*", "the name is not valid UTF-8", reason)
            return f"{names[invalid[1]]}{f' {value[1]!r}' if value else ''}: {reason}"
        return " ".join(message.removeprefix("argument ").split())


def parse_splits(text: str) -> list[int]:
    """Parse the value of ``--splits``: numbers of official splits, such as "1,2,3"; "" for none."""
    numbers = text.split(",") if text else []
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise CrosspairError(f"--splits {text!r} is not a list of split numbers such as 1,2,3")
    if len(set(numbers)) < len(numbers):
        raise CrosspairError(f"--splits {text!r} contains a split more than once")
    return [int(number) for number in numbers]


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Parse the values KEY=VALUE of an option."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or key.strip() in pairs:
            raise CrosspairError(f"{option} {text!r} must have the form KEY=VALUE, with each key once")
        pairs[key.strip()] = value.strip()
    return pairs


def check_engine(engine: str, address: str | None) -> None:
    """Check that ``--address`` and ``torchrun`` do not conflict with ``--engine``."""
    if address is not None and engine != "ray":
        raise CrosspairError("--address requires --engine ray")
    if engine == "ray" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CrosspairError("--engine ray starts its own processes; run it without torchrun")


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a value as JSON, in ASCII if the terminal does not use UTF-8."""
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    lines = json.dumps(value, ensure_ascii=not unicode, indent=2).split("\n")
    print("\n".join(map(escape_controls, lines)))
