"""Provenance of results: recipe, model, data, commit, seed and machine."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crosspair.workers import cpu_count


@dataclass(frozen=True)
class Machine:
    """The machine that computed a result."""

    cpu: str
    """Name of the processor."""
    cores: int
    """Cores available to this process."""
    memory: float
    """Total memory in GiB; 0 if unknown."""
    torch: str
    """Version of PyTorch."""
    device: str
    """Name of the GPU, or "cpu"."""

    def __str__(self) -> str:
        return f"{self.cpu if self.device == 'cpu' else self.device}, {self.cores} cores"


@dataclass(frozen=True)
class Provenance:
    """Everything needed to reproduce a result."""

    recipe: str
    """Hash of the recipe, see `crosspair.recipes.recipe_hash`; empty if unknown."""
    model: str
    """Hash of the model's weights, see `crosspair.models.CPD.hash`."""
    manifest: str
    """Hash of the manifest's rows, see `crosspair.corpora.Manifest.hash`."""
    commit: str
    """``git describe`` of the package's checkout, with "-dirty" if files outside ``docs`` and
    ``benchmarks/results`` were changed; empty without a checkout."""
    seed: int
    machine: Machine
    created: str
    """Time in ISO 8601, UTC, in seconds."""
    manifest_file: str = ""
    """File name of the manifest; empty in files of earlier versions."""

    @property
    def data(self) -> str:
        """The manifest's file name, if known, and its hash, as "ucf10.parquet ba9876543210"."""
        return f"{self.manifest_file} {self.manifest}".strip()


def provenance(*, recipe: str, model: str, manifest: str, seed: int, manifest_file: str = "") -> Provenance:
    """Build a `Provenance` with this machine, the commit and the current time.

    >>> provenance(recipe="", model="0123456789ab", manifest="ba9876543210", seed=0).seed
    0
    """
    now = datetime.datetime.now(datetime.UTC)
    created = now.isoformat(timespec="seconds")
    return Provenance(
        recipe, model, manifest, git_describe(Path(__file__)), seed, current_machine(), created, manifest_file
    )


def current_machine() -> Machine:
    """Describe this machine."""
    import torch  # lazily: reading results does not need it

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return Machine(_cpu_name(), cpu_count(), _total_memory(), torch.__version__, device)


def git_describe(file: Path) -> str:
    """Return ``git describe`` of the checkout that tracks a file, see `Provenance.commit`; empty if untracked."""
    # An installed package may lie in an environment inside another checkout.
    if not _git(file.parent, "ls-files", "--error-unmatch", file.name):
        return ""
    # Outputs of earlier commands must not mark later results as dirty.
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


def _cpu_name() -> str:
    with suppress(OSError):
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _total_memory() -> float:
    """Return the machine's physical memory in GiB; 0 if unknown."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0.0
    return round(size / 2**30, 1)
