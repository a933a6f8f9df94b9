"""Several processes: one network, one evaluation, and going on after a kill, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import torch

from dwsep.networks._weights import read_model
from dwsep.training import checkpoint, distributed
from dwsep.training.distributed import Processes
from dwsep.training.evaluation import evaluate
from dwsep.training.log import read_log
from dwsep.training.loop import CHECKPOINT_FILE, LOG_FILE, MODEL_FILE, train
from dwsep.training.setup import build_model
from tests.training import processes
from tests.training.toys import TOYS, make_task_config

EPOCHS, STEPS = 4, 4


def config_of(folder, **changes):
    values = {"epochs": EPOCHS, "ema_decay": 0.9, "checkpoint_seconds": 1e-6, "output_dir": folder, **changes}
    return make_task_config("series", **values)


def fit(folder, resume=False, kill_at=None, changes=None):
    """Trains in one of the processes; returns what it found, and the seconds that it took."""
    if kill_at is not None:
        _die_in_file(*kill_at)
    data = TOYS["series"](8 * STEPS), TOYS["series"](21, seed=1)
    config = config_of(folder, **(changes or {}))
    together = Processes.join()
    try:
        model = build_model(config, data[0])
        begun = time.monotonic()
        result = train(model, *data, config, resume=resume, show_progress=False, processes=together)
    finally:
        together.leave()
    found = result.history[-1].train_loss, result.final.loss, result.final.accuracy
    return found, time.monotonic() - begun


def _die_in_file(name, place, count):
    """Have the process kill itself as it saves the file: with some of it written, with all of it, or renamed."""
    seen = [0]
    real = getattr(os, place)

    def at(*arguments, **options):
        # A file's name is all that tells one from the other, and from the log.
        named = arguments[1] if place == "replace" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        seen[0] += name in str(named)
        if name in str(named) and seen[0] == count:
            if place == "fdopen":
                os.write(arguments[0], b"some of a file")
            if place == "replace":
                real(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(os, place, at)


def run(folder, size, *arguments, **options):
    started = processes.start(fit, folder, *arguments, folder=folder.with_name(f"{folder.name}-out"), size=size)
    return processes.results(started, folder.with_name(f"{folder.name}-out"), **options)


def weights(folder):
    return read_model(folder / MODEL_FILE)[0]


def assert_same(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The uninterrupted run of so many processes: its weights, what each of them found, and its seconds."""
    made = {}

    def of(size):
        if size not in made:
            folder = tmp_path_factory.mktemp("straight") / "run"
            found = run(folder, size)
            made[size] = weights(folder), [own for own, _ in found], found[0][1]
        return made[size]

    return of


def check_goes_on(folder, size, straight):
    """What is left of a run that was killed is enough to end as the run that was not."""
    resume = (folder / CHECKPOINT_FILE).exists()
    found = run(folder, size, resume)
    expected, theirs, _ = straight(size)
    assert_same(weights(folder), expected)
    assert [own for own, _ in found] == theirs
    assert sorted(path.name for path in folder.iterdir()) == sorted([CHECKPOINT_FILE, MODEL_FILE, LOG_FILE])
    epochs = [record["epoch"] for record in read_log(folder / LOG_FILE) if record["type"] == "epoch"]
    assert epochs == list(range(1, EPOCHS + 1))


def test_processes_find_the_same_and_train_the_same_network(straight):
    _, found, _ = straight(2)
    assert found[0] == found[1]
    trained, single = straight(2)[0], straight(1)[0]
    # Batch norms see half a batch each: another network than one process trains, and not by much.
    assert any(not torch.equal(trained[name], single[name]) for name in trained)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_killed_at_a_random_moment_goes_on_bit_for_bit(size, straight, tmp_path, request):
    moments = 20 if request.config.getoption("--sweep") else 1
    _, _, seconds = straight(size)
    generator = random.Random(size)
    stages = []
    for moment in range(moments):
        folder = tmp_path / str(moment) / "run"
        started = processes.start(fit, folder, folder=tmp_path / "out", size=size)
        deadline = time.monotonic() + 120
        while not (folder / LOG_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(seconds * generator.random())
        processes.kill(started)
        if (folder / MODEL_FILE).exists():
            stages.append("after the end")
        elif (folder / CHECKPOINT_FILE).exists():
            state = checkpoint.load(folder / CHECKPOINT_FILE).state
            part = " (in a checkpoint)" if list(folder.glob(f".{CHECKPOINT_FILE}.*.part")) else ""
            stages.append(f"step {state.epoch * STEPS + state.batch}{part}")
        else:
            stages.append("before the first checkpoint")
        check_goes_on(folder, size, straight)
    print(f"{size} processes were killed at: {', '.join(stages)}")


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("name", "place", "count"),
    [
        (CHECKPOINT_FILE, "fdopen", 7),
        (CHECKPOINT_FILE, "fsync", 11),
        (CHECKPOINT_FILE, "replace", 9),
        (MODEL_FILE, "fdopen", 1),
        (MODEL_FILE, "fsync", 1),
    ],
)
def test_a_run_killed_as_it_saves_goes_on_bit_for_bit(name, place, count, size, straight, tmp_path):
    folder = tmp_path / "run"
    started = processes.start(fit, folder, False, (name, place, count), folder=tmp_path / "out", size=size)
    started[0].join(120)
    assert started[0].exitcode == -signal.SIGKILL
    left = list(folder.glob(f".{name}.*.part"))
    assert bool(left) == (place != "replace")
    for other in started[1:]:
        other.join(60)
        if name == CHECKPOINT_FILE:
            assert other.exitcode not in (0, None), "a process without the first one must end with an error"
    assert not (folder / MODEL_FILE).exists()
    check_goes_on(folder, size, straight)


def test_three_processes_go_on_bit_for_bit(straight, tmp_path):
    """Sums of three depend on their order, which must be the same after going on."""
    changes = {"batch_size": 6}
    run(tmp_path / "a" / "run", 3, False, None, changes)
    folder = tmp_path / "b" / "run"
    started = processes.start(
        fit, folder, False, (CHECKPOINT_FILE, "replace", 3), changes, folder=tmp_path / "out", size=3
    )
    started[0].join(120)
    processes.kill(started)
    run(folder, 3, True, None, changes)
    assert_same(weights(folder), weights(tmp_path / "a" / "run"))


def evaluate_share():
    data = TOYS["series"](43, seed=2)
    together = Processes.join()
    try:
        return _evaluated(data, together)
    finally:
        together.leave()


def _evaluated(data, together):
    model = build_model(make_task_config("series"), data)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.3)
    result = evaluate(model, data, normalisation=data.statistics(), batch_size=4, processes=together)
    return result.accuracy, result.loss, result.confusion.tolist()


def test_evaluation_in_parts_equals_that_of_one_process(tmp_path):
    """Eleven batches among two processes, the last one smaller: to the last bit."""
    expected = _evaluated(TOYS["series"](43, seed=2), Processes())
    started = processes.start(evaluate_share, folder=tmp_path, size=2)
    assert processes.results(started, tmp_path) == [expected, expected]


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes.join()
    assert (alone.rank, alone.size, alone.is_first) == (0, 1, True)
    model = torch.nn.Linear(2, 2)
    assert alone.wrap(model) is model
    assert float(alone.sum(torch.tensor(3.0))) == 3
    alone.share_buffers(model)
    alone.wait()
    alone.leave()
    assert not distributed.dist.is_initialized()


def test_a_batch_must_be_divisible(tmp_path):
    data = TOYS["series"](16)
    config = make_task_config("series", batch_size=9)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 processes, got 9"):
        train(build_model(config, data), data, data, config, show_progress=False, processes=Processes(0, 2))
