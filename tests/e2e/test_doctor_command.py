"""crosspair doctor: installed components, and fixes for missing ones."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from crosspair import doctor
from crosspair.cli import main
from crosspair.doctor import Check, run_checks

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_can_train_and_decode(tmp_path: Path) -> None:
    checks = by_name(run_checks(tmp_path))
    assert all(check.fix for check in checks.values() if not check.ok)
    for name in ("processor", "decoder H.264", "decoder MPEG-4 (Xvid)", "decoder VP9"):
        assert checks[name].ok, checks[name]
    assert re.fullmatch(r"computes in (bfloat16|float32)( with AMX)?", checks["processor"].found)


def test_missing_components_are_listed_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", (("no-such-package", "search", "crosspair index"),))
    monkeypatch.setattr(doctor, "CODECS", {"H.264": ("h264", "no-encoder"), "X": ("no", "none")})
    monkeypatch.setattr(doctor, "MIN_DISK", 1e18)
    monkeypatch.setattr(doctor, "free_shared_memory", lambda: 64 * 2**20)
    checks = by_name(run_checks(tmp_path))
    missing = checks["no-such-package"]
    assert (missing.ok, missing.optional) == (False, True)
    assert missing.fix == 'pip install "crosspair[search]"'
    assert checks["decoder H.264"].ok
    assert "no-encoder" in checks["decoder H.264"].found
    assert not checks["decoder X"].ok
    assert "pip install" in checks["decoder X"].fix
    assert checks["disk"].fix
    assert "--shm-size" in checks["shared memory"].fix
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert re.search(r'no-such-package.*pip install "crosspair\[search\]"', shown)


def test_a_decoder_of_wrong_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = doctor._encode_test_clip("mpeg4")
    monkeypatch.setattr(doctor, "_encode_test_clip", lambda _: clip)
    monkeypatch.setattr(doctor, "FRAMES", 4)  # the clip holds one more
    found = doctor._check_decoder("MPEG-4", "mpeg4", "mpeg4")
    assert not found.ok


def test_json_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("a", True, "there"), Check("b", False, "gone", "c", "fix b", optional=True)]
    monkeypatch.setattr(doctor, "run_checks", lambda _: checks)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert ended.value.code == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["ok"]
    assert second["fix"] == "fix b"


def test_extras_exist_in_pyproject() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra, _ in doctor.EXTRAS} <= set(extras)
