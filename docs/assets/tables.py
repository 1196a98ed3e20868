"""MkDocs hook that generates the tables of the documentation from committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from crosspair.evaluation import read_results
from crosspair.markdown import escape_markdown, markdown_rows
from crosspair.reporting.ablation_results import judge_claims, read_ablation
from crosspair.reporting.ablation_tables import RULE, describe_findings, format_difference
from crosspair.reporting.tables import format_interval, format_signed, format_value, markdown_table, pluralize

PLACEHOLDER = re.compile(r"^<!-- ([a-z]+): (\S+) -->$", re.MULTILINE)

# Labels in benchmarks/results/*.json and their names in the documentation.
LABELS = {
    "common way": "common", "common way with seeking": "common with seeking", "ours": "crosspair",
    "untouched": "original", "every 250": "key frame every 250",
    "112x112": "112×112", "64x64": "64×64",
    "authors' way: rows of each pair gathered": "authors' implementation",
    "noise of each pair": "noise=pair", "noise of the batch": "noise=batch", "in batch": "in-batch",
    "rendered": "rendered videos", "given": "UCF101, ten classes",
    "plain": "plain implementation", "first weights rounded": "initial weights rounded to bfloat16",
    "one pass of the optimiser": "fused optimiser", "other noise": "other noise seeds",
    "all three": "bfloat16, channels_last_3d and fused optimiser",
}  # fmt: skip


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Replace each ``<!-- TABLE: FILE -->`` by a table; FILE is relative to docs/."""
    folder = Path(config["docs_dir"])

    def table(placeholder: re.Match[str]) -> str:
        name, file = placeholder[1], folder / placeholder[2]
        if name in REPORTS:
            return REPORTS[name](file)
        return BENCHMARKS[name](json.loads(file.read_text(encoding="utf-8"))["results"])

    return PLACEHOLDER.sub(table, markdown)


def _label(label: str) -> str:
    """Rename the parts of a label, which are separated by commas."""
    return ", ".join(LABELS.get(part, part) for part in label.split(", "))


def _results(file: Path) -> str:
    results, _ = read_results(file)
    return markdown_table([each for each in results if "official split" not in each.settings])


def _findings(folder: Path) -> str:
    """List the findings of an ablation."""
    _, *findings = describe_findings(read_ablation(folder))
    return "\n".join(f"- {escape_markdown(finding)}" for finding in findings)


def _claims(folder: Path) -> str:
    """Verdicts on the claims of all ablations in a folder."""
    rows = []
    for ablation in map(read_ablation, sorted(folder.iterdir())):
        for claim, verdict, decisive, differences in judge_claims(ablation):
            measured = format_difference(differences[decisive], decisive) if decisive else ""
            published = "" if claim["difference"] is None else format_signed(100 * claim["difference"])
            texts = (claim["claim"], f"{ablation.plan['title']}, {pluralize(ablation.seeds, 'seed')}")
            rows.append((*map(escape_markdown, texts), published, claim["protocol"], measured, verdict))
    head = ("claim", "data", "published difference", "measure", "difference", "verdict")
    return f"{markdown_rows(head, rows, names=2)}\n\n{RULE}"


def _axis(folder: Path) -> str:
    """Accuracies of an ablation by objective and value of a numeric axis."""
    means = read_ablation(folder).means
    tables = []
    for protocol, feature in (("kNN", "visual"), ("zero-shot", "embedding")):
        found = means[(means.protocol == protocol) & (means.feature == feature) & (means.metric == "top-1")]
        cells = {
            tuple(mean.row.rpartition(" / ")[::2]): f"{100 * mean.value:.1f} ± {100 * mean.deviation:.1f}"
            for mean in found.itertuples()
            if mean.deviation is not None
        }
        values = sorted({value for name, value in cells if name}, key=float)
        names = dict.fromkeys(name for name, _ in cells if name)
        rows = [(name, *(cells.get((name, value), "") for value in values)) for name in names]
        rows.append(("random weights", cells["", "random weights"], *[""] * (len(values) - 1)))
        tables.append(markdown_rows((f"{protocol} top-1, %", *values), rows))
    return "\n\n".join(tables)


def _transfer(folder: Path) -> str:
    """Fine-tuned networks: accuracies of single splits, and their mean."""
    rows = []
    for name in ("cpd", "scratch", "scratch-longer", "cpd-10", "scratch-10"):
        if not (folder / name).exists():
            continue
        results, _ = read_results(folder / name / "results.json")
        mean = next(each for each in results if (each.metric, each.of) == ("top-1", "trained"))
        weights = "CPD" if name.startswith("cpd") else "random"
        values = (format_value(value) for value in mean.details["draws"])
        interval = f"{format_value(mean.value)} ({format_interval(mean.interval)})"
        rows.append((weights, f"{100 * mean.settings['labels']:g} %", *values, interval))
    splits = (f"split {split}" for split in mean.settings["mean of splits"])
    return markdown_rows(("initial weights", "labels", *splits, "mean"), rows)


def _hardest(file: Path) -> str:
    """Weight of the hardest negatives by objective, from benchmarks.gradient_figures."""
    data = json.loads(file.read_text(encoding="utf-8"))["hardest"]
    objectives = [name for name in data if name != "share_of_negatives"]
    fractions = {0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 0.5: "50 %"}
    rows = [
        (fractions[fraction], *map(format_value, weights))
        for fraction, *weights in zip(data["share_of_negatives"], *map(data.get, objectives), strict=True)
        if fraction in fractions
    ]
    return markdown_rows(("hardest negatives", *objectives), rows)


def _nce(file: Path) -> str:
    """Cosine of NCE's gradient and the exact gradient, from benchmarks.gradient_figures."""
    data = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        (name, *(f"{each['cosine']['median']:.2f}" for each in data[name]))
        for name in data if "one Z" in name or "own Z" in name
    ]  # fmt: skip
    return markdown_rows(("noise samples m", *(f"{m:,}" for m in data["m"])), rows)


def _heads(results: dict[str, Any]) -> str:
    """Rate of training heads from stored features, from benchmarks.heads."""
    rows = [(run["run"], str(run["batch"]), f"{run['pairs_per_second']:,}") for run in results["runs"]]
    return markdown_rows(("training", "batch", "pairs/s"), rows)


def _growth(file: Path) -> str:
    """Resources of a training process over steps, from benchmarks.training."""
    seen = json.loads(file.read_text(encoding="utf-8"))["growth"]["seen"]
    rows = [
        (f"{each['step']:,}", *(f"{each[name]:.0f}" for name in ("MiB", "threads", "files")))
        for each in (seen[0], seen[1], seen[len(seen) // 2], seen[-1])
    ]
    return markdown_rows(("step", "memory, MiB", "threads", "open files"), rows)


def _classes(results: dict[str, Any]) -> str:
    """P@10 by class, from benchmarks.library."""
    rows = [(label, [scores[clips] for clips in ("all", "test")]) for label, scores in results["classes"].items()]
    means = [{key: sum(scores[i][key] for _, scores in rows) / len(rows) for key in rows[0][1][i]} for i in range(2)]
    return markdown_rows(
        ("class", "all clips", "chance", "unseen clips", "chance"),
        [
            (label, *(f"{value:.2f}" for score in scores for value in score.values()))
            for label, scores in [*rows, ("**mean**", means)]
        ],
    )


def _moments(results: dict[str, Any]) -> str:
    """Localisation accuracy in long videos, from benchmarks.library."""
    rows = [
        (name, f"{each['queries']}", f"{each['right']:.2f}", f"{each['chance']:.3f}")
        for name, each in results["long videos"].items()
    ]
    return markdown_rows(("query", "queries", "correct", "chance"), rows)


def _indexing(results: dict[str, Any]) -> str:
    """Indexing speed, from benchmarks.library."""
    keys = ("videos", "video_s", "windows", "s", "windows_a_s", "video_s_a_s", "MB")
    head = ("videos", "total length, s", "windows", "time, s", "windows/s", "video s/s", "disk, MB")
    return markdown_rows(head, [[f"{results['index'][key]:,.0f}" for key in keys]], names=0)


def _sampling(results: dict[str, Any]) -> str:
    """Cost of indexing from clips and from key frames, from benchmarks.indexing."""
    rows = [
        (
            f"{size}, {data['Mbit_a_s']:.1f} Mbit/s", sampling, f"{each['ffmpeg_s']:.0f}",
            f"{each['decoding_s']:.0f}", f"{each['times_ffmpeg']:.2f}", f"{each['decoding_fraction']:.0%}",
            f"{each['hours_a_core_hour']:.0f}",
        )
        for size, data in results.items()
        for sampling, each in data["sampling"].items()
    ]  # fmt: skip
    head = (
        "video", "sampling", "ffmpeg, s", "decoding, s", "decoding / ffmpeg", "decoding / indexing",
        "hours of video per core hour",
    )  # fmt: skip
    return markdown_rows(head, rows, names=2)


def _making(results: dict[str, Any]) -> str:
    """Time, disk space and memory of a large library, from benchmarks.search."""
    made = results["making"]
    cells = (
        f"{made['add_s']:.0f}", f"{made['index_s']:.0f}", f"{made['GB']:.1f}",
        f"{made['GiB_of_memory']:.1f}", f"{results['index']['GiB_of_memory']:.1f}",
    )  # fmt: skip
    head = (
        "insertion, s", "index, s", "disk, GB", "memory when building, GiB",
        "memory when searching, GiB",
    )  # fmt: skip
    return markdown_rows(head, [cells], names=0)


def _search(results: dict[str, Any]) -> str:
    """Latency and recall, from benchmarks.search."""
    rows = [
        (
            name, *(f"{each[key]:.0f}" for key in ("p50_ms", "p95_ms", "cpu_ms")),
            f"{each.get('recall@10', 1.0):.3f}",
        )
        for name, each in results.items() if name != "making"
    ]  # fmt: skip
    return markdown_rows(("method", "p50, ms", "p95, ms", "CPU time, ms", "recall@10"), rows)


def _export(results: dict[str, Any]) -> str:
    """Size, numerical difference and latency of exported towers, from benchmarks.export."""
    rows = []
    for network, data in results.items():
        for runtime, each in data["latency"].items():
            file = data["files"].get(runtime)
            size = (f"{file['MiB']:.0f}", f"{file['largest_difference']:.0e}") if file else ("", "")
            rows.append((
                f"{network}, 8×{data['size']}²", runtime, *size, f"{each['ms']['median']:.0f}",
                f"{each['times_faster']['median']:.2f}",
            ))  # fmt: skip
    head = ("network", "runtime", "MiB", "difference", "ms per clip", "speedup")
    return markdown_rows(head, rows, names=2)


def _memory(results: dict[str, Any]) -> str:
    """Bank memory per GPU, from benchmarks.traffic."""
    data = results["computed"]["memory"]["fp32"]
    head = ("pairs", *(f"{gpus} GPU{'s' * (gpus != '1')}" for gpus in next(iter(data.values()))))
    rows = [(f"{int(pairs):,}", *(f"{size / 1e9:.3g}" for size in by_gpus.values())) for pairs, by_gpus in data.items()]
    return markdown_rows(head, rows)


def _traffic(results: dict[str, Any]) -> str:
    """Bytes sent by a GPU per step, from benchmarks.traffic."""
    rows = [
        (gpus, *(f"{each[name] / 1e6:.1f}" for name in ("fp32", "bf16", "gradients")))
        for gpus, each in results["computed"]["sent"].items()
    ]
    return markdown_rows(("GPUs", "bank in fp32", "bank in bf16", "gradients"), rows)


def _counted(results: dict[str, Any]) -> str:
    """Measured traffic of two processes, from benchmarks.traffic."""
    rows = [
        (
            each["settings"].get("bank_precision", "fp32"),
            *(f"{each[key]:,}" for key in ("pairs", "all_reduce", "all_gather")),
        )
        for each in results["counted"]
    ]
    return markdown_rows(("bank", "pairs", "all-reduce", "all-gather"), rows)


def _loading(results: dict[str, Any]) -> str:
    rows = [
        (_label(setting), _label(method), f"{each['ms']['median']:.1f}", f"{each['times_faster']['median']:.1f}")
        for setting, methods in results["ways"].items()
        for method, each in methods.items()
    ]
    return markdown_rows(("original files, clip", "method", "ms", "speedup"), rows, names=2)


def _loading_parts(results: dict[str, Any]) -> str:
    """Time of the steps of loading a clip, and throughput by number of workers."""
    parts, workers = results["parts"], results["workers"]
    rows = [
        (
            _label(files), *(f"{ms:.2f}" for ms in parts[files].values()),
            *(f"{clips:.0f}" for clips in workers[files].values()),
        )
        for files in parts
    ]  # fmt: skip
    head = (
        "files", *(f"{part}, ms" for part in next(iter(parts.values()))),
        *(f"clips/s, {pluralize(int(count), 'worker')}" for count in next(iter(workers.values()))),
    )  # fmt: skip
    return markdown_rows(head, rows)


def _network(results: dict[str, Any]) -> str:
    rows = []
    for network, data in results.items():
        for mode in ("training", "inference"):
            for method, each in data[mode]["ways"].items():
                faster, ours = each["times_faster"], method == "crosspair"
                rows.append((
                    f"{network}, 8×{data['size']}²", mode, method,
                    f"{each['ms']['median'] / data['batch']:.0f}", f"{faster['median']:.2f}",
                    f"{faster['low']:.2f}–{faster['high']:.2f}",
                    f"{data[mode]['share_of_the_rate']:.2f}" if ours else "",
                ))  # fmt: skip
    head = (
        "network", "mode", "method", "ms per clip", "speedup", "quartiles", "fraction of peak rate",
    )  # fmt: skip
    return markdown_rows(head, rows, names=3)


def _objective(results: dict[str, Any]) -> str:
    """The authors' implementation and three of crosspair's, by number of pairs."""
    rows = []
    for data in results.values():
        base, *_ = data["ways"].values()
        for method, each in list(data["ways"].items())[:4]:
            rows.append((
                f"{data['pairs']:,} × {data['batch']}", _label(method), f"{each['ms']['median']:.1f}",
                f"{each['times_faster']['median']:.2f}", f"{each['MiB']:.1f}",
                f"{base['MiB'] / each['MiB']:.1f}",
            ))  # fmt: skip
    head = ("pairs × batch", "objective", "ms per step", "speedup", "MiB", "memory reduction")
    return markdown_rows(head, rows, names=2)


def _every(results: dict[str, Any]) -> str:
    """All objectives, at the number of pairs at which most were measured."""
    data = max(results.values(), key=lambda each: len(each["ways"]))
    rows = [
        (_label(method), f"{each['ms']['median']:.1f}", f"{each['MiB']:.1f}")
        for method, each in data["ways"].items()
    ]  # fmt: skip
    return markdown_rows(("objective", "ms per step", "MiB"), rows)


def _epoch(results: dict[str, Any]) -> str:
    runs = results.values()
    rows = []
    for part in dict.fromkeys(part for run in runs for part in run["parts"]):
        cells = [run["parts"].get(part, {"ms": 0.0, "share": 0.0}) for run in runs]
        rows.append((part, *(f"{cell['ms']:.1f} ({cell['share']:.1%})" for cell in cells)))
    rows.append(("**whole step**", *(f"{run['ms_a_step']:.1f}" for run in runs)))
    rows.append(("**network**", *(f"{run['network']:.1%}" for run in runs)))
    rows.append(("clips/s", *(f"{run['clips_per_s']:.0f}" for run in runs)))
    rows.append(("peak memory, MiB", *(f"{run['most_MiB']:.0f}" for run in runs)))
    return markdown_rows(("part, ms", *map(_label, results)), rows)


def _frozen(results: dict[str, Any]) -> str:
    """Protocols on frozen features at full size, from benchmarks.evaluation."""
    rows = []
    for protocol, data in results.items():
        for method, each in data.items():
            if isinstance(each, dict):
                ours = method == "crosspair"
                rows.append((
                    protocol, method, f"{each['s']:,.0f}", f"{each['GiB']:.1f}" if ours else "",
                    f"{data['times_faster']:.1f}" if ours else "",
                ))  # fmt: skip
    return markdown_rows(("protocol", "method", "s", "GiB", "speedup"), rows, names=2)


def _curves(results: dict[str, Any]) -> str:
    rows = [
        (
            _label(method), f"{each['last']:.3f}", f"{each['largest_difference']:.2%}",
            f"{each['last_difference']:+.2%}",
        )
        for method, each in results.items()
    ]  # fmt: skip
    head = ("setting", "last loss", "largest difference", "last difference")
    return markdown_rows(head, rows)


REPORTS = {
    "results": _results, "claims": _claims, "conclusion": _findings, "dial": _axis, "transfer": _transfer,
    "hardest": _hardest, "nce": _nce, "growth": _growth,
}  # fmt: skip
BENCHMARKS = {
    "classes": _classes, "moments": _moments, "indexing": _indexing, "making": _making,
    "sampling": _sampling, "search": _search, "export": _export, "memory": _memory, "traffic": _traffic,
    "counted": _counted, "network": _network, "objective": _objective, "every": _every,
    "epoch": _epoch, "curves": _curves, "loading": _loading, "parts": _loading_parts,
    "frozen": _frozen, "heads": _heads,
}  # fmt: skip
