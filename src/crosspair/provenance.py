"""Provenance of results: recipe, model, data, commit, seed and machine."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from crosspair.workers import cpu_count


@dataclass(frozen=True)
class Machine:
    """The machine that computed a result."""

    cpu: str  # name of the processor
    cores: int  # available to this process
    memory: float  # all memory in GiB; 0 if unknown
    torch: str  # version of PyTorch
    device: str  # name of the GPU, or "cpu"

    def __str__(self) -> str:
        return f"{self.cpu if self.device == 'cpu' else self.device}, {self.cores} cores"


@dataclass(frozen=True)
class Provenance:
    """Everything needed to reproduce a result."""

    recipe: str  # hash of the recipe, see `crosspair.recipes.recipe_hash`; empty if unknown
    model: str  # hash of the model's weights, see `crosspair.models.CPD.hash`
    manifest: str  # hash of the manifest's rows, see `crosspair.corpora.Manifest.hash`
    commit: str  # see `git_describe`
    seed: int
    machine: Machine
    created: str  # time in ISO 8601, UTC, in seconds
    manifest_file: str = ""  # file name of the manifest; empty in files of earlier versions
    compared: Mapping[str, str] = field(default_factory=dict)  # hashes of other models' weights, by name

    @property
    def data(self) -> str:
        """The manifest's file name, if known, and its hash, as "ucf10.parquet ba9876543210"."""
        return f"{self.manifest_file} {self.manifest}".strip()


def provenance(
    *,
    recipe: str,
    model: str,
    manifest: str,
    seed: int,
    manifest_file: str = "",
    compared: Mapping[str, str] | None = None,
) -> Provenance:
    """Build a `Provenance` with this machine, the commit and the current time.

    >>> provenance(recipe="", model="0123456789ab", manifest="ba9876543210", seed=0).seed
    0
    """
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    commit, machine = git_describe(Path(__file__)), current_machine()
    return Provenance(recipe, model, manifest, commit, seed, machine, created, manifest_file, compared or {})


def current_machine() -> Machine:
    """Describe this machine."""
    import torch  # lazily: reading results does not need it

    cpu, memory = platform.processor() or platform.machine(), 0.0
    with suppress(OSError):
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = match[1].strip() if match else cpu
    with suppress(AttributeError, ValueError, OSError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return Machine(cpu, cpu_count(), memory, torch.__version__, device)


def git_describe(file: Path) -> str:
    """Return ``git describe`` of the checkout that tracks a file; empty if it is untracked.

    "-dirty" is appended if files outside ``docs`` and ``benchmarks/results`` were changed: outputs of
    earlier commands must not mark later results.
    """
    # An installed package may lie in an environment inside another checkout.
    if not _git(file.parent, "ls-files", "--error-unmatch", file.name):
        return ""
    excluded = [f":(top,exclude){folder}" for folder in ("docs", "benchmarks/results")]
    changed = _git(file.parent, "diff", "--name-only", "HEAD", "--", ":(top)", *excluded)
    return _git(file.parent, "describe", "--always", "--tags") + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command run in a folder; empty if it fails or takes 10 s."""
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
