"""Title noise: exact number, really wrong, nested, only in training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.manifest import TITLES, add_title_noise
from crosspair.errors import ManifestError


def corpus(labels: list[str | None], splits: list[str | None] | None = None) -> Manifest:
    splits = splits or ["train"] * len(labels)
    return manifest_from_rows(
        [
            {
                "pair_id": f"p{i}", "path": f"{i}.mp4", "label": label, "split": split,
                "title": f"raw {i}", "title_clean": f"clean {i}", "title_tree": f"tree {i}",
            }
            for i, (label, split) in enumerate(zip(labels, splits, strict=True))
        ],
        "m.parquet",
    )  # fmt: skip


def changed(before: Manifest, after: Manifest) -> dict[int, int]:
    """Row -> the row whose title it has now."""
    own, now = before.column("title"), after.column("title")
    place = {title: row for row, title in enumerate(own)}
    return {row: place[title] for row, title in enumerate(now) if title != own[row]}


@given(
    st.lists(st.sampled_from(["run", "jump", "swim", None]), min_size=8, max_size=60).filter(
        lambda labels: len({label or i for i, label in enumerate(labels)}) > 1
    ),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_number_of_wrong_titles_and_nesting(labels, one, other, seed) -> None:
    manifest = corpus(labels)
    small, large = sorted((one, other))
    few, many = (changed(manifest, add_title_noise(manifest, s, seed)) for s in (small, large))
    assert (len(few), len(many)) == (round(small * len(labels)), round(large * len(labels)))
    assert few.items() <= many.items()
    for row, donor in many.items():
        assert labels[row] is None or labels[row] != labels[donor]


def test_all_columns_change_and_only_in_training() -> None:
    splits = ["train", None, "val", "test"] * 10
    manifest = corpus([f"label {i % 7}" for i in range(40)], splits)
    wrong = add_title_noise(manifest, 1.0, 0)
    assert set(changed(manifest, wrong)) == {i for i in range(40) if splits[i] in ("train", None)}
    for row, donor in changed(manifest, wrong).items():
        assert splits[donor] in ("train", None)
        for column in TITLES:
            assert wrong.column(column)[row] == manifest.column(column)[donor]
    for column in ("pair_id", "path", "label", "split"):
        assert wrong.column(column) == manifest.column(column)


def test_seed() -> None:
    manifest = corpus([f"label {i % 4}" for i in range(40)])
    once, again, other = (add_title_noise(manifest, 0.5, seed).hash for seed in (1, 1, 2))
    assert once == again
    assert once != other
    assert add_title_noise(manifest, 0.0, 1).hash == manifest.hash


def test_a_title_that_reads_the_same_is_not_wrong() -> None:
    rows = corpus(["a", "b", "c"]).table.to_pylist()
    for row, title in zip(rows, ["same", "same", "other"], strict=True):
        row["title"] = title
    manifest = manifest_from_rows(rows, "m.parquet")
    wrong = add_title_noise(manifest, 1.0, 0).column("title")
    assert wrong == ["other", "other", "same"]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range(share) -> None:
    with pytest.raises(ManifestError, match=str(share)):
        add_title_noise(corpus(["a", "b"]), share, 0)


def test_one_label_has_no_wrong_titles() -> None:
    with pytest.raises(ManifestError, match=r"m.parquet: .*'p0'"):
        add_title_noise(corpus(["a", "a", "a"]), 0.5, 0)
