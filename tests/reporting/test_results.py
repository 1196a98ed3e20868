"""Results files: round trip, older versions and invalid files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crosspair.errors import RunError
from crosspair.evaluation import Provenance, Result, read_results, write_results


def test_round_trip(tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    path = tmp_path / "deep" / "results.json"
    details = {"per_class": {"a “dog”": 0.5}, "confusion": {"a “dog”": {"cat\n": 2}}}
    full = [*results, replace(results[2], interval=(0.7, 0.8), details=details)]
    write_results(path, full, origin)
    assert read_results(path) == (full, origin)
    assert len(path.read_text().splitlines()) < 30 + len(full)
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_files_of_earlier_versions_are_read(tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    path = tmp_path / "results.json"
    write_results(path, results, origin)
    content = json.loads(path.read_text())
    assert content["provenance"].pop("manifest_file") == ""
    assert all("interval" not in each and "details" not in each for each in content["results"])
    path.write_text(json.dumps(content, indent=2))
    assert read_results(path)[0] == results


def test_failed_write_keeps_the_old_file(
    tmp_path: Path, results: list[Result], origin: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_results(path, results, origin)
    for value in (math.nan, math.inf):
        with pytest.raises(RunError, match="kNN"):
            write_results(path, [replace(results[2], value=value)], origin)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crosspair.files.os.fsync", full)
    with pytest.raises(RunError, match=r"results\.json.*No space left"):
        write_results(path, results[:1], origin)
    monkeypatch.undo()
    assert read_results(path)[0] == results
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("results.1.of", 3), ("results.1.of", ""), ("results.2.value", None), ("results.0.value", "much"),
        ("results.2.interval", [0.1]), ("results.2.settings", ["k", 25]), ("results.2.details", 0.5),
        ("results.2.colour", "red"), ("provenance", None), ("", [1]), ("", None),
    ],
)  # fmt: skip
def test_invalid_file(path: str, value: Any, tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    """A value of the file is replaced, or removed if it is None."""
    file = tmp_path / "results.json"
    write_results(file, results, origin)
    content = json.loads(file.read_text())
    *parents, key = path.split(".")
    parent = content
    for each in parents:
        parent = parent[int(each) if isinstance(parent, list) else each]
    if value is None:
        parent.pop(key, None)
    else:
        parent[key] = value
    text = json.dumps(content if path else value)
    file.write_text(text if path or value else json.dumps(content)[:-20])
    with pytest.raises(RunError) as error:
        read_results(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
