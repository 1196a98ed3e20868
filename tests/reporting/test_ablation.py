"""Ablation reports: the table of all results, means and differences, findings, incomplete cells and files."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from crosspair.errors import RunError
from crosspair.evaluation import read_results
from crosspair.reporting.ablation import (
    ablation_markdown,
    axis_charts,
    dot_charts,
    validation_panels,
    write_ablation_report,
)
from crosspair.reporting.ablation_tables import ablation_tables, describe_findings, describe_uncertainty, read_ablation
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
    states = list(results[results.value.isna()][["row", "seed", "status"]].itertuples(index=False, name=None))
    assert sorted(states) == sorted((*key, status) for key, status in lost.items())


def test_table_of_results_has_every_result_and_its_provenance(tmp_path: Path) -> None:
    write_ablation_report(write_ablation(tmp_path, DIAL, seeds=(0, 1)))
    table = pd.read_parquet(tmp_path / "results.parquet")
    for (row, seed), lines in table.groupby(["row", "seed"]):
        results, origin = read_results(tmp_path / lines.cell.iloc[0] / "results.json")
        assert row == " / ".join((lines["axis.objective"].iloc[0], lines["axis.wrong titles"].iloc[0]))
        assert lines.value.tolist() == [result.value for result in results]
        assert [json.loads(each) for each in lines.settings] == [result.settings for result in results]
        assert {*lines.seed, *lines.commit, *lines.cpu} == {seed, origin.commit, origin.machine.cpu}


def test_report_without_cells_is_that_with_cells(tmp_path: Path) -> None:
    write_ablation_report(write_ablation(tmp_path, AXES, lost=LOST))
    tables = [table.markdown() for table in tables_of(tmp_path)]
    before = (tmp_path / "report.csv").read_bytes(), (tmp_path / "results.parquet").read_bytes()
    shutil.rmtree(tmp_path / "cells")
    (tmp_path / "ablation.json").unlink()
    write_ablation_report(tmp_path)
    assert [table.markdown() for table in tables_of(tmp_path)] == tables
    assert ((tmp_path / "report.csv").read_bytes(), (tmp_path / "results.parquet").read_bytes()) == before


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_reports_are_generated_from_their_results(folder: Path) -> None:
    assert ablation_markdown(read_ablation(folder), folder) == (folder / "report.md").read_text("utf-8")


def test_csv_means_are_those_of_the_seeds(tmp_path: Path) -> None:
    write_ablation_report(write_ablation(tmp_path, AXES))
    keys = ["row", "of", "protocol", "metric", "feature"]
    results = pd.read_parquet(tmp_path / "results.parquet")
    seeds = {key: list(values) for key, values in results[results.of == "trained"].groupby(keys).value}
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        means = {tuple(line[key] for key in keys): line for line in csv.DictReader(file) if line["of"] == "trained"}
    assert means.keys() == seeds.keys()
    for key, line in means.items():
        assert float(line["value"]) == pytest.approx(statistics.fmean(seeds[key]))
        assert float(line["deviation"]) == pytest.approx(statistics.stdev(seeds[key]), abs=1e-12)
        assert int(line["seeds"]) == 3


def test_published_values_are_listed_with_their_source(tmp_path: Path) -> None:
    published = [
        {"row": {"objective": "ranking"}, "source": "paper, Table 9", "value": 0.842,
         "protocol": "30 views", "metric": "top-1"},
        {"row": {"objective": "in-batch"}, "source": "paper", "difference": -0.02,
         "against": {"objective": "ranking"}, "note": "one seed"},
    ]  # fmt: skip
    write_ablation(tmp_path, AXES, published=published)
    tables = tables_of(tmp_path)
    assert [table.head[-1].text == "published" for table in tables] == [True, True, False]
    assert [row[-1].text for row in tables[1].rows][:3] == [
        "", "84.2 % (paper, Table 9; 30 views, top-1)", "",
    ]  # fmt: skip
    # A value without a measured protocol is listed in the first table.
    assert tables[0].rows[2][-1].text == "−2.0 points vs. ranking, one seed (paper)"
    page = write_ablation_report(tmp_path).read_text("utf-8")
    assert "not measured here" in page
    assert "84.2 % (paper, Table 9; 30 views, top-1)" in page


def test_findings_match_the_values(tmp_path: Path) -> None:
    for folder, shift in (("up", 0.02), ("down", -0.02)):
        (tmp_path / folder).mkdir()
        write_ablation(tmp_path / folder, AXES, shift=shift)
    extent, knn, *_ = findings_of(tmp_path / "up")
    assert "3 rows" in extent
    assert "“cross-pair NCE”" in extent
    assert knn == (
        "kNN: best is “in-batch” with 45.0 ± 1.4 %, +4.0 points vs. the baseline (95 % interval "
        "+3.0 to +5.0, significant). Random weights: 22.0 ± 2.0 %."
    )
    assert findings_of(tmp_path / "down")[1].startswith(
        "kNN: best is “cross-pair NCE” with 41.0 ± 1.0 %; second is “ranking” with 39.0 ± 0.8 %, "
        "−2.0 points vs. the baseline (95 % interval −2.5 to −1.5, significant)"
    )
    assert "4.3 standard errors" in describe_uncertainty(read_ablation(tmp_path / "up"))


def test_best_row_has_all_seeds(tmp_path: Path) -> None:
    lost = {("in-batch", 0): "failed", ("in-batch", 1): "missing"}  # in-batch's seed is the best
    (tmp_path / "one").mkdir()
    assert findings_of(write_ablation(tmp_path / "one", AXES, lost=lost))[1].startswith(
        "kNN (2 rows with all seeds): best is “ranking” with 43.0 ± 1.2 %, +2.0"
    )
    lost = {(name, seed): "missing" for seed, name in enumerate(OBJECTIVES)}
    (tmp_path / "none").mkdir()
    assert findings_of(write_ablation(tmp_path / "none", AXES, lost=lost))[1].startswith("kNN: no row")


def test_random_weights_of_fine_tuning_are_trained_from_scratch(tmp_path: Path) -> None:
    findings = findings_of(write_ablation(tmp_path, AXES))
    finding = next(text for text in findings if "views" in text)
    assert "Trained from scratch: " in finding
    assert "Random weights" not in finding


def test_significance_one_seed_and_ties(tmp_path: Path) -> None:
    for folder, seeds, shift in (("three", (0, 1, 2), 1e-4), ("one", (0,), 1e-4), ("level", (0, 1), 0)):
        (tmp_path / folder).mkdir()
        write_ablation(tmp_path / folder, AXES, shift=shift, seeds=seeds)
    assert "not significant" in findings_of(tmp_path / "three")[2]  # linear
    assert "one seed" in findings_of(tmp_path / "one")[1]
    assert findings_of(tmp_path / "level")[1].startswith(
        "kNN: “cross-pair NCE”, “ranking”, “in-batch” are tied at 40.5 ± 0.7 %."
    )


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
    panels = validation_panels(read_ablation(write_ablation(tmp_path, AXES, lost=lost)), tmp_path)
    assert [(panel.title, panel.caption) for panel in panels] == [
        ("cross-pair NCE", "3 seeds"), ("ranking", "3 seeds, 1 of them not done (dotted)"),
    ]  # fmt: skip
    assert ">16<" in panels[0].svg  # thousand clips


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
