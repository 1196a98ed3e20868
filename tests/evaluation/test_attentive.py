"""Attentive probe: against PyTorch's attention; tokens against one clip at a time, and their memory limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.errors import CrosspairError, RecipeError
from crosspair.evaluation import EvaluationConfig, Features, evaluate_model
from crosspair.evaluation.attentive import AttentiveConfig, AttentiveProbe, extract_tokens, train_attentive
from crosspair.models import CPD
from crosspair.video.decode import uniform_positions
from crosspair.video.views import load_view
from tests.evaluation.conftest import BROKEN, centre_view

pytestmark = pytest.mark.usefixtures("one_thread")

GIB = 2**30


@pytest.mark.parametrize(("features", "heads"), [(32, 16), (24, 8), (9, 1)])
@torch.no_grad()
def test_probe_is_an_attention_layer_of_pytorch(features: int, heads: int) -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(features, 3)
    for value in probe.parameters():  # zeros and small queries would hide faults
        value.normal_()
    judge = nn.MultiheadAttention(features, heads, batch_first=True)
    size = features // heads
    assert probe.query.shape == (heads, size)
    queries = probe.query.flatten()[None]  # of all heads, as if projected
    weights = [torch.eye(features), probe.key.weight, probe.value.weight]
    judge.in_proj_weight.copy_(torch.cat(weights))
    judge.in_proj_bias.copy_(torch.cat([torch.zeros(2 * features), probe.value.bias]))
    judge.out_proj.load_state_dict(probe.output.state_dict())
    tokens = 3 * torch.randn(5, 7, features)
    normalized = probe.norm(tokens)
    pooled, _ = judge(queries.expand(5, 1, -1), normalized, normalized)
    torch.testing.assert_close(probe(tokens), probe.classifier(pooled[:, 0]), rtol=1e-4, atol=1e-4)


def marked_tokens(videos: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The class is the sign of the one token that is marked; others have random signs."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(videos, 12, 8, generator=generator)
    tokens[..., 0], tokens[..., 1] = 0.0, 4 * torch.randn(videos, 12, generator=generator).sign()
    marked = torch.randint(0, 12, (videos,), generator=generator)
    tokens[torch.arange(videos), marked, 0] = 8.0
    return tokens.bfloat16(), (tokens[torch.arange(videos), marked, 1] > 0).long()


def test_probe_attends_to_the_token_that_matters() -> None:
    train, labels = marked_tokens(400, 1)
    test, truth = marked_tokens(200, 2)
    config = AttentiveConfig(epochs=20, batch_size=32, lr=5e-3)
    state = torch.get_rng_state()
    probe = train_attentive(train, labels, 2, config, seed=3)
    assert not probe.training
    assert (probe(test).argmax(dim=1) == truth).double().mean() > 0.95
    again, other = (train_attentive(train, labels, 2, config, seed=seed) for seed in (3, 4))
    assert torch.equal(probe.key.weight, again.key.weight)
    assert not torch.equal(probe.key.weight, other.key.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_probe_that_diverges_is_an_error() -> None:
    tokens, labels = marked_tokens(40, 1)
    with pytest.raises(CrosspairError, match=r"attentive\.lr"):
        train_attentive(tokens, labels, 2, AttentiveConfig(lr=1e20))


@torch.no_grad()
def tokens_by_hand(model: CPD, manifest: Manifest, row: int, clips: int, groups: int) -> torch.Tensor:
    """Tokens of one video, a clip at a time, averaged in ``groups`` of neighbours."""
    found = []
    for position in uniform_positions(clips):
        pixels = load_view(manifest.clips()[row], centre_view(position, model.clip), model.clip)
        tokens = model.visual_tokens(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None])[0]  # (N, F)
        found += [part.mean(dim=0) for part in tokens.tensor_split(groups)]
    return torch.stack(found)


@pytest.mark.parametrize(("clips", "groups"), [(1, 2), (3, 2), (2, 1)])
def test_tokens_are_those_of_single_clips(manifest: Manifest, model: CPD, clips: int, groups: int) -> None:
    """Of 6 videos, one cannot be read; a clip of 2 frames of 32 pixels has 2 tokens."""
    model.eval()
    size = 6 * clips * model.video_encoder.features * 2 / GIB  # of one token per clip
    config = AttentiveConfig(clips=clips, memory=1.5 * size if groups == 1 else 8 * size)
    readable, tokens = extract_tokens(
        model, [5, 0, BROKEN, 2, 1, 4], manifest, config, batch_size=4, workers=0, precision="fp32"
    )
    assert readable.tolist() == [True, True, False, True, True, True]
    assert tokens.dtype == torch.bfloat16
    expected = torch.stack([tokens_by_hand(model, manifest, row, clips, groups) for row in (5, 0, 2, 1, 4)])
    torch.testing.assert_close(tokens.float(), expected, rtol=0.01, atol=1e-3)


def test_tokens_that_exceed_the_memory(manifest: Manifest, model: CPD) -> None:
    with pytest.raises(CrosspairError, match=r"attentive\.memory.*attentive\.clips"):
        extract_tokens(model, [0, 1], manifest, AttentiveConfig(memory=1e-9))


@pytest.mark.parametrize("key", ["clips", "memory", "epochs", "lr", "batch_size"])
def test_invalid_settings(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"attentive\.{key} "):
        AttentiveConfig(**{key: 0})


def test_protocol_skips_videos_without_tokens(model: CPD) -> None:
    """Of 20 training and 10 test videos; the class is in the tokens only."""
    rows = [
        {"pair_id": f"p{i}", "path": f"{i}.mp4", "title": "", "label": ["cat", "dog"][i % 2],
         "split": "test" if i % 3 == 0 else "train"}
        for i in range(30)
    ]  # fmt: skip
    features = Features(torch.arange(30), torch.zeros(30, 4), F.normalize(torch.ones(30, 4), dim=1), 10, [])
    asked: list[list[int]] = []

    def tokens(model: CPD, rows: Any, manifest: Manifest, config: AttentiveConfig) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(list(rows))
        kept = torch.tensor([row not in (1, 3) for row in rows])
        values = torch.tensor([[[4.0, -4.0]] * 3 if row % 2 else [[-4.0, 4.0]] * 3 for row in rows])
        return kept, values[kept]

    config = EvaluationConfig(attentive=AttentiveConfig(epochs=30, batch_size=8, lr=0.01, clips=2))
    manifest = manifest_from_rows(rows, Path("m.parquet"))
    options: Any = {"random_baseline": False, "tokens": tokens}
    results, _ = evaluate_model(model, manifest, lambda *_: features, ("attentive",), config, **options)
    found, chance = results
    assert sorted(asked[0]) == list(range(30))
    assert asked[0][-10:] == list(range(0, 30, 3))  # the test videos
    assert (found.protocol, found.feature, found.value, found.count) == ("attentive", "visual", 1.0, 9)
    assert (found.settings["videos"], found.settings["clips"], found.details["tokens"]) == (19, 2, 3)
    assert (chance.of, chance.value) == ("chance", 0.5)
    with pytest.raises(CrosspairError, match="visual"):
        evaluate_model(model, manifest, lambda *_: features, ("attentive",), replace(config, feature="embedding"))
