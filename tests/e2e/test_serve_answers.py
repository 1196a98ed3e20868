"""Answers of the page to several who ask at a time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crosspair.serve import answers as answers_module
from crosspair.serve.answers import EVERYWHERE, Answers, Seen


def test_one_text_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, together = 0, []

    def read(*_: object, **__: object) -> Any:
        nonlocal reading
        reading += 1
        together.append(reading)
        time.sleep(0.05)
        reading -= 1
        return torch.ones(2, 8)

    def search(query: str, **choices: object) -> list[Any]:
        read()
        return []

    encoder = SimpleNamespace(is_empty=lambda _: False)
    model = SimpleNamespace(untrained=(), text_encoder=encoder)
    searcher: Any = SimpleNamespace(
        library=SimpleNamespace(videos=dict), engine=SimpleNamespace(model=model), text=search
    )
    monkeypatch.setattr(answers_module, "class_embeddings", read)
    answers = Answers(searcher, SimpleNamespace())  # type: ignore[arg-type]
    seen = Seen("a.mp4", 4.0, [(0.0, 4.0)], np.ones((1, 8), np.float32), b"")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(answers.search, "a dog", EVERYWHERE) for _ in range(2)]
        asked += [pool.submit(answers.classify, seen, "dog, cat") for _ in range(2)]
        assert all(each.result() for each in asked)
    assert together == [1] * 4
