"""Model cards: the README.md of a model folder, which the hub shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from crosspair.markdown import markdown_rows

CARD_FILE = "README.md"
UNKNOWN = "unknown"  # the hub's word for a licence that nobody told
_KINDS = {
    "crosspair-cpd": (
        "CPD", "feature-extraction",
        "A video network and a text network that end in one space, pre-trained on videos and the "
        "text that came with them by cross-modal pair discrimination "
        "([arXiv:2001.05691](https://arxiv.org/abs/2001.05691)).",
    ),
    "crosspair-classifier": (
        "Classifier", "video-classification", "A video network fine-tuned to tell classes apart.",
    ),
}  # fmt: skip


def model_card(
    config: Mapping[str, Any],
    run: Path,
    *,
    results: Sequence[Any] = (),
    license: str = UNKNOWN,
    data: str = "",
) -> str:
    """The card of a model.

    Args:
        config: its ``config.json``.
        run: the folder that the model's lies in: what a run wrote there about itself is told.
        results: of `crosspair.evaluation.Result`, of this model.
        license: as the hub names it, as "apache-2.0".
        data: what it learnt from, for people, in a sentence.
    """
    kind, task, what = _KINDS[config["model_type"]]
    video = config["video"]
    front = {
        "license": license,
        "library_name": "crosspair",
        "pipeline_tag": task,
        "tags": ["video", "crosspair", "cross-modal-pair-discrimination"],
    }
    network = f"slow-only 3D ResNet-{video['depth']}"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {kind}: {network}\n\n{what}\n",
        f"## Use\n\n```python\n{_usage(kind)}```\n",
        f"## Input\n\n{_table(('', ''), _input(config))}",
        f"## Training\n\n{_training(config, run, data)}",
    ]
    if results:
        parts.append(f"## Results\n\n{_results(results)}")
    if license == UNKNOWN:
        told = "Nobody has told it; ask those who trained the model before you use it."
    else:
        told = license
    return "\n".join([*parts, f"## Licence\n\n{told}\n"])


def _usage(kind: str) -> str:
    if kind == "CPD":
        calls = (
            "features, embeddings = model.encode_video(clips)  # uint8 (B, 3, T, H, W), RGB\n"
            'similarity = embeddings @ model.encode_text(["a dog is playing"]).T\n'
        )
    else:
        kind = "Classifier"
        calls = "probabilities = model(clips).softmax(1)  # uint8 (B, 3, T, H, W), RGB\n"
    return (
        f"from crosspair.models import {kind}\n\n"
        f'model = {kind}.from_pretrained("…")  # this folder, or its name on the hub\n{calls}'
    )


def _input(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    told, clip = config["preprocessing"], config["clip"]
    yield "frames", f"{told['frames']}, {clip['stride']}/30 s apart"
    yield "size", f"short side {told['short_side']}, then {told['size']} × {told['size']} pixels"
    yield "colours", f"RGB; 0 to 1, less {told['mean']}, by {told['std']} (inside for uint8)"
    if "text" in config and "text_encoder" not in config.get("untrained", ()):
        text = config["text"]
        words = "mean of word vectors" if text["encoder"] == "words" else text["source"]
        yield "text", f"{words}; column `{text['column']}`"
    if "classes" in config:
        yield "classes", f"{len(config['classes'])}, see config.json"


def _training(config: Mapping[str, Any], run: Path, data: str) -> str:
    rows = [("data", data)] if data else []
    rows += [(name, str(value)) for name, value in _origin(run).items()]
    untrained = config.get("untrained", ())
    if untrained:
        rows.append(("untrained", ", ".join("the " + part.replace("_", " ") for part in untrained)))
    recipe = run / "recipe.yaml"
    text = _table(("", ""), rows) if rows else "Nothing is known of it.\n"
    if recipe.is_file():
        content = recipe.read_text(encoding="utf-8", errors="replace")
        text += f"\n<details><summary>Recipe</summary>\n\n```yaml\n{content}```\n\n</details>\n"
    return text


def _origin(run: Path) -> dict[str, Any]:
    """What a run's folder tells: hashes of what it was begun with, and how many pairs it used."""
    origin: dict[str, Any] = {}
    try:
        origin |= json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
            origin["pairs to learn from"] = f"{json.loads(lines.readline())['train']:,}"
    except (OSError, ValueError, TypeError, KeyError):
        pass  # a model by itself, beside files of others, or of a run that has just begun
    return origin


def _results(results: Sequence[Any]) -> str:
    """A row for each protocol and metric, with random weights and chance beside it."""
    measured = {result.of for result in results}
    subjects = [each for each in ("trained", "random weights", "chance") if each in measured]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for result in results:
        where = (result.protocol, result.feature, result.split, result.metric)
        value = f"{result.value:g}" if result.smaller_is_better else f"{100 * result.value:.1f} %"
        rows.setdefault(where, {})[result.of] = value
    head = ["protocol", "feature", "split", "metric", *subjects]
    lines = ([*where, *(of.get(s, "") for s in subjects)] for where, of in rows.items())
    return _table(head, lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return markdown_rows(head, escaped, names=len(head)) + "\n"
