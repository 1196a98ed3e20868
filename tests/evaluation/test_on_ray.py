"""A Ray cluster encodes videos as one process does; its errors are reported in one line."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crosspair.cli import main
from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.errors import RunError, VideoError
from crosspair.evaluation import cached_features
from crosspair.evaluation import features as on_ray
from crosspair.evaluation.features import encode_on_ray
from crosspair.models import CPD

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed"),
]
OPTIONS = {"clips": 3, "batch_size": 6, "workers": 0, "precision": "fp32"}


def on_cluster(*arguments, **options):
    """`encode_on_ray` in blocks of two videos, where this machine gives Ray time to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RAY_TASK_VIDEOS", 2)
        try:
            yield from encode_on_ray(*arguments, **options)
        except RunError as error:
            if "timed out during startup" in str(error):  # Ray gives itself half a minute
                pytest.skip("this machine is too busy to start Ray")
            raise


def test_features_are_those_of_one_process(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    found = cached_features(model, manifest, tmp_path / "ray", encode=on_cluster, **OPTIONS)
    expected = cached_features(model, manifest, tmp_path / "here", **OPTIONS)
    assert found.rows.tolist() == expected.rows.tolist() == [0, 1, 2, 4, 5]
    assert found.failures == expected.failures
    torch.testing.assert_close(found.visual, expected.visual, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "ray" / "parts").exists()


class LostTaskError(Exception):
    """As Ray's own."""


class Cluster:
    """What is used of the module ray."""

    exceptions = SimpleNamespace(RayError=LostTaskError)

    def __init__(self, *nodes: dict[str, int]) -> None:
        self.of_nodes, self.error = nodes, LostTaskError("a traceback\nthe node died")

    def cluster_resources(self) -> dict[str, int]:
        return {k: sum(each.get(k, 0) for each in self.of_nodes) for k in ("CPU", "GPU")}

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": each} for each in self.of_nodes]

    def put(self, tools: object) -> object:
        self.tools = tools
        return tools

    def remote(self, **needs: int) -> object:
        return lambda function: SimpleNamespace(remote=function)

    def get(self, reference: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("nodes", "share"),
    [
        ([{"CPU": 8}, {"CPU": 8}], ({"num_cpus": 3}, 10)),
        ([{"CPU": 64}, {"CPU": 2}], ({"num_cpus": 2}, 66)),
        ([{"CPU": 16, "GPU": 8}, {"CPU": 4}], ({"num_gpus": 1}, 16)),
    ],
)
def test_a_task_needs_a_gpu_or_what_every_node_has(nodes, share) -> None:
    assert on_ray._task_resources(Cluster(*nodes), workers=2) == share


@pytest.mark.parametrize(
    ("cause", "message"), [(VideoError("decoding ended"), "decoding ended"), (None, "the node died")]
)
def test_errors_of_tasks(model: CPD, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, cause, message: str) -> None:
    cluster = Cluster({"CPU": 2})
    cluster.error.cause = cause
    monkeypatch.setattr(on_ray, "map_on_ray", lambda *_: [(0, None)])
    monkeypatch.setattr(on_ray, "ray_cluster", lambda *_: nullcontext(cluster))
    here = Manifest(manifest.table, Path("m.parquet"))
    with pytest.raises((VideoError, RunError), match=message):
        list(encode_on_ray(model, here, [0], world=World(), **OPTIONS))
    assert cluster.tools[1].path == Path.cwd() / "m.parquet"  # tasks run in other folders


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [(["--address", "auto"], "1", "--address"), (["--engine", "ray"], "2", "--engine ray")],
)
def test_options_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options, processes, message
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "m", "--model", "m", "--out", "o", *options])
    error = capsys.readouterr().err
    assert error.startswith("crosspair: error: ")
    assert message in error
