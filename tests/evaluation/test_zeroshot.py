"""Zero-shot: templates, draws of classes, and invalid template files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.errors import CrosspairError
from crosspair.evaluation import class_embeddings, draw_classes
from crosspair.evaluation.zeroshot import read_templates
from crosspair.models import CPD

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_a_class_is_the_mean_over_templates_of_unit_norm(model: CPD) -> None:
    found = class_embeddings(model, ["Dog", "cat_dog"], ["{}", "a cat and a {}", "{} {}"])
    for row, phrase in zip(found, ["dog", "cat dog"], strict=True):
        texts = [phrase, f"a cat and a {phrase}", f"{phrase} {phrase}"]
        mean = sum(model.eval().encode_text([text])[0] for text in texts) / 3
        torch.testing.assert_close(row, mean / mean.norm())


def test_a_name_without_a_known_word_is_logged(model: CPD, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        class_embeddings(model, ["dog", "Zorbing"])
    assert "'zorbing'" in caplog.text


@given(
    among=st.sets(st.integers(0, 50), min_size=2),
    fraction=st.floats(0, 1),
    draws=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_draws_are_classes_of_those_given(among: set[int], fraction: float, draws: int, seed: int) -> None:
    count = 2 + int(fraction * (len(among) - 2))
    found = draw_classes(sorted(among), count, draws, seed)
    assert len(found) == draws
    for draw in found:
        assert draw == sorted(set(draw))
        assert len(draw) == count
        assert set(draw) <= among
    assert found == draw_classes(sorted(among), count, draws, seed)
    assert found[:1] == draw_classes(sorted(among), count, 1, seed)


def test_draws_differ() -> None:
    assert len({tuple(draw) for draw in draw_classes(range(40), 20, 10, 0)}) == 10


def test_more_classes_than_there_are() -> None:
    with pytest.raises(CrosspairError, match=" 6 "):
        draw_classes(range(5), 6, 10, 0)


def test_templates_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("\ufeff{}\n\n  a video of {} \n", encoding="utf-8")
    assert read_templates(path) == ("{}", "a video of {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}\na clip\n", "line 2: 'a clip'"), (b"\n\n", "empty"), (b"\xff\xfe{}", "UTF-8"), (None, "")],
)
def test_an_invalid_template_file(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CrosspairError, match=rf"templates\.txt.*{message}") as caught:
        read_templates(path)
    assert "\n" not in str(caught.value)
