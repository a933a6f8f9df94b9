import json

import pytest
import torch

from dwsep.bench import measuring
from dwsep.bench.measuring import QUICK, Settings, compare
from dwsep.bench.peers import PEERS, Built, CannotRun, Peer
from dwsep.bench.registry import Task
from dwsep.ops import native_status
from tests.bench.toys import FAST, TINY

OTHERS = ("nchw", "channels_last")


def with_peers(monkeypatch, **builders):
    """Settings of two real peers and further ones, which the registry then has."""
    monkeypatch.setattr(measuring, "PEERS", {**PEERS, **{name: Peer(name, build) for name, build in builders.items()}})
    return Settings(**{**vars(FAST), "peers": (*OTHERS, *builders)})


def test_compare_times_every_peer():
    record = compare(Task(TINY, "inner_relu", training=True), FAST)
    assert Task.from_json(record["task"]) == Task(TINY, "inner_relu", training=True)
    timed = FAST.peers if native_status().loaded else OTHERS
    for name in timed:
        peer = record["peers"][name]
        assert peer["status"] == "ok"
        assert 0 < peer["lower_quartile"] <= peer["median"] <= peer["upper_quartile"]
        assert 0 <= peer["error"] < 1
        assert peer["rounds"] == 2
    json.dumps(record)


def test_compare_gives_no_time_to_a_wrong_peer(monkeypatch):
    def build(problem):
        built = PEERS["nchw"].build(problem)
        return Built(built.call, lambda result: [result * 1.001])

    record = compare(Task(TINY), with_peers(monkeypatch, wrong=build))
    assert record["peers"]["wrong"]["status"] == "wrong"
    assert "elements of y are wrong" in record["peers"]["wrong"]["reason"]
    assert "median" not in record["peers"]["wrong"]
    assert all(record["peers"][name]["status"] == "ok" for name in OTHERS)


def test_compare_finds_a_wrong_gradient(monkeypatch):
    def build(problem):
        built = PEERS["nchw"].build(problem)
        return Built(built.call, lambda result: [*result[:-1], result[-1] + 1e-3])

    record = compare(Task(TINY, training=True), with_peers(monkeypatch, wrong=build))
    assert "of grad pointwise weight are wrong" in record["peers"]["wrong"]["reason"]


def test_compare_goes_on_where_a_peer_cannot_run_or_fails(monkeypatch):
    def cannot(problem):
        raise CannotRun("no such processor")

    def broken(problem):
        raise KeyError("no\nsuch entry")

    def fails_in_the_call(problem):
        def call():
            raise RuntimeError("out of registers\nat line 3")

        return Built(call)

    record = compare(Task(TINY), with_peers(monkeypatch, cannot=cannot, broken=broken, late=fails_in_the_call))
    peers = record["peers"]
    assert peers["cannot"] == {"status": "unavailable", "reason": "no such processor"}
    assert peers["broken"]["status"] == "failed"
    assert peers["late"] == {"status": "failed", "reason": "RuntimeError: out of registers"}
    assert all(peers[name]["status"] == "ok" for name in OTHERS)


def test_compare_leaves_out_what_is_excluded_and_tells_its_phases():
    phases = []
    record = compare(Task(TINY), FAST, excluded={"dwsep": "died"}, on_phase=lambda *phase: phases.append(phase))
    assert record["peers"]["dwsep"] == {"status": "failed", "reason": "died"}
    verified = [("verifying", name) for name in OTHERS]
    assert phases == [("computing the truth", None), *verified, ("timing", None)]


@pytest.mark.parametrize("training", [False, True])
def test_compare_leaves_the_grad_mode_alone(training):
    before = torch.is_grad_enabled()
    compare(Task(TINY, training=training), FAST)
    assert torch.is_grad_enabled() == before


@pytest.mark.parametrize("settings", [Settings(), FAST, Settings(threads=3, **QUICK)])
def test_settings_survive_json(settings):
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
