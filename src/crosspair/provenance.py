"""Where a number comes from: recipe, data, code, seed and machine."""

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
    """What the numbers were computed on."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    memory: float
    """GiB of the whole machine; 0 where the system does not tell."""
    torch: str
    """Version of PyTorch."""
    device: str
    """The accelerator's name, or "cpu"."""


@dataclass(frozen=True)
class Provenance:
    """All that is needed to get a number again."""

    recipe: str
    """Hash of the recipe, see `crosspair.recipes.recipe_hash`; empty where it is not known."""
    model: str
    """Hash of the model's weights, see `crosspair.models.CPD.hash`."""
    manifest: str
    """Hash of the manifest's rows, see `crosspair.corpora.Manifest.hash`."""
    commit: str
    """``git describe`` of the package's checkout, with "-dirty" where more than documents and
    measurements was changed since; empty when it runs from no checkout."""
    seed: int
    machine: Machine
    created: str
    """ISO 8601, UTC, to the second."""
    manifest_file: str = ""
    """The manifest's file name, for people; empty in files of earlier versions."""

    @property
    def data(self) -> str:
        """As "ucf10.parquet ba9876543210": the manifest's file name, if known, and its hash."""
        return f"{self.manifest_file} {self.manifest}".strip()


def provenance(
    *, recipe: str, model: str, manifest: str, seed: int, manifest_file: str = ""
) -> Provenance:
    """Describe this machine and this moment.

    >>> provenance(recipe="", model="0123456789ab", manifest="ba9876543210", seed=0).seed
    0
    """
    now = datetime.datetime.now(datetime.UTC)
    created = now.isoformat(timespec="seconds")
    return Provenance(
        recipe, model, manifest, commit_of(Path(__file__)), seed, _machine(), created, manifest_file
    )


def commit_of(file: Path) -> str:
    """``git describe`` of the checkout that tracks a file, or nothing; see `Provenance.commit`."""
    # An installed package may lie in an environment within somebody else's checkout.
    if not _git(file.parent, "ls-files", "--error-unmatch", file.name):
        return ""
    # What a command has just written must not mark what is written next.
    unjudged = [f":(top,exclude){each}" for each in ("docs", "benchmarks/results")]
    changed = _git(file.parent, "diff", "--name-only", "HEAD", "--", ":(top)", *unjudged)
    return _git(file.parent, "describe", "--always", "--tags") + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _machine() -> Machine:
    import torch  # here, since reading results needs none of it

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return Machine(_cpu(), cpu_count(), _memory(), torch.__version__, device)


def _cpu() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> float:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0.0
    return round(size / 2**30, 1)
