"""Embeddings as a file: what cannot be written is told, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.api import write_embeddings
from crosspair.errors import RunError


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "f.parquet"
    with pytest.raises(RunError, match=f"^{path} cannot be written: File exists$"):
        write_embeddings(path, [], {})
