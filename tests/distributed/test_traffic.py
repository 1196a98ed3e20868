"""The communication of a step equals the formula and is independent of the number of pairs."""

import json
from pathlib import Path

import pytest
from benchmarks import counted
from benchmarks.counted import PAIRS
from benchmarks.formula import Traffic, bank_memory, bank_traffic

from crosspair.config import ObjectiveConfig
from tests.distributed.test_processes import run

SCRIPT = Path(counted.__file__)
SETTINGS = [
    {}, {"bank_precision": "bf16"}, {"noise": "pair"}, {"name": "self_instance"},
    {"name": "self_instance", "noise": "pair"},
]  # fmt: skip
BATCH, DIMENSIONS, SAMPLES = 8, 16, 64


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list:
    out = tmp_path_factory.mktemp("measured") / "bytes.json"
    run(SCRIPT, 2, str(out), json.dumps(SETTINGS), *map(str, (BATCH, DIMENSIONS, SAMPLES)))
    return json.loads(out.read_text())


def test_bytes_equal_the_formula(measured) -> None:
    assert [each[:2] for each in measured] == [[s, pairs] for s in SETTINGS for pairs in PAIRS]
    for settings, _, found in measured:
        config = ObjectiveConfig(noise_samples=SAMPLES, **settings)
        expected = bank_traffic(config, BATCH, DIMENSIONS, 2)
        update = expected.pop("update")
        loss = sum(expected.values(), Traffic())
        for name, of_formula in (("loss", loss), ("update", update)):
            given = {"all_reduce": of_formula.reduced, "all_gather": of_formula.gathered}
            assert found[name] == given, settings


def test_bytes_do_not_depend_on_the_number_of_pairs(measured) -> None:
    for few, many in zip(measured[::2], measured[1::2], strict=True):
        assert (few[1], many[1]) == PAIRS
        assert few[2] == many[2]
    assert len({str(each[2]["loss"]) for each in measured}) == len(SETTINGS)


def test_numbers_by_hand() -> None:
    # 256 pairs on 8 processes, D = 256, m = 4096: an entry is 2 · 256 · 4 bytes, counts are 64.
    assert bank_traffic(ObjectiveConfig(), 256, 256, 8) == {
        "positives": Traffic(64 + 256 * 2048 + 64, 32 * 8),
        "noise": Traffic(4096 * 2048),
        "normaliser": Traffic(64 + 64, 2 * 4),
        "update": Traffic(2 * 64, 32 * (8 + 2048)),
    }
    assert bank_traffic(ObjectiveConfig(bank_precision="bf16"), 256, 256, 8)["noise"] == Traffic(4096 * 1024)
    # With noise of each pair 2 · 4096 similarities and 2 · 256 values of a pair go either way.
    assert bank_traffic(ObjectiveConfig(noise="pair"), 256, 256, 8)["noise"] == Traffic(
        10 * 64 + 256 * 34816, 32 * (8 * 4096 + 34816)
    )
    assert bank_memory(240_000, 256, 8) == 61_440_000
    assert bank_memory(10, 3, 4) == 2 * 3 * 3 * 4  # the first process has rows 0, 4 and 8
    assert bank_memory(10, 3, 4, "bf16") == 2 * 3 * 3 * 2
    assert Traffic(800, 100).sent(4) == 2 * 3 * 200 + 3 * 100
    assert Traffic(800, 100).sent(1) == 0
