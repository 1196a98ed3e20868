"""Concurrent requests of the page."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crosspair.serve import answers as answers_module
from crosspair.serve.answers import ALL_FOLDERS, PageRenderer, Upload


def test_texts_are_encoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running, concurrent = 0, []

    def encode(*_: object, **__: object) -> Any:
        nonlocal running
        running += 1
        concurrent.append(running)
        time.sleep(0.05)
        running -= 1
        return torch.ones(2, 8)

    def search(query: str, **choices: object) -> list[Any]:
        encode()
        return []

    encoder = SimpleNamespace(is_empty=lambda _: False)
    model = SimpleNamespace(untrained=(), text_encoder=encoder)
    searcher: Any = SimpleNamespace(
        library=SimpleNamespace(videos=dict), engine=SimpleNamespace(model=model), text=search
    )
    monkeypatch.setattr(answers_module, "class_embeddings", encode)
    renderer = PageRenderer(searcher, SimpleNamespace())  # type: ignore[arg-type]
    upload = Upload("a.mp4", 4.0, [(0.0, 4.0)], np.ones((1, 8), np.float32), b"")
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(renderer.search, "a dog", ALL_FOLDERS) for _ in range(2)]
        results += [pool.submit(renderer.classify, upload, "dog, cat") for _ in range(2)]
        assert all(each.result() for each in results)
    assert concurrent == [1] * 4
