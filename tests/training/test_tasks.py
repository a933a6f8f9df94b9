"""Every task trains, says what it did, and goes on bit for bit with all that a run can keep."""

from __future__ import annotations

import pytest
import torch

from dwsep import networks
from dwsep.networks._weights import read_model
from dwsep.training import checkpoint
from dwsep.training.loop import CHECKPOINT_FILE, MODEL_FILE, train
from dwsep.training.setup import build_model, complete_options
from tests.training.toys import TOY_OPTIONS, TOYS, make_config, make_data, make_model, make_task_config

TASKS = sorted(TOYS)


def fit(task, config, count=48, **options):
    train_data, test_data = TOYS[task](count), TOYS[task](24, seed=1)
    config = complete_options(config, train_data)
    model = build_model(config, train_data)
    return model, train(model, train_data, test_data, config, show_progress=False, **options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(("task", "epochs", "rate"), [("segment", 6, 0.01), ("text", 15, 0.01), ("series", 10, 0.01)])
def test_every_task_learns(task, epochs, rate):
    model, result = fit(task, make_task_config(task, epochs=epochs, learning_rate=rate, augment=False))
    assert result.final.accuracy > 0.9, result.history
    assert result.history[-1].train_loss < result.history[0].train_loss
    metrics = result.history[-1].metrics
    if task == "segment":
        assert metrics["mean_iou"] == pytest.approx(result.final.mean_iou)
        assert set(metrics["class_iou"]) == {"dark", "bright"}
        assert int(result.final.confusion.sum()) == 24 * 30 * 32  # without what is left out
    else:
        assert metrics["macro_f1"] == pytest.approx(result.final.macro_f1)
    assert "forward" in vars(next(m for m in model.modules() if "forward" in vars(m)))  # accelerated


@pytest.mark.parametrize("task", TASKS)
def test_every_task_resumes_bit_for_bit_with_everything_on(task, tmp_path):
    if task == "segment":
        pytest.importorskip("torchvision", reason="augmenting images with masks needs torchvision")

    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise Stop

    changes = {"ema_decay": 0.9, "early_stopping": 3, "clip_norm": 1.0, "accumulate": 2, "class_weights": "balanced"}
    straight, expected = fit(task, make_task_config(task, **changes), count=32)
    config = make_task_config(task, output_dir=tmp_path, **changes)
    with pytest.raises(Stop):
        fit(task, config, count=32, on_epoch=stop)
    resumed, result = fit(task, config, count=32, resume=True)
    assert same(straight, resumed)
    assert [r.train_loss for r in result.history] == [r.train_loss for r in expected.history]
    assert [r.score for r in result.history] == [r.score for r in expected.history]


@pytest.mark.parametrize("task", TASKS)
def test_model_files_hold_what_using_the_network_takes(task, tmp_path):
    model, result = fit(task, make_task_config(task, epochs=1, output_dir=tmp_path, augment=False), count=16)
    _, info = read_model(tmp_path / MODEL_FILE)
    assert (info.task, info.class_names) == (task, TOYS[task](2).class_names)
    assert (info.mean, info.std) == (result.normalisation.mean, result.normalisation.std)
    assert same(networks.load_model(tmp_path / MODEL_FILE), model)
    saved = checkpoint.load(tmp_path / CHECKPOINT_FILE).config
    assert saved.task == task
    assert saved.network_options.items() >= TOY_OPTIONS[task].items()


def test_the_average_is_what_is_evaluated_and_saved(tmp_path):
    data = make_data(96), make_data(30, seed=1)
    raw, averaged = make_model(), make_model()
    train(raw, *data, make_config(), show_progress=False)
    result = train(averaged, *data, make_config(ema_decay=0.8, output_dir=tmp_path), show_progress=False)
    assert not same(raw, averaged)
    saved = checkpoint.load(tmp_path / CHECKPOINT_FILE)
    weights, average = saved.copy_of("model"), saved.copy_of("average")
    assert all(torch.equal(value, weights[name]) for name, value in raw.state_dict().items())  # training is the same
    assert all(torch.equal(value, average[name]) for name, value in averaged.state_dict().items())
    assert result.final.accuracy == result.history[-1].test_accuracy


def test_accumulating_gives_the_gradient_of_the_whole_batch():
    """Without norms and dropout, in which a part differs from the whole."""
    data = make_data(64), make_data(30, seed=1)
    models = []
    for parts in (1, 4):
        torch.manual_seed(0)
        models.append(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
        train(models[-1], *data, make_config(accumulate=parts, optimizer="sgd", epochs=2), show_progress=False)
    torch.testing.assert_close(models[0][1].weight, models[1][1].weight, rtol=1e-4, atol=1e-6)


def test_early_stopping_ends_with_the_best_weights(tmp_path):
    data = make_data(96), make_data(30, seed=1)
    config = make_config(epochs=40, early_stopping=2, learning_rate=0.02, output_dir=tmp_path)
    model = make_model()
    result = train(model, *data, config, show_progress=False)
    scores = [record.score for record in result.history]
    assert len(scores) < 40
    best = scores.index(max(scores))
    assert len(scores) == best + 3
    assert result.final.accuracy == scores[best]
    again = make_model(seed=5)
    assert train(again, *data, config, show_progress=False, resume=True).final.accuracy == scores[best]
    assert same(model, again)


def test_clipping_limits_the_step():
    data = make_data(48), make_data(30, seed=1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    before = model[1].weight.detach().clone()
    config = make_config(clip_norm=1e-6, optimizer="sgd", epochs=1, warmup_epochs=0.5, weight_decay=0.0)
    train(model, *data, config, show_progress=False)
    assert 0 < (model[1].weight - before).norm() < 3 * 0.01 * 1e-6 * 3


def test_a_step_without_any_counted_pixel_changes_no_weight_by_nan():
    train_data = TOYS["segment"](16)
    train_data.masks[:8] = 255
    config = complete_options(make_task_config("segment", epochs=1, augment=False, batch_size=4), train_data)
    result = train(build_model(config, train_data), train_data, TOYS["segment"](8), config, show_progress=False)
    assert result.final.loss == result.final.loss


def test_no_accelerate_gives_the_same_within_rounding():
    losses = []
    for accelerate in (True, False):
        _, result = fit("series", make_task_config("series", accelerate=accelerate, augment=False, epochs=2), count=16)
        losses.append(result.history[0].train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
