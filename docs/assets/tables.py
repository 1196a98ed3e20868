"""Tables of committed results, made while the pages are built: no number is typed."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from crosspair.evaluation import read_results
from crosspair.markdown import markdown_rows
from crosspair.reporting.tables import format_interval, format_value, markdown_table

PLACE = re.compile(r"^<!-- ([a-z]+): (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Put a table in the place of each ``<!-- KIND: FILE -->``, FILE relative to docs/."""
    folder = Path(config["docs_dir"])

    def table(place: re.Match[str]) -> str:
        kind, file = place[1], folder / place[2]
        if kind in REPORTS:
            return REPORTS[kind](file)
        return MEASURED[kind](json.loads(file.read_text(encoding="utf-8"))["results"])

    return PLACE.sub(table, markdown)


def _results(file: Path) -> str:
    results, _ = read_results(file)
    return markdown_table([each for each in results if "official split" not in each.settings])


def _conclusion(file: Path) -> str:
    """What the report of an ablation says first."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("- "))


def _dial(file: Path) -> str:
    """Accuracies in an ablation's report.csv, a row for an objective, a column for a turn."""
    with file.open(encoding="utf-8", newline="") as lines:
        means = [line for line in csv.DictReader(lines) if line["status"] == "mean"]
    tables = (_turned(means, *of) for of in (("kNN", "visual"), ("zero-shot", "embedding")))
    return "\n\n".join(tables)


def _turned(means: list[dict[str, str]], protocol: str, feature: str) -> str:
    told = {
        line["row"]: f"{100 * float(line['value']):.1f} ± {100 * float(line['deviation']):.1f}"
        for line in means
        if (line["protocol"], line["feature"], line["metric"]) == (protocol, feature, "top-1")
        and line["deviation"]
    }
    rows: dict[str, dict[str, str]] = {}
    for row, mean in told.items():
        name, _, turn = row.rpartition(" / ")
        if name:
            rows.setdefault(name, {})[turn] = mean
    turns = sorted({turn for of in rows.values() for turn in of}, key=float)
    cells = [(name, *(of.get(turn, "") for turn in turns)) for name, of in rows.items()]
    untrained = (told["random weights"], *[""] * (len(turns) - 1))
    head = (f"{protocol} top-1, %", *turns)
    return markdown_rows(head, [*cells, ("random weights", *untrained)])


def _transfer(folder: Path) -> str:
    """Fine-tuned networks: a row each, split by split and in the mean."""
    rows = []
    for name in ("cpd", "scratch", "cpd-10", "scratch-10"):
        results, _ = read_results(folder / name / "results.json")
        mean = next(each for each in results if (each.metric, each.of) == ("top-1", "trained"))
        begun = "CPD" if name.startswith("cpd") else "random weights"
        values = (format_value(value) for value in mean.details["draws"])
        told = f"{format_value(mean.value)} ({format_interval(mean.interval)})"
        rows.append((begun, f"{100 * mean.settings['labels']:g} %", *values, told))
    splits = (f"split {split}" for split in mean.settings["mean of splits"])
    return markdown_rows(("begun with", "labels", *splits, "mean"), rows)


def _hardest(file: Path) -> str:
    """Weight of the hardest negatives by objective, of benchmarks.gradient_figures."""
    of = json.loads(file.read_text(encoding="utf-8"))["hardest"]
    names = [name for name in of if name != "share_of_negatives"]
    shares = {0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 0.5: "50 %"}
    rows = []
    for share, *weights in zip(of["share_of_negatives"], *map(of.get, names), strict=True):
        if share in shares:
            rows.append((shares[share], *map(format_value, weights)))
    return markdown_rows(("the hardest", *names), rows)


def _nce(file: Path) -> str:
    """Cosine of NCE's gradient and the exact one, of benchmarks.gradient_figures."""
    of = json.loads(file.read_text(encoding="utf-8"))
    rows = [(name, *(f"{each['cosine']['median']:.2f}" for each in of[name]))
            for name in of if "one Z" in name or "own Z" in name]  # fmt: skip
    return markdown_rows(("noise samples m", *(f"{m:,}" for m in of["m"])), rows)


def _classes(results: dict[str, Any]) -> str:
    """P@10 by class, of benchmarks.library."""
    of = results["classes"]
    lines = [(label, [of[label][among] for among in ("all", "test")]) for label in of]
    means = [
        {name: sum(found[i][name] for _, found in lines) / len(lines) for name in lines[0][1][i]}
        for i in range(2)
    ]
    lines.append(("**mean**", means))
    head = ("class", "all clips", "chance", "unseen clips", "chance")
    return markdown_rows(
        head, [(label, *(f"{each:.2f}" for of in both for each in of.values()))
               for label, both in lines],
    )  # fmt: skip


def _moments(results: dict[str, Any]) -> str:
    """How often the right second was found, of benchmarks.library."""
    of = results["long videos"]
    rows = [(name, f"{each['queries']}", f"{each['right']:.2f}", f"{each['chance']:.3f}")
            for name, each in of.items()]  # fmt: skip
    return markdown_rows(("asked", "queries", "right", "chance"), rows)


def _indexing(results: dict[str, Any]) -> str:
    """What indexing took, of benchmarks.library."""
    of = results["index"]
    names = ("videos", "video_s", "windows", "s", "windows_a_s", "video_s_a_s", "MB")
    head = ("videos", "seconds of them", "windows", "took, s", "windows/s", "video s/s", "disk, MB")
    return markdown_rows(head, [[f"{of[name]:,.0f}" for name in names]], names=0)


def _making(results: dict[str, Any]) -> str:
    """What a large library takes, of benchmarks.search."""
    made = results["making"]
    memory = (made["GiB_of_memory"], results["index"]["GiB_of_memory"])
    cells = (f"{made['add_s']:.0f}", f"{made['index_s']:.0f}", f"{made['GB']:.1f}",
             *(f"{each:.1f}" for each in memory))  # fmt: skip
    head = ("adding, s", "its index, s", "disk, GB", "memory for making, GiB", "searching, GiB")
    return markdown_rows(head, [cells], names=0)


def _search(results: dict[str, Any]) -> str:
    """Times and recall, of benchmarks.search."""
    rows = [(name, *(f"{each[time]:.0f}" for time in ("p50_ms", "p95_ms", "cpu_ms")),
             f"{each.get('recall@10', 1.0):.3f}")
            for name, each in results.items() if name != "making"]  # fmt: skip
    return markdown_rows(("way", "p50, ms", "p95, ms", "processor, ms", "recall@10"), rows)


def _export(results: dict[str, Any]) -> str:
    """Size, difference and time of exported towers, of benchmarks.export."""
    rows = []
    for network, of in results.items():
        for name, each in of["latency"].items():
            written = of["files"].get(name)
            about = (
                (f"{written['MiB']:.0f}", f"{written['largest_difference']:.0e}")
                if written
                else ("", "")
            )
            rows.append(
                (
                    f"{network}, 8×{of['size']}²",
                    name,
                    *about,
                    f"{each['ms']['median']:.0f}",
                    f"{each['times_faster']['median']:.2f}",
                )
            )
    head = ("network", "way", "MiB", "difference", "ms a clip", "times faster")
    return markdown_rows(head, rows, names=2)


def _memory(results: dict[str, Any]) -> str:
    """The bank on each GPU, of benchmarks.traffic."""
    of = results["computed"]["memory"]["fp32"]
    head = ("pairs", *(f"{gpus} GPU{'s' * (gpus != '1')}" for gpus in next(iter(of.values()))))
    rows = [
        (f"{int(pairs):,}", *(f"{size / 1e9:.3g}" for size in by_gpus.values()))
        for pairs, by_gpus in of.items()
    ]
    return markdown_rows(head, rows)


def _traffic(results: dict[str, Any]) -> str:
    """What a GPU sends in a step, of benchmarks.traffic."""
    of = results["computed"]["sent"]
    names = ("fp32", "bf16", "gradients")
    rows = [(gpus, *(f"{each[name] / 1e6:.1f}" for name in names)) for gpus, each in of.items()]
    return markdown_rows(("GPUs", "bank in fp32", "bank in bf16", "gradients"), rows)


def _counted(results: dict[str, Any]) -> str:
    """What two processes handed over, of benchmarks.traffic."""
    rows = [
        (
            each["settings"].get("bank_precision", "fp32"),
            f"{each['pairs']:,}",
            f"{each['all_reduce']:,}",
            f"{each['all_gather']:,}",
        )
        for each in results["counted"]
    ]
    return markdown_rows(("bank", "pairs", "to all-reduce", "to all-gather"), rows)


def _loading(results: dict[str, Any]) -> str:
    rows = [
        (setting, way, f"{each['ms']['median']:.1f}", f"{each['times_faster']['median']:.1f}")
        for setting, of in results["ways"].items()
        for way, each in of.items()
    ]
    return markdown_rows(("untouched files, clip", "way", "ms", "times faster"), rows, names=2)


def _loading_parts(results: dict[str, Any]) -> str:
    """Where a clip's time goes, and what loading processes give."""
    parts, workers = results["parts"], results["workers"]
    of_parts, of_workers = next(iter(parts.values())), next(iter(workers.values()))
    rows = [
        (
            files,
            *(f"{ms:.2f}" for ms in parts[files].values()),
            *(f"{clips:.0f}" for clips in workers[files].values()),
        )
        for files in parts
    ]
    head = (
        "files",
        *(f"{part}, ms" for part in of_parts),
        *(f"clips/s by {n}" for n in of_workers),
    )
    return markdown_rows(head, rows)


def _network(results: dict[str, Any]) -> str:
    rows = []
    for network, of in results.items():
        for doing in ("training", "inference"):
            for way, each in of[doing]["ways"].items():
                ours = way == "crosspair"
                rows.append((
                    f"{network}, 8×{of['size']}²", doing, way,
                    f"{each['ms']['median'] / of['batch']:.0f}",
                    f"{each['times_faster']['median']:.2f}",
                    f"{each['times_faster']['low']:.2f}–{each['times_faster']['high']:.2f}",
                    f"{of[doing]['share_of_the_rate']:.2f}" if ours else "",
                ))  # fmt: skip
    head = ("network", "doing", "way", "ms a clip", "times faster", "quartiles", "of the rate")
    return markdown_rows(head, rows, names=3)


def _objective(results: dict[str, Any]) -> str:
    """The authors' way and three of ours, by number of pairs."""
    rows = []
    for of in results.values():
        base, *_ = of["ways"].values()
        for way, each in list(of["ways"].items())[:4]:
            less = base["MiB"] / each["MiB"]
            rows.append((
                f"{of['pairs']:,} × {of['batch']}", way, f"{each['ms']['median']:.1f}",
                f"{each['times_faster']['median']:.2f}", f"{each['MiB']:.1f}", f"{less:.1f}",
            ))  # fmt: skip
    head = ("pairs × batch", "a step", "ms", "times faster", "MiB", "times less")
    return markdown_rows(head, rows, names=2)


def _every(results: dict[str, Any]) -> str:
    """Every objective, where all were measured."""
    of = max(results.values(), key=lambda each: len(each["ways"]))
    rows = [(way, f"{each['ms']['median']:.1f}", f"{each['MiB']:.1f}")
            for way, each in of["ways"].items()]  # fmt: skip
    return markdown_rows(("a step", "ms", "MiB"), rows)


def _epoch(results: dict[str, Any]) -> str:
    parts = list(dict.fromkeys(part for of in results.values() for part in of["parts"]))
    rows = []
    for part in parts:
        every = [of["parts"].get(part, {"ms": 0.0, "share": 0.0}) for of in results.values()]
        rows.append((part, *(f"{x['ms']:.1f} ({x['share']:.1%})" for x in every)))
    rows.append(("**a step**", *(f"{of['ms_a_step']:.1f}" for of in results.values())))
    rows.append(("**the network**", *(f"{of['network']:.1%}" for of in results.values())))
    rows.append(("clips/s", *(f"{of['clips_per_s']:.0f}" for of in results.values())))
    rows.append(("memory at most, MiB", *(f"{of['most_MiB']:.0f}" for of in results.values())))
    return markdown_rows(("part, ms", *results), rows)


def _growth(file: Path) -> str:
    """What a process holds while it trains, of benchmarks.training."""
    seen = json.loads(file.read_text(encoding="utf-8"))["growth"]["seen"]
    rows = [
        (f"{each['step']:,}", *(f"{each[name]:.0f}" for name in ("MiB", "threads", "files")))
        for each in (seen[0], seen[1], seen[len(seen) // 2], seen[-1])
    ]
    return markdown_rows(("step", "memory, MiB", "threads", "open files"), rows)


def _frozen(results: dict[str, Any]) -> str:
    """Protocols on frozen features at full size, of benchmarks.evaluation."""
    rows = []
    for protocol, of in results.items():
        for way, told in of.items():
            if isinstance(told, dict):
                ours = way == "crosspair"
                rows.append((
                    protocol, way, f"{told['s']:,.0f}", f"{told['GiB']:.1f}" if ours else "",
                    f"{of['times_faster']:.1f}" if ours else "",
                ))  # fmt: skip
    return markdown_rows(("protocol", "way", "s", "GiB", "times faster"), rows, names=2)


def _curves(results: dict[str, Any]) -> str:
    rows = [
        (
            way,
            f"{of['last']:.3f}",
            f"{of['largest_difference']:.2%}",
            f"{of['last_difference']:+.2%}",
        )
        for way, of in results.items()
    ]
    return markdown_rows(("way", "last loss", "largest difference", "last difference"), rows)


REPORTS = {
    "results": _results, "conclusion": _conclusion, "dial": _dial, "transfer": _transfer,
    "hardest": _hardest, "nce": _nce, "growth": _growth,
}  # fmt: skip
MEASURED = {
    "classes": _classes, "moments": _moments, "indexing": _indexing, "making": _making,
    "search": _search, "export": _export, "memory": _memory, "traffic": _traffic,
    "counted": _counted, "network": _network, "objective": _objective, "every": _every,
    "epoch": _epoch, "curves": _curves, "loading": _loading, "parts": _loading_parts,
    "frozen": _frozen,
}  # fmt: skip
