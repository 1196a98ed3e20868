"""Files of an ablation: training pairs, the lock, jobs, the state of cells, and the summary."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crosspair.ablation import ablate, plan_cells, read_plan, run
from crosspair.ablation.cells import status, update_state, write_jobs, write_summary
from crosspair.ablation.work import evaluated_manifests
from crosspair.corpora import Manifest
from crosspair.errors import RunError


@pytest.mark.parametrize("column", ["title", "title_tree"])
def test_written_pairs_match_the_preview(plan_file, tmp_path, column) -> None:
    plan = read_plan(plan_file(), [f"text.column={column}", "corpus.wrong_titles=0.5"])
    cells = plan_cells(plan, tmp_path / "out")
    paths = {cell.source.write(cell.corpus, cell.seed) for cell in cells}
    assert len(paths) == 1  # shared by both rows
    written = Manifest.read(paths.pop())
    assert written.column("title") == cells[0].source.preview(cells[0].corpus, 0).column("title")
    train = written.split("train")
    assert sum(bool(title) for title in train.column(column)) == cells[0].pairs
    rendered = Manifest.read(next((tmp_path / "out" / "corpora").glob("rendered-*/")))
    for clip, other in zip(written.clips(), rendered.clips(), strict=True):
        assert Path(clip.path).samefile(other.path)


def test_folder_in_use(plan_file, tmp_path) -> None:
    code = (
        "import pathlib, sys; from crosspair.files import file_lock\n"
        "with file_lock(pathlib.Path(sys.argv[1]), ''): print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cells" / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        ablate(read_plan(plan_file()), tmp_path)
    process.communicate()


def test_summary_contains_the_state_of_cells(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file(seeds=[0, 1]))
    cells = plan_cells(plan, tmp_path)
    states = [{"error": "of an earlier run", "seconds": {"pretrain": 2.0}}, {"error": "no room"}, {"error": None}]
    for cell, state in zip(cells, states, strict=False):
        update_state(tmp_path / cell.folder, **state)
    write_metrics(tmp_path / cells[0].folder, pairs=17)
    (tmp_path / cells[0].folder / "results.json").write_text("{}")
    write_summary(tmp_path, plan, cells)
    summary = json.loads((tmp_path / "ablation.json").read_text())
    assert summary["plan"]["first"] == {"temperature": "cold"}
    assert [cell["status"] for cell in summary["cells"]] == ["done", "failed", "missing", "missing"]
    assert [cell["error"] for cell in summary["cells"]] == [None, "no room", None, None]
    assert (summary["cells"][0]["clips"], summary["cells"][0]["pairs"]) == (16, 17)
    assert summary["cells"][3]["clips"] == cells[3].count_clips()
    assert read_plan(str(tmp_path / "plan.yaml")) == plan
    assert status(tmp_path, cells[1]) == "failed"


def write_metrics(folder: Path, pairs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "pairs", "train": pairs}) + "\n")


def test_report_only_without_done_cells_writes_nothing(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file())
    cells = plan_cells(plan, tmp_path)
    write_summary(tmp_path, plan, cells)
    before = (tmp_path / "plan.yaml").read_bytes()
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        ablate(read_plan(plan_file(seeds=[7])), tmp_path, report_only=True)
    assert (tmp_path / "plan.yaml").read_bytes() == before


def test_provenance_names_evaluated_manifests() -> None:
    paths = {"training": "pairs", "evaluation": "tested", "finetuning": "tuned"}
    assert evaluated_manifests(paths) == ["tested", "tuned"]
    assert evaluated_manifests({**paths, "finetuning": "tested"}) == ["tested"]
    assert evaluated_manifests({"training": "pairs", "finetuning": "tuned"}) == ["tuned"]


def test_jobs_of_cells_that_are_not_done(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file())
    first, second = plan_cells(plan, tmp_path)
    (tmp_path / first.folder).mkdir(parents=True)
    (tmp_path / first.folder / "results.json").write_text("{}")
    assert write_jobs(tmp_path, plan, [first, second]) == [second]
    assert not (tmp_path / first.folder / "job.json").exists()
    paths = json.loads((tmp_path / second.folder / "job.json").read_text())["paths"]
    assert paths.keys() == {"training", "evaluation"}
    assert all(Path(path).is_file() for path in paths.values())


def test_unequal_pairs_are_logged(plan_file, tmp_path, caplog) -> None:
    plan = read_plan(plan_file())
    cells = plan_cells(plan, tmp_path)
    for cell, pairs in zip(cells, (24, 16), strict=True):
        write_metrics(tmp_path / cell.folder, pairs)
        (tmp_path / cell.folder / "results.json").write_text("{}")
    run._warn_unequal_pairs(tmp_path, cells)
    for words in ("cold, seed 0", "24", "warm, seed 0", "16"):
        assert words in caplog.text
