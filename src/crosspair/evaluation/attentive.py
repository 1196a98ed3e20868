"""Attentive probe on frozen features by time and place, as V-JEPA reports (arXiv 2404.08471).

The probe is one cross-attention layer with a learned query over the tokens of a video, and a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import NON_NEGATIVE, POSITIVE, check_fields
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, to_device
from crosspair.errors import CrosspairError
from crosspair.evaluation.encode import ProgressCallback, encode_plans, eval_mode
from crosspair.evaluation.windows import whole_video_plan
from crosspair.models.cpd import CPD

HEADS = 16  # at most: a divisor of the number of features
BYTES = 2  # of a value: tokens are stored in bfloat16


@dataclass(frozen=True)
class AttentiveConfig:
    """Tokens and training of the attentive probe."""

    clips: int = 4
    """Evenly spaced clips of each video; the probe attends to the tokens of all of them."""
    memory: float = 4.0
    """Maximum size of the tokens of all videos, in GiB. Neighbouring tokens of a clip are averaged until they fit."""
    epochs: int = 20
    """Passes over the training videos."""
    lr: float = 1e-3
    """Initial learning rate of AdamW; it follows a cosine schedule to zero."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    batch_size: int = 64
    """Videos per step."""

    def __post_init__(self) -> None:
        check_fields("attentive", self, POSITIVE, "clips", "memory", "epochs", "lr", "batch_size")
        check_fields("attentive", self, NON_NEGATIVE, "weight_decay")


class AttentiveProbe(nn.Module):
    """Cross-attention from a learned query to normalized tokens, and a linear layer.

    Shapes:
        (B, N, F) tokens → (B, classes) logits.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        heads = math.gcd(features, HEADS)
        self.norm = nn.LayerNorm(features)
        self.query = nn.Parameter(torch.empty(heads, features // heads).normal_(std=0.02))
        self.key = nn.Linear(features, features, bias=False)  # a bias would not change the softmax
        self.value = nn.Linear(features, features)
        self.output = nn.Linear(features, features)
        self.classifier = nn.Linear(features, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(tokens.float())
        heads, size = self.query.shape
        # With one query, projecting it instead of the tokens, and the values after their mean, costs F / heads times
        # less, and changes nothing.
        queries = torch.einsum("hd,hdf->hf", self.query, self.key.weight.view(heads, size, -1))
        attention = (tokens @ queries.T / math.sqrt(size)).softmax(dim=1)  # (B, N, heads)
        means = attention.transpose(1, 2) @ tokens  # (B, heads, F)
        values = torch.einsum("bhf,hdf->bhd", means, self.value.weight.view(heads, size, -1))
        pooled = self.output(values.flatten(1) + self.value.bias)
        logits: torch.Tensor = self.classifier(pooled)
        return logits


def extract_tokens(
    model: CPD,
    rows: Sequence[int],
    manifest: Manifest,
    config: AttentiveConfig,
    *,
    batch_size: int = 32,
    workers: int = 2,
    precision: str = "auto",
    progress: ProgressCallback | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Extract the tokens of videos into memory; see `VideoModel.visual_tokens`.

    Args:
        rows: rows of the manifest, V.
        batch_size: maximum number of clips in a call of the network.
        workers: decoding processes.
        precision: see `crosspair.config.TrainingConfig`.
        progress: called with the number of encoded videos and of all videos.

    Returns:
        (V,) bool, whether all clips of a video could be read; and the tokens of these videos, (V', N, F) bfloat16.

    Raises:
        CrosspairError: even one token per clip exceeds the memory.
    """
    device = next(model.parameters()).device
    clip_bytes = len(rows) * config.clips * model.video_encoder.features * BYTES  # of one token per clip
    limit = int(config.memory * 2**30 / clip_bytes)
    if not limit:
        raise CrosspairError(
            f"a token for each of {config.clips} clips of {len(rows)} videos needs {clip_bytes / 2**30:.2g} GiB, but "
            f"attentive.memory is {config.memory:g}; raise it, or lower attentive.clips"
        )

    @torch.no_grad()
    def network(clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with autocast(device, precision):
            tokens = model.visual_tokens(to_device(clips, device)).float()
        fitting = F.adaptive_avg_pool1d(tokens.transpose(1, 2), min(tokens.shape[1], limit)).transpose(1, 2)
        return (fitting.bfloat16().cpu(),)

    sources = manifest.clips()
    plans = [whole_video_plan(row, sources[row], config.clips, average=False) for row in rows]
    readable, tokens = torch.zeros(len(rows), dtype=torch.bool), torch.empty(0)
    with eval_mode(model):
        videos = encode_plans(plans, network, model.clip, batch_size=batch_size, workers=workers)
        for i, video in enumerate(videos):
            if len(video.groups) == config.clips:
                found = video.sums[0].flatten(0, 1)  # (clips · n, F)
                if not len(tokens):
                    tokens = torch.empty(len(rows), *found.shape, dtype=torch.bfloat16)
                tokens[int(readable.sum())] = found
                readable[i] = True
            if progress:
                progress(i + 1, len(rows))
    return readable, tokens[: int(readable.sum())]


def train_attentive(
    tokens: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    config: AttentiveConfig | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
) -> AttentiveProbe:
    """Train an attentive probe with cross-entropy, AdamW and a cosine schedule.

    Args:
        tokens: (V, N, F), of the training videos only.
        labels: (V,) int64, their classes, from 0.
        classes: number of classes.
        config: None for the defaults.
        seed: of the initial weights and the order of the videos.
        device: None for that of ``tokens``.

    Returns:
        The probe, in eval mode.

    Raises:
        CrosspairError: the loss is not finite.
    """
    config, device = config or AttentiveConfig(), device or tokens.device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = AttentiveProbe(tokens.shape[-1], classes).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), config.lr, weight_decay=config.weight_decay)
    batches = math.ceil(len(tokens) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for epoch in range(config.epochs):
            for rows in torch.randperm(len(tokens), generator=generator).tensor_split(batches):
                loss = F.cross_entropy(probe(tokens[rows].to(device)), labels[rows].to(device))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
            if not loss.isfinite():
                raise CrosspairError(
                    f"attentive probe: the loss of epoch {epoch + 1} is not finite; lower attentive.lr, or check that "
                    "the features are finite"
                )
    return probe.eval()
