"""The quickstart on a small corpus."""

import pytest

from crosspair.evaluation import read_results
from crosspair.quickstart import quickstart
from crosspair.recipes import load_recipe
from tests.e2e.conftest import TINY


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    recipe = load_recipe("quickstart", TINY)
    assert quickstart(out, pairs=48, recipe=recipe) == out / "report.html"
    return out, recipe


def test_outputs(output) -> None:
    out, _ = output
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "run" / "model" / "model.safetensors").is_file()
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/webp" in page
    assert page.count("kNN, top-1") == 2
    assert page.count("expected by chance") == 4


def test_every_protocol_has_random_weights_and_chance(output) -> None:
    results, origin = read_results(output[0] / "results.json")
    assert origin.recipe
    assert origin.model
    measured = {(r.protocol, r.metric, r.feature, r.of) for r in results}
    for protocol, metric, feature in (
        ("retrieval text→video", "R@10", "embedding"),
        ("retrieval video→text", "median rank", "embedding"),
        ("kNN", "top-1", "visual"),
        ("kNN", "top-1", "embedding"),
        ("linear", "top-1", "visual"),
        ("zero-shot", "top-1", "embedding"),
    ):
        for of in ("trained", "random weights", "chance"):
            assert (protocol, metric, feature, of) in measured


def test_a_second_call_reuses_the_run(output) -> None:
    out, recipe = output
    before = (out / "run" / "metrics.jsonl").read_bytes()
    assert quickstart(out, pairs=48, recipe=recipe)
    assert (out / "run" / "metrics.jsonl").read_bytes() == before
