"""Entries of the memory bank before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crosspair.distributed import World
from crosspair.evaluation.windows import whole_video_plan
from crosspair.objectives import MemoryBank
from crosspair.training import pretrain
from crosspair.training.pretrain import BANK, Pretraining
from crosspair.video.views import decode_job
from tests.training.test_pretrain import small_run


def filled(tmp_path: Path, make_video: Callable[..., Path], *settings: str) -> Pretraining:
    """Return a task whose video 1 is unreadable, with the initial bank; batches are of four of the six pairs."""
    recipe, manifest = small_run(tmp_path, make_video, "training.batch_size=4", "training.precision=fp32", *settings)
    (tmp_path / "1.mp4").write_bytes(b"no video")
    run = Pretraining(recipe, manifest, World())
    state = torch.get_rng_state()
    run.fill_bank()
    assert torch.equal(torch.get_rng_state(), state)
    return run


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["text", "towers"])
@pytest.mark.parametrize("objective", ["cross_pair", "self_instance"])
def test_bank_of_the_initial_towers(tmp_path, make_video, kind: str, objective: str) -> None:
    settings = (f"objective.name={objective}", "head.video_hidden=4", "head.dropout=0.5")
    run = filled(tmp_path, make_video, f"objective.bank_init={kind}", *settings)
    random = filled(tmp_path, make_video, *settings)
    assert all(map(torch.equal, run.model.state_dict().values(), random.model.state_dict().values()))
    assert run.model.text_head.training
    assert run.bank.unvisited.all()
    assert not random.bank.unvisited.any()

    # The slow twin encodes batches in training mode.
    order = np.random.default_rng((0, BANK)).permutation(6).tolist()
    model = copy.deepcopy(random.model).train()
    model.head = replace(model.head, dropout=0.0)
    video, text = random.bank.video.clone(), random.bank.text.clone()
    for rows, new in ((order[:4], order[:4]), (order[4:] + order[:2], order[4:])):
        titles = model.encode_text([run.captions[row][0] for row in rows]).detach()
        readable = [row for row in rows if row != 1]
        clips = [decode_job(next(whole_video_plan(0, run.clips[row], 1).jobs(run.recipe.clip, 1, False))).clips[0, 0]
                 for row in readable]  # fmt: skip
        pixels = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)
        videos = model.encode_video(pixels)[1].detach()
        for row in new:
            text[row] = titles[rows.index(row)]
            if row in readable and kind == "towers":
                video[row] = videos[readable.index(row)]
    torch.testing.assert_close(run.bank.text, text)
    torch.testing.assert_close(run.bank.video, video)


class KilledError(Exception):
    """Raised where a run is killed."""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("where", [(MemoryBank, "fill", 3), (Pretraining, "train_step", 3)])
def test_run_killed_while_or_after_its_bank_is_filled(tmp_path, make_video, monkeypatch, where) -> None:
    settings = ("objective.bank_init=towers", "training.checkpoint_steps=1")
    recipe, manifest = small_run(tmp_path, make_video, *settings)
    whole = pretrain(recipe, manifest, tmp_path / "whole")
    assert whole.hash != pretrain(*small_run(tmp_path, make_video), tmp_path / "random").hash
    cls, name, count = where
    original, calls = getattr(cls, name), iter(range(1, 100))

    def kill(self: Any, *arguments: Any) -> Any:
        if next(calls) == count:
            raise KilledError
        return original(self, *arguments)

    monkeypatch.setattr(cls, name, kill)
    with pytest.raises(KilledError):
        pretrain(recipe, manifest, tmp_path / "cut")
    resumed = pretrain(recipe, manifest, tmp_path / "cut", resume=True)
    assert resumed.hash == whole.hash
