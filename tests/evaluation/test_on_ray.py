"""A Ray cluster encodes videos as one process does; lost tasks and errors are reported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crosspair.corpora import Manifest
from crosspair.errors import RunError, VideoError
from crosspair.evaluation import cached_features, features
from crosspair.evaluation.encode import InferenceEngine
from crosspair.evaluation.features import encode_on_ray
from crosspair.models import CPD
from crosspair.workers import WorkerFailure, map_on_ray

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"clips": 3, "batch_size": 6, "workers": 0, "precision": "fp32"}


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_features_are_those_of_one_process(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "RAY_TASK_VIDEOS", 2)
    try:
        found = cached_features(model, manifest, tmp_path / "ray", encode=encode_on_ray, **OPTIONS)
    except RunError as error:
        if "timed out during startup" in str(error):  # Ray gives itself half a minute
            pytest.skip("this machine is too busy to start Ray")
        raise
    expected = cached_features(model, manifest, tmp_path / "here", **OPTIONS)
    assert found.rows.tolist() == expected.rows.tolist() == [0, 1, 2, 4, 5]
    assert found.failures == expected.failures
    torch.testing.assert_close(found.visual, expected.visual, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "ray" / "parts").exists()


class LostTaskError(Exception):
    """As Ray's own."""


class FakeRay(SimpleNamespace):
    """The used part of the module ray: a cluster of nodes, where the task of job 1 is lost."""

    def __init__(self, *nodes: dict[str, int]) -> None:
        super().__init__(exceptions=SimpleNamespace(RayError=LostTaskError), init=lambda *_, **__: None)
        self.of_nodes, self.most, self.stopped = nodes, 0, False

    def shutdown(self) -> None:
        self.stopped = True

    def cluster_resources(self) -> dict[str, int]:
        return {k: sum(each.get(k, 0) for each in self.of_nodes) for k in ("CPU", "GPU")}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.of_nodes]

    def put(self, value: object) -> object:
        return value

    def remote(self, **needs: int) -> Any:
        self.needs = needs
        return lambda function: SimpleNamespace(remote=lambda job, *shared: (job, function(job, *shared)))

    def wait(self, pending: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(pending))
        return pending[-num_returns:], pending[:-num_returns]

    def get(self, reference: tuple[int, object]) -> object:
        if reference[0] == 1:
            raise LostTaskError("a traceback\nthe node died")
        return reference[1]


@pytest.mark.parametrize(
    ("nodes", "needs", "at_once"),
    [
        ([{"CPU": 8}, {"CPU": 8}], {"num_cpus": 3}, 5),
        ([{"CPU": 64}, {"CPU": 2}], {"num_cpus": 2}, 33),
        ([{"CPU": 16, "GPU": 8}, {"CPU": 4}], {"num_gpus": 1}, 8),
    ],
)
def test_a_task_needs_a_gpu_or_what_every_node_has(
    nodes: list[dict[str, int]], needs: dict[str, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(*nodes)
    monkeypatch.setitem(sys.modules, "ray", ray)
    found = dict(map_on_ray(pow, range(100), 2, cores=3, gpus=True, retries=2))
    failure = found.pop(1)
    assert found == {job: job**2 for job in range(100) if job != 1}
    assert isinstance(failure, WorkerFailure)
    assert "the node died" in failure.reason
    assert ray.needs == {"max_retries": 2, **needs}
    assert ray.most == 2 * at_once
    assert ray.stopped


@pytest.mark.parametrize("outcome", [VideoError("decoding ended"), WorkerFailure("the node died")])
def test_errors_of_tasks(model: CPD, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
    calls: list[tuple[Any, ...]] = []

    def tasks(*arguments: Any, **_: Any) -> list[tuple[int, object]]:
        calls.append(arguments)
        return [(0, outcome)]

    monkeypatch.setattr(features, "map_on_ray", tasks)
    engine = InferenceEngine(model, torch.device("cpu"))
    with pytest.raises((VideoError, RunError), match=r"decoding ended|the node died"):
        list(encode_on_ray(engine, Manifest(manifest.table, Path("m.parquet")), [0]))
    _, _, (_, there, _) = calls[0]
    assert there.path == Path.cwd() / "m.parquet"  # tasks run in other folders
