"""Compute and draw the objectives' gradients with respect to negatives, on synthetic pairs.

Gradients are with respect to a video's embedding, in one direction of Equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.objectives import log_normalizer, nce_loss, ranking_loss
from crosspair.reporting.figures import INK, SERIES, STYLES, encode_png, figure_style

Points = dict[str, Any]  # plain lists of numbers, as written to JSON

_SIZE, _DPI = (8.0, 3.1), 200  # in; 1,600 pixels wide
_BINS, _DOTS = 30, 12  # bins of log posterior; negatives drawn per bin
_HARDEST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class MadeUpPairs:
    """Synthetic embeddings of N pairs, with texts clustered by topic.

    Attributes:
        pairs: N.
        batch: number of pairs, the first ones, whose gradients are computed.
        topics: number of clusters of texts; a text is half its topic and half random.
        dimensions: D.
        seed: of all random numbers.
    """

    pairs: int = 4096
    batch: int = 256
    topics: int = 64
    dimensions: int = 128
    seed: int = 0

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw f_v (batch, D) and f_t (N, D), unit vectors."""
        generator = torch.Generator().manual_seed(self.seed)

        def unit(rows: int) -> torch.Tensor:
            return F.normalize(torch.randn(rows, self.dimensions, generator=generator), dim=1)

        topic = torch.randint(self.topics, (self.pairs,), generator=generator)
        text = F.normalize(unit(self.topics)[topic] + unit(self.pairs), dim=1)
        misfit = 0.5 + 2 * torch.rand(self.batch, 1, generator=generator)
        video = F.normalize(text[: self.batch] + misfit * unit(self.batch), dim=1)
        return video, text


def gradient_weights(pairs: MadeUpPairs | None = None) -> Points:
    """Compute the weight of each negative in the gradient: h for NCE, 0 or 1 for ranking.

    The negatives of a video are the other texts of the batch, for both objectives. The weight is
    |∂L/∂s| for the similarity s of a negative, times τ for NCE and times n − 1 for ranking, so that
    both have a maximum of 1 (Appendix A.1).

    Returns:
        A sample of negatives with posteriors and weights, and the fraction of the total weight of
        the hardest negatives (those with the highest posterior).
    """
    pairs, config = pairs or MadeUpPairs(), ObjectiveConfig()
    video, text = pairs.draw()
    n, tau = pairs.batch, config.temperature
    others = torch.stack([torch.arange(n)[torch.arange(n) != i] for i in range(n)])  # (n, n - 1)
    noise = text[others].requires_grad_()
    log_z = (video @ text.T / tau).logsumexp(dim=1).logsumexp(dim=0) - math.log(n)
    loss = nce_loss(video, text[:n], noise, log_z=log_z, pairs=pairs.pairs, temperature=tau)[1]
    (noise_gradient,) = torch.autograd.grad(loss, noise)  # each is a multiple of its video
    nce = (noise_gradient * video.unsqueeze(1)).sum(dim=2) * n * tau  # (n, n - 1)
    ranking = torch.stack([
        _ranking_weights(video[i], text[:n], i, config.margin)[others[i]] for i in range(n)
    ])  # fmt: skip
    shift = log_z + math.log((n - 1) / pairs.pairs)
    posterior = ((video.unsqueeze(1) * text[others]).sum(dim=2) / tau - shift).sigmoid().flatten()
    flat = {"NCE": nce.flatten(), "ranking": ranking.flatten()}
    hardest = posterior.argsort(descending=True)
    counts = [max(1, round(fraction * len(hardest))) for fraction in _HARDEST]
    return {
        "settings": {**vars(pairs), "temperature": tau, "margin": config.margin},
        "negatives": _sample_by_posterior(posterior, flat, pairs.seed),
        "hardest": {
            "share_of_negatives": list(_HARDEST),
            **{
                name: [float(weights[hardest[:count]].sum() / weights.sum()) for count in counts]
                for name, weights in flat.items()
            },
        },
    }


def gradient_weights_figure(points: Points) -> bytes:
    """Draw the points of `gradient_weights` as a PNG on white."""
    negatives, hardest = points["negatives"], points["hardest"]
    with figure_style():
        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        for name, colour, style, mark in zip(_WEIGHTS, SERIES, STYLES, ("o", "|"), strict=False):
            left.plot(
                negatives["posterior"], negatives[name], mark, color=colour, markersize=4,
                alpha=0.6, label=_WEIGHTS[name], clip_on=False,
            )  # fmt: skip
            right.plot(
                hardest["share_of_negatives"], hardest[name], color=colour, linestyle=style,
                linewidth=1.8, label=name,
            )  # fmt: skip
        _set_axes(left, "weight of a negative in the gradient", "posterior h of the negative")
        _set_axes(right, "fraction of the total weight", "fraction of negatives, hardest first")
        left.legend(**_LEGEND, loc="center left")
        right.legend(**_LEGEND, loc="lower right")
        right.set_ylim(0, 1)
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:g}\u2009%")
        return encode_png(figure)


def estimate_quality(
    pairs: MadeUpPairs | None = None, samples: Sequence[int] = (16, 64, 256, 1024, 4096, 16384), draws: int = 32
) -> Points:
    """Compare NCE's gradient with the exact softmax's, for several numbers of noise samples m.

    Both with the true Z of each query, and with one Z for all queries, as estimated in training.

    Args:
        pairs: N and the queries (a small batch).
        samples: values of m.
        draws: number of noise draws for each query and m.

    Returns:
        For each m, the quartiles over queries and draws of the cosine with the exact gradient and
        of the length of the difference, relative to the exact gradient; also the median over
        queries of the difference's root mean square over draws, and of the difference of NCE's
        expected gradient.
    """
    pairs = pairs or MadeUpPairs(pairs=2000, batch=16, topics=32, dimensions=64)
    tau = ObjectiveConfig().temperature
    video, text = pairs.draw()
    video.requires_grad_()
    exact_z = log_normalizer(video, [text], tau, World())
    exact_loss = (exact_z - (video * text[: pairs.batch]).sum(dim=1) / tau).sum()
    (exact,) = torch.autograd.grad(exact_loss, video)  # (B, D)
    log_z = exact_z.detach()
    one_z = (log_z.logsumexp(dim=0) - math.log(pairs.batch)).expand_as(log_z)
    generator = torch.Generator().manual_seed(pairs.seed + 1)
    results: dict[str, list[Points]] = {_OWN_Z: [], _ONE_Z: []}
    expected = []
    for m in samples:
        both: dict[str, list[torch.Tensor]] = {_OWN_Z: [], _ONE_Z: []}
        for i, query in enumerate(video.detach()):
            drawn = torch.randint(pairs.pairs, (draws, m), generator=generator)
            for name, z in ((_OWN_Z, log_z[i]), (_ONE_Z, one_z[i])):
                both[name].append(_nce_gradients(query, text, i, drawn, z, tau))
        for name, gradients in both.items():
            results[name].append(_compare_gradients(torch.stack(gradients), exact))
        lengths = _expected_difference(video.detach(), text, log_z, m, tau).norm(dim=1) / exact.norm(dim=1)
        expected.append(float(lengths.median()))
    return {
        "settings": {**vars(pairs), "temperature": tau, "draws": draws},
        "m": list(samples),
        **results,
        "difference_of_the_mean": expected,
    }


def estimate_quality_figure(points: Points) -> bytes:
    """Draw the points of `estimate_quality` as a PNG on white."""
    m, pairs = points["m"], points["settings"]["pairs"]
    with figure_style():
        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        for name, colour, style in zip((_OWN_Z, _ONE_Z), SERIES, STYLES, strict=False):
            for axes, what, line in ((left, "cosine", "median"), (right, "difference", "rms")):
                low, high = ([each[what][q] for each in points[name]] for q in ("low", "high"))
                middle = [each[what][line] for each in points[name]]
                axes.plot(m, middle, color=colour, linestyle=style, linewidth=1.8, label=name)
                axes.fill_between(m, low, high, color=colour, alpha=0.15, linewidth=0)
        right.plot(
            m, points["difference_of_the_mean"], color=INK, linestyle=":", linewidth=1.4,
            label="own Z, expectation over draws",
        )  # fmt: skip
        right.set_yscale("log")
        for axes, title in (
            (left, "cosine with the exact gradient"),
            (right, "length of the difference / exact gradient"),
        ):
            axes.axvline(pairs, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            _set_axes(axes, title, f"noise samples m; dashed: N = {pairs:,}")
        left.set_ylim(0, 1)
        left.legend(**_LEGEND, loc="lower right")
        right.legend(**_LEGEND, loc="lower left")
        return encode_png(figure)


_OWN_Z, _ONE_Z = "each query's own Z", "one Z for all, as in training"
_WEIGHTS = {"NCE": "NCE: h", "ranking": "ranking: 0 or 1"}
_LEGEND: Points = {"fontsize": "small", "edgecolor": "none", "framealpha": 0.9}


def _set_axes(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlabel(xlabel)
    axes.set_xscale("log")
    axes.margins(x=0)
    axes.xaxis.set_minor_locator(NullLocator())


def _ranking_weights(query: torch.Tensor, texts: torch.Tensor, positive: int, margin: float) -> torch.Tensor:
    """Return (n,): |∂L/∂s| of each candidate, times n − 1."""
    candidates = texts.clone().requires_grad_()
    loss, _ = ranking_loss(query.unsqueeze(0), candidates, torch.tensor([positive]), margin)
    (gradient,) = torch.autograd.grad(loss, candidates)
    return gradient @ query * (len(texts) - 1)


def _sample_by_posterior(posterior: torch.Tensor, weights: dict[str, torch.Tensor], seed: int) -> Points:
    """Draw up to `_DOTS` negatives from each of `_BINS` equal ranges of log h."""
    logs = posterior.log10()
    edges = torch.linspace(float(logs.min()), float(logs.max()), _BINS + 1)
    order = torch.randperm(len(logs), generator=torch.Generator().manual_seed(seed))
    bins = torch.bucketize(logs[order], edges[1:-1])
    shown = torch.cat([order[bins == each][:_DOTS] for each in range(_BINS)])
    return {
        "posterior": posterior[shown].tolist(),
        **{name: values[shown].tolist() for name, values in weights.items()},
    }


def _nce_gradients(
    query: torch.Tensor, text: torch.Tensor, positive: int, drawn: torch.Tensor, log_z: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return (draws, D): Equation 5's gradient with respect to a query, for each noise draw."""
    queries = query.expand(len(drawn), -1).clone().requires_grad_()
    terms = nce_loss(
        queries, text[positive].expand_as(queries), text[drawn],
        log_z=log_z, pairs=len(text), temperature=temperature,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(terms[0] + terms[1], queries)
    return gradient * len(drawn)


def _compare_gradients(gradients: torch.Tensor, exact: torch.Tensor) -> Points:
    """Compute quartiles of cosine and relative difference of (B, draws, D) and (B, D)."""
    cosine = F.cosine_similarity(gradients, exact.unsqueeze(1), dim=2)  # (B, draws)
    lengths = (gradients - exact.unsqueeze(1)).norm(dim=2) / exact.norm(dim=1, keepdim=True)
    rms = lengths.square().mean(dim=1).sqrt().median()
    return {"cosine": _quartiles(cosine), "difference": {**_quartiles(lengths), "rms": float(rms)}}


def _quartiles(values: torch.Tensor) -> Points:
    quartiles = values.flatten().quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return dict(zip(("low", "median", "high"), quartiles, strict=True))


def _expected_difference(
    video: torch.Tensor, text: torch.Tensor, log_z: torch.Tensor, m: int, temperature: float
) -> torch.Tensor:
    """Return (B, D): expected minus exact gradient, [h⁺c⁺ − Σ_j p_j h_j c_j]/τ."""
    p = (video @ text.T / temperature - log_z.unsqueeze(1)).exp()  # (B, N)
    h = p / (p + m / len(text))
    positive = h.diagonal().unsqueeze(1) * text[: len(video)]
    return (positive - (p * h) @ text) / temperature
