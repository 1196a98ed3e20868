"""Titles of the rendered corpus: right without noise, and with the configured noise."""

from __future__ import annotations

import re

import numpy as np
import pytest

from crosspair.corpora.rendered import ACTIONS, plan
from crosspair.corpora.rendered.titles import ACTION_WORDS, COLOUR_WORDS, FOREIGN_ACTION_WORDS, SHAPE_WORDS


def mentioned(title: str, texts: dict[str, tuple[str, ...]]) -> set[str]:
    """Which of the keys a title tells."""
    low = title.lower()
    return {
        key
        for key, options in texts.items()
        if any(re.search(rf"(?<!\w){re.escape(o.lower())}(?!\w)", low) for o in options)
    }


ACTION_TEXTS = {a: ACTION_WORDS[a] + FOREIGN_ACTION_WORDS[a] for a in ACTIONS}
SHAPE_TEXTS = {t: tuple(w for pair in pairs for w in pair) for t, pairs in SHAPE_WORDS.items()}


def test_titles_without_noise_are_right_and_say_the_action() -> None:
    for pair in plan(200, noise=0):
        assert pair.scene.label in mentioned(pair.title, ACTION_TEXTS), pair.title
        assert mentioned(pair.title, SHAPE_TEXTS) <= {pair.scene.shape}, pair.title
        assert mentioned(pair.title, dict(COLOUR_WORDS)) <= {pair.scene.colour}, pair.title
        assert pair.title.isascii()
        assert "#" not in pair.title


@pytest.mark.parametrize(("noise", "wrong"), [(0.0, 0.0), (0.3, 0.09), (0.6, 0.36), (1.0, 1.0)])
def test_noise_sets_the_fraction_of_wrong_titles(noise: float, wrong: float) -> None:
    telling = [
        (pair.scene.label, labels)
        for pair in plan(1600, noise=noise)
        if (labels := mentioned(pair.title, ACTION_TEXTS))
    ]
    share = np.mean([label not in labels for label, labels in telling])
    assert share == pytest.approx(wrong, abs=4 * np.sqrt(wrong * (1 - wrong) / len(telling)))


def test_fractions_at_the_default_noise() -> None:
    titles = [pair.title for pair in plan(1600)]
    assert all(titles)

    def share(of: object) -> float:
        assert callable(of)
        return float(np.mean([bool(of(t)) for t in titles]))

    assert share(lambda t: mentioned(t, ACTION_TEXTS)) == pytest.approx(0.88, abs=0.04)
    assert share(lambda t: mentioned(t, SHAPE_TEXTS)) == pytest.approx(0.60, abs=0.04)
    assert share(lambda t: mentioned(t, dict(COLOUR_WORDS))) == pytest.approx(0.40, abs=0.04)
    assert share(lambda t: "#" in t) == pytest.approx(0.18, abs=0.04)
    assert share(lambda t: sum(c.isupper() for c in t) > 0.6 * sum(map(str.isalpha, t))) > 0.1
    for script in ("[ऀ-ॿ]", "[぀-ヿ]", "[áéíóúñ]", "[à-ÿ]", "[一-鿿]"):
        assert 0.005 < share(lambda t, s=script: re.search(s, t)) < 0.3, script
