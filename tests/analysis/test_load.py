import pytest

from dwsep.analysis import _load


@pytest.fixture
def clock(monkeypatch):
    now = {"wall": 100.0, "own": 5.0}
    monkeypatch.setattr("time.monotonic", lambda: now["wall"])
    monkeypatch.setattr("time.process_time", lambda: now["own"])
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    return now


def test_other_processes_leaves_out_this_one_and_idle_time(tmp_path, clock):
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 10 500 7000 300 5 5 20 400 0\ncpu0 1 1 1 1\n")
    others = _load.OtherProcesses(stat)
    clock["wall"] += 10
    clock["own"] += 12
    # 1,500 ticks busy (of them 300 stolen), 2,000 ticks idle or waiting; the guest figure is part of the first
    stat.write_text("cpu  1900 10 800 8500 800 5 5 320 900 0\ncpu0 1 1 1 1\n")
    assert others.cores() == pytest.approx((15 - 12) / 10)


@pytest.mark.parametrize("text", [None, "", "intr 1 2 3 4 5 6 7 8\n", "cpu  a b c d e f g h\n", "cpu  1 2\n"])
def test_other_processes_does_not_guess(tmp_path, clock, text):
    stat = tmp_path / "stat"
    if text is not None:
        stat.write_text(text)
    others = _load.OtherProcesses(stat)
    clock["wall"] += 1
    assert others.cores() is None


@pytest.mark.parametrize(
    ("other_cores", "threads", "cores"), [(0.2, 2, 2), (20.0, 2, 64), (None, 2, 2), (3.0, 2, None)]
)
def test_describe_disturbance_is_silent_where_cores_were_free(other_cores, threads, cores):
    assert _load.describe_disturbance(other_cores, threads, cores) is None


def test_describe_disturbance_tells_what_others_took():
    assert "kept 1.3 of 2 cores busy" in str(_load.describe_disturbance(1.31, 2, 2))
