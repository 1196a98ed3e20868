"""Ablation reports: the table of all results, means and differences, findings, incomplete cells and files."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from crosspair.errors import RunError
from crosspair.evaluation import read_results, write_results
from crosspair.evaluation.results import RecordingCounts
from crosspair.reporting.ablation import (
    ablation_markdown,
    axis_charts,
    dot_charts,
    validation_panels,
    write_ablation_report,
)
from crosspair.reporting.ablation_results import judge_claims, read_ablation
from crosspair.reporting.ablation_tables import ablation_tables, describe_findings, describe_uncertainty, tuning_tables
from crosspair.reporting.tables import ReportTable, TableCell
from tests.reporting.ablations import OBJECTIVES, write_ablation

PUBLISHED = sorted((Path(__file__).parents[2] / "docs/results/ablations").iterdir())
AXES = {"objective": OBJECTIVES}
LOST = {("ranking", 1): "failed", ("in-batch", 0): "missing", ("in-batch", 2): "missing"}
DIAL = {"objective": OBJECTIVES[:2], "wrong titles": ("0", "0.25", "0.5")}


def tables_of(folder: Path) -> list[ReportTable]:
    return ablation_tables(read_ablation(folder))


def findings_of(folder: Path) -> list[str]:
    return describe_findings(read_ablation(folder))


def texts(cell: TableCell) -> tuple[str, str]:
    return cell.text, cell.detail


def test_means_and_paired_differences_over_seeds(tmp_path: Path) -> None:
    table, *_ = tables_of(write_ablation(tmp_path, AXES))
    assert [row[0].text for row in table.rows] == [*OBJECTIVES, "random weights", "chance"]
    assert [texts(row[1]) for row in table.rows] == [  # kNN on the visual feature
        ("41.0 ± 1.0 %", ""),
        ("43.0 ± 1.2 %", "+2.0 ± 0.1 (+1.5 to +2.5)"),  # the variation of the baseline cancels out
        ("45.0 ± 1.4 %", "+4.0 ± 0.2 (+3.0 to +5.0)"),
        ("22.0 ± 2.0 %", ""),
        ("6.2 %", ""),
    ]
    assert [row[1].style for row in table.rows[:3]] == ["", "significant", "significant"]
    assert [row[0].detail for row in table.rows[2:]] == [
        "3 seeds", "3 seeds; no pre-training", "random guessing",
    ]  # fmt: skip


def test_protocols_are_grouped_by_the_papers_tables(tmp_path: Path) -> None:
    tables = tables_of(write_ablation(tmp_path, AXES))
    assert [[cell.text for cell in table.head[1:]] for table in tables] == [
        ["kNN, top-1", "kNN, top-1", "linear, top-1"],
        ["3 views, top-1"],
        ["retrieval text→video, R@10", "retrieval text→video, median rank"],
    ]
    assert texts(tables[2].rows[1][2]) == ("29 ± 0", "−1.0 ± 0.0")


def test_incomplete_cells_are_listed_and_not_averaged(tmp_path: Path) -> None:
    lost = {**LOST, ("in-batch", 1): "failed"}
    table, *_ = tables_of(write_ablation(tmp_path, AXES, lost=lost))
    _, ranking, in_batch, *_ = table.rows
    assert texts(ranking[1]) == ("43.0 ± 1.7 %", "+2.0 ± 0.2 (−0.5 to +4.5)")
    assert ranking[0].detail == "2 of 3 seeds"
    assert in_batch[0].detail == "0 of 3 seeds"
    assert {cell.text for cell in in_batch[1:]} == {"–"}
    page = write_ablation_report(tmp_path).read_text("utf-8")
    text = (tmp_path / "report.md").read_text("utf-8")
    for report in (page, text):
        assert "5 of 9 cells" in report
        assert report.count("RunError: the loss is not finite") == 2
        assert "cells/011/log.txt" in report
    results = pd.read_parquet(tmp_path / "results.parquet")
    results = results[results.clips_seen.isna()]
    states = list(results[results.value.isna()][["row", "seed", "status"]].itertuples(index=False, name=None))
    assert sorted(states) == sorted((*key, status) for key, status in lost.items())


def test_table_of_results_has_every_result_and_its_provenance(tmp_path: Path) -> None:
    write_ablation_report(write_ablation(tmp_path, DIAL, seeds=(0, 1)))
    table = pd.read_parquet(tmp_path / "results.parquet")
    table = table[table.clips_seen.isna()]
    for (row, seed), lines in table.groupby(["row", "seed"]):
        results, origin = read_results(tmp_path / lines.cell.iloc[0] / "results.json")
        assert row == " / ".join((lines["axis.objective"].iloc[0], lines["axis.wrong titles"].iloc[0]))
        assert lines.value.tolist() == [result.value for result in results]
        assert [json.loads(each) for each in lines.settings] == [result.settings for result in results]
        assert {*lines.seed, *lines.commit, *lines.cpu} == {seed, origin.commit, origin.machine.cpu}


def test_report_without_cells_is_that_with_cells(tmp_path: Path) -> None:
    page = write_ablation_report(write_ablation(tmp_path, AXES, lost=LOST)).read_text("utf-8")
    tables = [table.markdown() for table in tables_of(tmp_path)]
    before = (tmp_path / "report.csv").read_bytes(), (tmp_path / "results.parquet").read_bytes()
    shutil.rmtree(tmp_path / "cells")
    (tmp_path / "ablation.json").unlink()
    again = write_ablation_report(tmp_path).read_text("utf-8")
    assert again.count("<svg") == page.count("<svg") > 0  # learning curves too
    assert [table.markdown() for table in tables_of(tmp_path)] == tables
    assert ((tmp_path / "report.csv").read_bytes(), (tmp_path / "results.parquet").read_bytes()) == before


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_reports_are_generated_from_their_results(folder: Path) -> None:
    assert ablation_markdown(read_ablation(folder), folder) == (folder / "report.md").read_text("utf-8")


def test_csv_means_are_those_of_the_seeds(tmp_path: Path) -> None:
    write_ablation_report(write_ablation(tmp_path, AXES))
    keys = ["row", "of", "protocol", "metric", "feature"]
    results = read_ablation(tmp_path).results
    seeds = {key: list(values) for key, values in results[results.of == "trained"].groupby(keys).value}
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        means = {tuple(line[key] for key in keys): line for line in csv.DictReader(file) if line["of"] == "trained"}
    assert means.keys() == seeds.keys()
    for key, line in means.items():
        assert float(line["value"]) == pytest.approx(statistics.fmean(seeds[key]))
        assert float(line["deviation"]) == pytest.approx(statistics.stdev(seeds[key]), abs=1e-12)
        assert int(line["seeds"]) == 3


def claim(protocol: str = "kNN", difference: float | None = None, **rows: float) -> dict[str, Any]:
    rows = {name.replace("_", " "): weight for name, weight in rows.items()}
    return {"claim": "x", "source": "paper", "rows": rows, "difference": difference, "protocol": protocol}


def test_verdicts_on_claims(tmp_path: Path) -> None:
    """The differences to "b" are those of `write_ablation`: +4 (+3 to +5) points for "d"."""
    claims = [
        claim(d=1, b=-1),
        claim(b=1, d=-1),
        claim(difference=0.06, d=1, b=-1),
        claim(d=1, c=-2, b=1),
        claim("linear", d=1, c=-1),  # -0.8 to +6.7 points
        claim("linear", d=1, c=-1, difference=0.1),
        claim("30 views", d=1, b=-1),
    ]
    ablation = read_ablation(write_ablation(tmp_path, {"axis": ("b", "c", "d")}, claims=claims))
    judged = judge_claims(ablation)
    assert [each.verdict for each in judged] == [
        "supported", "not supported", "supported", "not testable at this size",  # 0 in every seed: no interval
        "not testable at this size", "not supported", "not measured",
    ]  # fmt: skip
    decisive = judged[0].decisive
    assert decisive
    found = judged[0].differences[decisive]
    assert [round(100 * found[key], 1) for key in ("difference", "low", "high")] == [4.0, 3.0, 5.0]
    text = ablation_markdown(ablation, tmp_path)
    assert text.index("## Claims") < text.index("| supported<br>kNN | +4.0 ± 0.2 (+3.0 to +5.0) |")


def test_claims_need_two_seeds_and_a_row_above_random_weights(tmp_path: Path) -> None:
    for name, seeds, shift, reason in (("one", (0,), 0.02, "with one seed"), ("low", (0, 1, 2), -0.2, "at this size")):
        (tmp_path / name).mkdir()
        folder = write_ablation(tmp_path / name, {"axis": ("b", "c", "d")}, seeds=seeds, shift=shift,
                                claims=[claim(c=1, d=-1)])  # fmt: skip
        (judged,) = judge_claims(read_ablation(folder))
        assert judged.verdict == f"not testable {reason}"


def test_single_videos_widen_the_interval(tmp_path: Path) -> None:
    folder = write_ablation(tmp_path, {"axis": ("b", "c")}, claims=[claim(c=1, b=-1)])
    (before,) = judge_claims(read_ablation(folder))
    for number, correct in (("00", [2, 0, 0]), ("01", [1, 1, 1])):
        for seed in range(3):
            path = folder / f"cells/{number}{seed}/results.json"
            results, origin = read_results(path)
            counts = RecordingCounts(["a", "b", "c"], [correct], [[2, 1, 1]])
            results[0] = replace(results[0], by_recording=counts)
            write_results(path, results, origin, by_recording=True)
    (after,) = judge_claims(read_ablation(folder))
    one, other = (each.differences[each.decisive] for each in (before, after) if each.decisive)
    # Differences of the recordings: -1 of 2 videos, 1 of 1, 1 of 1; minus a mean of 1/4 per video: -6/4, 3/4, 3/4.
    error = math.sqrt((1.5**2 + 2 * 0.75**2) / 16 * 3 / 2)
    assert other["error"] == pytest.approx(math.hypot(one["error"], error))
    half = math.hypot((one["high"] - one["low"]) / 2, 1.959964 * error)
    assert other["high"] - other["low"] == pytest.approx(2 * half)


def test_values_tried_by_tuning_are_listed_and_not_averaged(tmp_path: Path) -> None:
    folder = write_ablation(tmp_path, AXES, tuning={"seed": 100, "metric": "knn", "overrides": {}})
    before = read_ablation(folder).means.to_dict()
    path = folder / "ablation.json"
    content = json.loads(path.read_text())
    for rate in (1, 2):
        shutil.copytree(folder / f"cells/01{rate}", folder / f"cells/tuning{rate}")
        tried = {"tuning": True, "seed": 100, "grid": {"optimizer.lr": rate}, "folder": f"cells/tuning{rate}"}
        content["cells"].append({**content["cells"][1], **tried})
    for cell in content["cells"][1::3]:
        cell["grid"] = {"optimizer.lr": 2}
    path.write_text(json.dumps(content))
    ablation = read_ablation(folder)
    assert ablation.means.to_dict() == before
    (table,) = tuning_tables(ablation)
    assert [[(cell.text, cell.detail) for cell in row] for row in table.rows] == [
        [("ranking", ""), ("optimizer.lr 1", ""), ("43.0 %", "")],
        [("ranking", ""), ("optimizer.lr 2", ""), ("44.2 %", "chosen")],
    ]
    assert "optimizer.lr 2" in write_ablation_report(folder).read_text("utf-8")


def test_findings_list_the_best_rows_the_baseline_and_random_weights(tmp_path: Path) -> None:
    rows = ("base", "b", "c", "d", "e")
    for folder, shift in (("up", 0.02), ("down", -0.02)):
        (tmp_path / folder).mkdir()
        write_ablation(tmp_path / folder, {"row": rows}, shift=shift)
    extent, knn, *others = findings_of(tmp_path / "up")
    assert "5 rows" in extent
    assert "“base”" in extent
    assert knn == (
        "kNN: “e” 49.0 ± 1.8 %, +8.0 ± 0.5 (+6.0 to +10.0); “d” 47.0 ± 1.6 %, +6.0 ± 0.3 (+4.5 to +7.5); "
        "“c” 45.0 ± 1.4 %, +4.0 ± 0.2 (+3.0 to +5.0); “base” (baseline) 41.0 ± 1.0 %; random weights 22.0 ± 2.0 %."
    )
    assert findings_of(tmp_path / "down")[1].startswith("kNN: “base” (baseline) 41.0 ± 1.0 %; “b” 39.0 ± 0.8 %, −2.0 ±")
    assert "4.3 standard errors" in describe_uncertainty(read_ablation(tmp_path / "up"))
    (tuned,) = (text for text in others if "views" in text)
    assert tuned.startswith("Fine-tuned, 3 views: ")
    assert "; trained from scratch 5" in tuned


def test_best_rows_have_all_seeds(tmp_path: Path) -> None:
    lost = {("in-batch", 0): "failed", ("in-batch", 1): "missing"}  # in-batch's seed is the best
    (tmp_path / "one").mkdir()
    assert findings_of(write_ablation(tmp_path / "one", AXES, lost=lost))[1].startswith("kNN: “ranking” 43.0 ± 1.2 %")
    lost = {(name, seed): "missing" for seed, name in enumerate(OBJECTIVES)}
    (tmp_path / "none").mkdir()
    assert "in-batch" not in findings_of(write_ablation(tmp_path / "none", AXES, lost=lost))[1]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    finding = findings_of(write_ablation(tmp_path, AXES, seeds=(0,)))[1]
    assert finding.startswith("kNN: “in-batch” 43.6 %, +3.6; ")


def test_numeric_axes_are_drawn_as_lines_and_others_as_dots(tmp_path: Path) -> None:
    for name, axes in (("dial", DIAL), ("rows", AXES)):
        (tmp_path / name).mkdir()
        write_ablation(tmp_path / name, axes, seeds=(0, 1))
    dial, rows = (read_ablation(tmp_path / name) for name in ("dial", "rows"))
    charts = axis_charts(dial)
    assert [chart.title for chart in charts] == [
        "kNN, top-1", "linear, top-1", "3 views, top-1", "retrieval text→video, R@10",
    ]  # fmt: skip
    for name in (*OBJECTIVES[:2], "wrong titles", "0.25"):
        assert f">{name}<" in charts[0].svg
    assert axis_charts(rows) == []
    (tmp_path / "one").mkdir()
    one = read_ablation(write_ablation(tmp_path / "one", {"epochs": ("8", "16", "32")}))
    assert len(axis_charts(one)) == 4
    for name in (*OBJECTIVES, "random weights", "chance"):
        assert f">{name}<" in dot_charts(rows)[0].svg


def test_started_rows_have_curves(tmp_path: Path) -> None:
    lost = {**LOST, ("in-batch", 1): "missing"}
    panels = validation_panels(read_ablation(write_ablation(tmp_path, AXES, lost=lost)))
    assert [(panel.title, panel.caption) for panel in panels] == [
        ("cross-pair NCE", "3 seeds"), ("ranking", "3 seeds, 1 of them not done (dotted)"),
    ]  # fmt: skip
    assert ">16<" in panels[0].svg  # thousand clips


def test_learning_curves_count_the_clips_of_all_views(tmp_path: Path) -> None:
    path = write_ablation(tmp_path, {"axis": ("b", "c")}, seeds=(0,)) / "ablation.json"
    content = json.loads(path.read_text())
    content["cells"][1]["views"] = 2
    path.write_text(json.dumps(content))
    clips = read_ablation(tmp_path).curves.groupby("row").clips_seen.max()
    assert clips["b"] == 16000
    assert clips["c"] == 32000


def test_page_is_well_formed_and_its_links_exist(tmp_path: Path) -> None:
    write_ablation(tmp_path, {"a <b>": ("x & y", "<z>")}, lost={("<z>", 0): "failed"})
    text = write_ablation_report(tmp_path).read_text("utf-8")
    ElementTree.fromstring(re.sub(r"<!doctype html>|<(meta|img|source|link)\b[^>]*>", "", text, flags=re.IGNORECASE))
    links = [link for link in re.findall(r' (?:href|src)="([^"#][^"]*)"', text) if not link.startswith("data:")]
    assert len(links) == 6
    assert all((tmp_path / link).is_file() for link in links)


def test_cells_link_to_their_pages_and_damaged_results_count_as_failed(tmp_path: Path) -> None:
    write_ablation(tmp_path, AXES, seeds=(0,))
    (tmp_path / "cells/000/report.html").write_text("")
    (tmp_path / "cells/010/results.json").write_text("{")
    ablation = read_ablation(tmp_path)
    assert list(ablation.cells.status) == ["done", "failed", "done"]
    assert "results.json" in ablation.cells.iloc[1].error
    assert "cells/000/report.html" in ablation_markdown(ablation, tmp_path)


def test_damaged_ablation(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=str(tmp_path)):
        write_ablation_report(tmp_path)
    write_ablation(tmp_path, AXES)
    path = tmp_path / "ablation.json"
    content = json.loads(path.read_text())
    for cells in ([{"row": {}}], [], content["cells"][1:3]):
        path.write_text(json.dumps({**content, "cells": cells}))
        with pytest.raises(RunError, match=str(tmp_path)) as error:
            write_ablation_report(tmp_path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()
