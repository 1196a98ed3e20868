"""Results files: round trip, older versions and invalid files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crosspair.errors import RunError
from crosspair.evaluation import Provenance, Result, provenance, read_results, write_results


def test_round_trip(tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    path = tmp_path / "deep" / "results.json"
    write_results(path, results, origin)
    assert read_results(path) == (results, origin)
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_round_trip_of_intervals_and_details(tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    path = tmp_path / "results.json"
    details = {"per_class": {"a “dog”": 0.5}, "confusion": {"a “dog”": {"cat\n": 2}}}
    full = [*results, replace(results[2], interval=(0.7, 0.8), details=details)]
    write_results(path, full, origin)
    assert read_results(path) == (full, origin)
    assert len(path.read_text().splitlines()) < 30 + len(full)


def test_files_of_earlier_versions_are_read(tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    path = tmp_path / "results.json"
    write_results(path, results, origin)
    content = json.loads(path.read_text())
    assert content["provenance"].pop("manifest_file") == ""
    assert all("interval" not in each and "details" not in each for each in content["results"])
    path.write_text(json.dumps(content, indent=2))
    assert read_results(path)[0] == results


def test_provenance_describes_this_machine() -> None:
    found = provenance(recipe="recipe", model="model", manifest="manifest", seed=3)
    assert (found.recipe, found.manifest, found.seed) == ("recipe", "manifest", 3)
    assert found.machine.cpu
    assert found.machine.cores >= 1
    assert found.created.endswith("+00:00")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_values_are_refused(value: float, tmp_path: Path, results: list[Result], origin: Provenance) -> None:
    path = tmp_path / "results.json"
    write_results(path, results, origin)
    with pytest.raises(RunError, match=r"kNN.*top-1.*trained.*(nan|inf)"):
        write_results(path, [replace(results[2], value=value)], origin)
    assert read_results(path)[0] == results


def test_failed_write_keeps_the_old_file(
    tmp_path: Path, results: list[Result], origin: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_results(path, results, origin)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crosspair.files.os.fsync", full)
    with pytest.raises(RunError, match=r"results\.json.*No space left"):
        write_results(path, results[:1], origin)
    monkeypatch.undo()
    assert read_results(path)[0] == results
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results\.json"):
        read_results(tmp_path / "results.json")


def _cut(content: dict[str, Any]) -> str:
    return json.dumps(content)[:-20]


def _unknown_subject(content: dict[str, Any]) -> str:
    content["results"][1]["of"] = "magic"
    return json.dumps(content)


def _without_value(content: dict[str, Any]) -> str:
    del content["results"][2]["value"]
    return json.dumps(content)


def _words_for_value(content: dict[str, Any]) -> str:
    content["results"][0]["value"] = "much"
    return json.dumps(content)


def _half_an_interval(content: dict[str, Any]) -> str:
    content["results"][2]["interval"] = [0.1]
    return json.dumps(content)


def _words_for_interval(content: dict[str, Any]) -> str:
    content["results"][2]["interval"] = ["low", "high"]
    return json.dumps(content)


def _listed_settings(content: dict[str, Any]) -> str:
    content["results"][2]["settings"] = ["k", 25]
    return json.dumps(content)


def _no_details(content: dict[str, Any]) -> str:
    content["results"][2]["details"] = 0.5
    return json.dumps(content)


def _unknown_key(content: dict[str, Any]) -> str:
    content["results"][2]["colour"] = "red"
    return json.dumps(content)


def _without_origin(content: dict[str, Any]) -> str:
    return json.dumps({"results": content["results"]})


def _listed(content: dict[str, Any]) -> str:
    return json.dumps(content["results"])


@pytest.mark.parametrize(
    ("corrupt", "cause"),
    [
        (_cut, "JSONDecodeError: "),
        (_unknown_subject, "'magic'"),
        (_without_value, "'value'"),
        (_words_for_value, "must be real number, not str"),
        (_half_an_interval, "not enough values to unpack"),
        (_words_for_interval, "could not convert string to float: 'low'"),
        (_listed_settings, r"\['k', 25\]"),
        (_no_details, "0.5"),
        (_unknown_key, "'colour'"),
        (_without_origin, "KeyError: 'provenance'"),
        (_listed, "list"),
    ],
)
def test_invalid_file(
    corrupt: Callable[[dict[str, Any]], str], cause: str, tmp_path: Path, results: list[Result], origin: Provenance
) -> None:
    path = tmp_path / "results.json"
    write_results(path, results, origin)
    path.write_text(corrupt(json.loads(path.read_text())))
    with pytest.raises(RunError, match=cause) as error:
        read_results(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
