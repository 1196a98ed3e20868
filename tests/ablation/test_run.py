"""Files of an ablation: training pairs, the lock, the state of cells, and the summary."""

import dataclasses
import fcntl
import json
import re
from pathlib import Path

import pytest

from crosspair.ablation import ablate, plan_cells, read_plan, run
from crosspair.ablation.cells import Job, read_state, status, write_state, write_summary
from crosspair.ablation.work import _evaluated_manifests
from crosspair.corpora import Manifest
from crosspair.errors import RunError


@pytest.mark.parametrize("column", ["title", "title_tree"])
def test_written_pairs_match_the_preview(plan_file, tmp_path, column) -> None:
    plan = read_plan(plan_file(), [f"text.column={column}", "corpus.wrong_titles=0.5"])
    source, cells = plan_cells(plan, tmp_path / "out")
    paths = {source.write(cell.corpus, cell.seed) for cell in cells}
    assert len(paths) == 1  # shared by both rows
    written = Manifest.read(paths.pop())
    assert written.column("title") == source.preview(cells[0].corpus, 0).column("title")
    train = written.split("train")
    assert sum(bool(title) for title in train.column(column)) == cells[0].pairs
    rendered = Manifest.read(next((tmp_path / "out" / "corpora").glob("rendered-*/")))
    for clip, other in zip(written.clips(), rendered.clips(), strict=True):
        assert Path(clip.path).samefile(other.path)


def test_folder_in_use(plan_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run, "_LOCK_TIMEOUT", 0.0)
    (tmp_path / "cells").mkdir()
    with (tmp_path / "cells" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=re.escape(str(tmp_path))):
            ablate(read_plan(plan_file()), tmp_path)


def test_folder_is_a_file(plan_file, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        ablate(read_plan(plan_file()), tmp_path / "file")


def test_summary_contains_the_state_of_cells(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file(seeds=[0, 1]))
    _, cells = plan_cells(plan, tmp_path)
    states = [
        {
            "status": "done",
            "error": "of an earlier run",
            "seconds": {"pretrain": 2.0},
            "clips": 16,
            "pairs": 17,
        },
        {"status": "failed", "error": "no room"},
        {"status": "done"},  # but its results are gone
    ]
    for cell, state in zip(cells, states, strict=False):
        write_state(tmp_path / cell.folder, state)
    (tmp_path / cells[0].folder / "results.json").write_text("{}")
    (tmp_path / cells[3].folder).mkdir(parents=True)
    (tmp_path / cells[3].folder / "cell.json").write_text("{torn")
    write_summary(tmp_path, plan, cells)
    summary = json.loads((tmp_path / "ablation.json").read_text())
    assert summary["plan"]["first"] == {"temperature": "cold"}
    assert [cell["status"] for cell in summary["cells"]] == ["done", "failed", "missing", "missing"]
    assert [cell["error"] for cell in summary["cells"]] == [None, "no room", None, None]
    assert (summary["cells"][0]["clips"], summary["cells"][0]["pairs"]) == (16, 17)
    assert summary["cells"][3]["clips"] == cells[3].clips
    assert read_plan(str(tmp_path / "plan.yaml")) == plan
    assert status(tmp_path / cells[1].folder) == "failed"
    assert read_state(tmp_path / "nowhere") == {}


def test_report_only_without_done_cells_writes_nothing(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file())
    _, cells = plan_cells(plan, tmp_path)
    write_summary(tmp_path, plan, cells)
    before = (tmp_path / "plan.yaml").read_bytes()
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        ablate(read_plan(plan_file(seeds=[7])), tmp_path, report_only=True)
    assert (tmp_path / "plan.yaml").read_bytes() == before


def test_provenance_names_evaluated_manifests() -> None:
    job = Job({}, "pairs", ("knn",), 3, "tested", {"videos": "tuned"}, False)
    assert _evaluated_manifests(job) == ["tested", "tuned"]
    assert _evaluated_manifests(dataclasses.replace(job, finetuning={"videos": "tested"})) == [
        "tested"
    ]
    assert _evaluated_manifests(dataclasses.replace(job, protocols=())) == ["tuned"]


def test_unequal_clips_are_logged(plan_file, tmp_path, caplog) -> None:
    plan = read_plan(plan_file())
    _, cells = plan_cells(plan, tmp_path)
    for cell, clips in zip(cells, (24, 16), strict=True):
        write_state(tmp_path / cell.folder, {"status": "done", "clips": clips})
        (tmp_path / cell.folder / "results.json").write_text("{}")
    run._warn_unequal_clips(tmp_path, cells)
    for words in ("cold, seed 0", "24", "warm, seed 0", "16"):
        assert words in caplog.text
