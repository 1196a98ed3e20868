"""Results compared with chance and random weights; the summary of several runs: tables, published values, files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from crosspair.errors import RunError
from crosspair.evaluation import Provenance, Result, write_results
from crosspair.reporting.summary import PUBLISHED, Run, read_runs, summary_frame, summary_tables, write_summary
from crosspair.reporting.tables import Column, compare_with_baselines, markdown_table
from tests.reporting.conftest import Html


def test_ratios_by_hand(results: list[Result]) -> None:
    knn, rank = compare_with_baselines(results).itertuples()
    assert (knn.chance, knn.random, knn.trained) == (0.0625, 0.25, 0.75)
    assert (knn.over_chance, knn.over_random) == (12.0, 3.0)
    assert (rank.chance, rank.random, rank.trained) == (100.5, 80.0, 4.0)
    assert (rank.over_chance, rank.over_random) == (25.125, 20.0)


def test_chance_without_a_feature_applies_to_all_features(results: list[Result]) -> None:
    other = replace(results[2], feature="embedding", value=0.5)
    first, second = compare_with_baselines([*results[:3], other]).itertuples()
    assert (first.feature, second.feature) == ("visual", "embedding")
    assert second.over_chance == 8.0
    assert second.over_random is None


def test_other_models_are_columns_before_the_trained_one(results: list[Result]) -> None:
    other = replace(results[2], of="clip", value=0.5)
    only = Result("zero-shot", "top-1", 0.4, "clip", feature="embedding")
    frame = compare_with_baselines([*results, other, only])
    assert frame.others.tolist() == [{"clip": 0.5}, {}, {"clip": 0.4}]
    head, _, knn, *_, zeroshot = markdown_table([*results, other, only]).splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in (head, knn, zeroshot)]
    place = cells[0].index("clip")
    assert cells[0][place - 1 : place + 2] == ["random weights", "clip", "trained"]
    assert cells[1][place - 1 : place + 2] == ["25.0 %", "50.0 %", "75.0 %"]
    assert cells[2][place - 1 : place + 2] == ["–", "40.0 %", "–"]


def test_the_mean_of_draws_has_its_standard_deviation(results: list[Result]) -> None:
    draws = replace(results[2], details={"draws": [0.7, 0.8], "spread": 0.0707})
    assert "| 75.0 % ± 7.1 |" in markdown_table([draws])


def test_no_ratio_to_zero(results: list[Result]) -> None:
    frame = compare_with_baselines([replace(results[1], value=0.0), results[2]])
    assert frame.over_random.tolist() == [None]


def test_duplicate_results_are_refused(results: list[Result]) -> None:
    with pytest.raises(RunError, match=r"trained.*kNN, top-1 \(visual"):
        compare_with_baselines([*results, replace(results[2], value=0.8)])


def test_interval_follows_the_trained_value(results: list[Result]) -> None:
    trained = replace(results[2], interval=(0.705, 0.79))
    assert "| 75.0 % (70.5–79.0) |" in markdown_table([*results[:2], trained])
    assert "| 75.0 % |" in markdown_table(results[:3])


KNN = {"k": 25, "classes": 10, "clips": 10}
VIEWS = {"clips": 10, "crops": 3, "classes": 101, "labels": 1.0}


def finetuned(value: float, of: str = "trained", **settings: object) -> Result:
    return Result("30 views", "top-1", value, of, count=300, settings={**VIEWS, **settings})  # type: ignore[arg-type]


@pytest.fixture
def frozen() -> list[Result]:
    visual = Result(
        "kNN", "top-1", 0.4444, "trained", feature="visual", count=378, settings=KNN,
        interval=(0.3915, 0.4948),
    )  # fmt: skip
    return [
        visual,
        replace(visual, value=0.1, of="chance", feature="", interval=None),
        replace(visual, value=0.45, feature="embedding"),
        replace(visual, value=0.24, of="random weights"),
        replace(visual, protocol="zero-shot", feature="embedding", value=0.3),
        Result("retrieval text→video", "median rank", 63.0, "trained", feature="embedding"),
    ]


def frame_of(results: Sequence[Result], origin: Provenance, number: str) -> pd.DataFrame:
    """The values of one table."""
    frame = summary_frame([Run("mine", Path("r.json"), results, origin)])
    return frame[frame.table == number]


def grid(frame: pd.DataFrame) -> dict[tuple[str, str], list[float | None]]:
    """Values by column of each run and subject."""
    columns = list(dict.fromkeys(frame.column))
    return {
        key: [next(iter(row.value[row.column == column]), None) for column in columns]
        for key, row in frame.groupby(["run", "of"], sort=False)
    }


def test_every_value_has_one_cell(frozen: list[Result], origin: Provenance) -> None:
    frame = summary_frame([Run("mine", Path("r.json"), frozen, origin)])
    assert [table.name for table in summary_tables(frame)] == ["table2", "table5", "table-other"]
    found = grid(frame[frame.table == "2"])
    assert found["mine", "trained"] == [0.4444, 0.45]
    assert found["mine", "random weights"] == [0.24, None]
    assert found["mine", "chance"] == [0.1, 0.1]
    assert grid(frame[frame.table == ""]) == {("mine", "trained"): [63.0]}


def test_other_models_have_rows_after_the_trained_one(frozen: list[Result], origin: Provenance) -> None:
    frame = summary_frame([Run("mine", Path("r.json"), [*frozen, replace(frozen[0], of="clip", value=0.7)], origin)])
    (table, *_) = summary_tables(frame)
    details = [row[0].detail for row in table.rows if row[0].text == "mine"]
    assert details == ["trained", "clip", "random weights", "chance"]


def test_means_and_single_splits_have_separate_rows(origin: Provenance) -> None:
    mean = replace(finetuned(0.45, **{"mean of splits": [1, 2]}), details={"draws": [0.4, 0.5]})
    single = [finetuned(0.4, **{"official split": 1}), finetuned(0.5, **{"official split": 2})]
    frame = frame_of([mean, *single], origin, "3")
    assert list(zip(frame.over, frame.value, strict=True))[:3] == [
        ("mean of splits 1, 2", 0.45), ("official split 1", 0.4), ("official split 2", 0.5),
    ]  # fmt: skip
    (table,) = summary_tables(frame)
    assert table.rows[0][0].detail == "trained; mean of splits 1, 2"
    assert table.notes[0].endswith("; single values 40.0 %, 50.0 %")


def test_published_values_of_the_same_data(origin: Provenance) -> None:
    on_ucf101 = grid(frame_of([finetuned(0.9)], origin, "3"))
    assert on_ucf101["CPD", "published"] == [0.928]
    assert on_ucf101["Shuffle & Learn", "published"] == [0.502]
    assert ("CMC", "published") not in grid(frame_of([finetuned(0.9, classes=51)], origin, "3"))
    assert set(frame_of([replace(finetuned(0.9), metric="top-5")], origin, "3").of) == {"trained"}


def test_other_data_is_compared_with_the_papers_method_only(origin: Provenance) -> None:
    (table,) = summary_tables(frame_of([finetuned(0.9, classes=10)], origin, "3"))
    _, *published = [row[0] for row in table.rows]
    assert [cell.text for cell in published] == ["CPD", "CPD"]
    assert [cell.detail for cell in published] == [
        f"published: authors' released model, 3 splits; {data}; network: 3D ResNet-50; pre-training: Instagram-300k"
        for data in ("UCF101", "HMDB51")
    ]
    assert table.notes[1:] == [
        f"published, authors' released model, 3 splits: {data} classes (not the data of this column)"
        for data in ("UCF101, 101", "HMDB51, 51")
    ]


def test_low_shot_published_values_are_for_fine_tuning_only(frozen: list[Result], origin: Provenance) -> None:
    whole = frame_of([finetuned(0.1, labels=0.01, classes=400)], origin, "4")
    assert [values for (_, of), values in grid(whole).items() if of == "published"] == [
        [0.187], [0.259],
    ]  # fmt: skip
    assert "Table 4" in summary_tables(whole)[0].title
    probe = frame_of([replace(frozen[0], protocol="low-shot 1 %")], origin, "low-shot")
    assert set(probe.of) == {"trained"}
    (table,) = summary_tables(probe)
    assert "Table" not in table.title
    assert table.remark


def test_published_numbers_are_percentages_and_name_their_source() -> None:
    assert PUBLISHED.percent.between(1, 99).all()
    assert PUBLISHED.source.all()
    assert len(PUBLISHED.drop(columns=["percent", "classes"]).drop_duplicates()) == 43
    columns = {Column(each.protocol, "top-1", "", "test", each.classes, each.labels) for each in PUBLISHED.itertuples()}
    assert {column.table for column in columns} == {"2", "3", "4", "5"}


def test_duplicate_values_are_refused(frozen: list[Result], origin: Provenance) -> None:
    twice = [*frozen, replace(frozen[0], value=0.5, settings={**KNN, "seed": 1})]
    with pytest.raises(RunError, match=r"r\.json.*trained.*kNN, top-1 \(visual; 10 classes; test\).*0\.4444.*0\.5"):
        summary_frame([Run("mine", Path("r.json"), twice, origin)])


def test_names_of_runs(tmp_path: Path, frozen: list[Result], origin: Provenance) -> None:
    for name in ("one/results.json", "two.json", "three/results.json", "a=b/results.json"):
        write_results(tmp_path / name, frozen, origin)
    given = [
        f"{tmp_path}/one", f"{tmp_path}/two.json", f"x={tmp_path}/three", f"{tmp_path}/a=b",
    ]  # fmt: skip
    assert [run.name for run in read_runs(given)] == ["one", "two", "x", "a=b"]
    assert read_runs(given)[0].results == frozen


def test_invalid_runs(tmp_path: Path, frozen: list[Result], origin: Provenance) -> None:
    write_results(tmp_path / "a" / "results.json", frozen, origin)
    write_results(tmp_path / "b" / "a" / "results.json", frozen, origin)
    write_results(tmp_path / "none.json", [], origin)
    (tmp_path / "run").mkdir()
    for names, file in {("a", "b/a"): "b/a/results.json", ("run",): "run", ("none.json",): "none.json"}.items():
        with pytest.raises(RunError) as error:
            read_runs([f"{tmp_path}/{each}" for each in names])
        assert f"{tmp_path}/{file}" in str(error.value)


@pytest.fixture
def written(tmp_path: Path, frozen: list[Result], origin: Provenance) -> Path:
    write_results(tmp_path / "runs" / "<b>a #1|" / "results.json", frozen, origin)
    write_results(tmp_path / "b.json", [finetuned(0.9)], replace(origin, manifest="cafe", manifest_file="ucf.parquet"))
    runs = read_runs([f"{tmp_path}/runs/<b>a #1|", f"{tmp_path}/b.json"])
    write_summary(tmp_path / "out", runs)
    return tmp_path / "out"


def test_page_has_all_values_and_links(written: Path) -> None:
    text = (written / "report.html").read_text("utf-8")
    page = Html(written / "report.html")
    assert page.links == {"../runs/%3Cb%3Ea%20%231%7C/results.json", "../b.json"}
    assert "<b>a #1| trained 44.4 % 1 39.1–49.5" in page.text
    assert "378 of test; classes 10; clips 10; k 25" in page.text
    assert "published: authors' released model, 3 splits; UCF101" in page.text
    assert "different manifests" in page.text
    assert "ucf.parquet cafe" in page.text
    assert "default-src 'none'" in text
    assert text.count("<table") == text.count('<div class="card scroll"')


def test_folder_names_that_are_not_utf8_are_linked(tmp_path: Path, frozen: list[Result], origin: Provenance) -> None:
    results = tmp_path / "caf\udce9" / "results.json"  # as Python has a name in Latin-1
    write_results(results, frozen, origin)
    write_summary(tmp_path / "out", read_runs([str(results.parent)]))
    page = Html(tmp_path / "out" / "report.html")
    assert "../caf%E9/results.json" in page.links


def test_markdown_and_csv_have_the_same_values(written: Path, frozen: list[Result]) -> None:
    text = (written / "report.md").read_text("utf-8")
    link = "(../runs/%3Cb%3Ea%20%231%7C/results.json)"
    assert rf"| \<b\>a #1\|<br>trained | [44.4 %]{link} <sup>1</sup><br>39.1–49.5 |" in text
    assert "| *92.8 %* <sup>" in text
    for block in (block for block in text.split("\n\n") if block.startswith("| run")):
        assert len({line.replace(r"\|", "").count("|") for line in block.splitlines()}) == 1
    with (written / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    assert (float(first["value"]), float(first["low"]), first["of"]) == (0.4444, 0.3915, "trained")
    assert (written / first["results"]).is_file()
    own = [row for row in rows if row["of"] != "published"]
    assert len(own) == len(frozen) + 2  # chance without a feature has two cells; a fine-tuned run
