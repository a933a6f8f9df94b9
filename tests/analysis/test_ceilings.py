import json

import pytest
import torch

from dwsep.analysis import ceilings as module
from dwsep.analysis.ceilings import Ceilings, measure_ceilings
from dwsep.ops import native_status
from tests.bench.toys import CEILINGS


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "_WORKING_SETS", (2**14, 2**16))


def test_measure_ceilings_measures_all_of_them():
    measured = measure_ceilings("bfloat16", seconds=0.001)
    assert set(measured.matmul) == {"float32", "bfloat16"}
    assert set(measured.copy) == {2**14, 2**16}
    assert min(*measured.matmul.values(), *measured.copy.values()) > 0
    assert measured.isa == native_status().isa
    if native_status().loaded:
        assert measured.fma_peak is not None
        assert measured.fma_peak > 1e8


def test_a_product_is_small_where_large_ones_take_long(monkeypatch):
    sizes = []

    def slow(call, _seconds):
        sizes.append(len(call.args[0]))
        return len(call.args[0]) ** 3 * 1e-9

    monkeypatch.setattr(module, "_best", slow)
    assert module._matmul(torch.float32, 0.3) == pytest.approx(2e9)
    assert sizes == [256, 512]


def test_peak_is_the_best_that_was_seen():
    assert (CEILINGS.peak("float32"), CEILINGS.peak("bfloat16")) == (4e11, 6e11)
    without_library = Ceilings(None, CEILINGS.matmul, CEILINGS.copy, None)
    assert without_library.peak("float32") == 3e11


def test_bandwidth_is_that_of_the_next_smaller_copy_or_of_a_larger_and_faster_one():
    ceilings = Ceilings(None, {}, {100: 9.0, 200: 3.0, 400: 5.0}, None)
    assert [ceilings.bandwidth(size) for size in (10, 100, 199, 200, 399, 400, 9999)] == [9, 9, 9, 5, 5, 5, 5]
    assert ceilings.memory_bandwidth == 5


def test_better_of_takes_the_higher_figures():
    disturbed = Ceilings(None, {"float32": 1.0}, {2**20: 9e11, 2**24: 1.0}, "avx2")
    expected = Ceilings(4e11, {"float32": 3e11}, {2**20: 9e11, 2**24: 5e10}, "avx2")
    assert disturbed.better_of(CEILINGS) == expected
    assert disturbed.better_of(disturbed) == disturbed


def test_ceilings_survive_json():
    assert Ceilings.from_json(json.loads(json.dumps(CEILINGS.to_json()))) == CEILINGS


def test_ceilings_do_without_a_library_that_is_older_than_its_peak(monkeypatch):
    class Old:
        def __getattr__(self, name):
            raise AttributeError(name)

    if not native_status().loaded:
        pytest.skip("the native library is not loaded")
    monkeypatch.setattr(module.ctypes, "CDLL", lambda path: Old())
    assert measure_ceilings("float32", seconds=0.001).fma_peak is None
