"""Training learns, says what it did, and goes on bit for bit from wherever it was stopped."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from dwsep import networks
from dwsep.networks._weights import read_model
from dwsep.training import checkpoint
from dwsep.training.config import TrainConfig
from dwsep.training.data import load_fashion_mnist_subset
from dwsep.training.log import read_log
from dwsep.training.loop import CHECKPOINT_FILE, LOG_FILE, MODEL_FILE, TrainingInterrupted, train
from tests.training.toys import make_config, make_data, make_model, make_separable

TAKEN, LEFT = slice(0, 1000), slice(1000, 1500)
TRAIN, TEST = make_data(100), make_data(30, seed=1, name="toy test")


class StopAtStep(nn.Module):
    """A network that has the process interrupted in the middle of one of its training steps."""

    def __init__(self, model: nn.Module, step: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.model, self.step, self.number, self.steps = model, step, number, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.training and self.steps == self.step:
            os.kill(os.getpid(), self.number)
        return self.model(x)


def fit(model, config, **options):
    return train(model, TRAIN, TEST, config, show_progress=False, **options)


def assert_same_weights(a, b):
    assert list(a.state_dict()) == list(b.state_dict())
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_train_learns(memory_format):
    result = fit(make_model(), make_config(epochs=8, memory_format=memory_format, augment=False))
    assert result.final.accuracy > 0.9
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_train_learns_fashion_mnist_with_separable_layers():
    data = load_fashion_mnist_subset("train")
    train_data, test_data = (replace(data, images=data.images[s], labels=data.labels[s]) for s in (TAKEN, LEFT))
    torch.manual_seed(0)
    options = {"width_multiplier": 0.125, "stem": "small"}
    model = networks.create("mobilenet_v1", num_classes=10, in_channels=1, **options)
    result = train(model, train_data, test_data, TrainConfig(epochs=4, batch_size=32), show_progress=False)
    assert result.final.accuracy > 0.5, result.history  # chance is 0.1


def test_train_learns_in_bfloat16():
    model = make_model()
    result = fit(model, make_config(epochs=8, precision="bfloat16", augment=False))
    assert result.final.accuracy > 0.9
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_train_tells_what_every_epoch_did():
    seen = []
    result = fit(make_model(), make_config(), on_epoch=seen.append)
    assert seen == result.history
    assert [record.epoch for record in seen] == [1, 2, 3, 4]
    for record in seen:
        assert record.images_per_second == pytest.approx(6 * 16 / record.seconds)
    assert seen[-1].test_accuracy == result.final.accuracy
    assert seen[-1].test_loss == result.final.loss
    assert int(result.final.confusion.sum()) == 30
    assert seen[0].learning_rate == pytest.approx(0.01)  # the last step of the warm-up
    assert 0 < seen[-1].learning_rate < 0.001


def test_train_depends_on_the_seed_alone():
    models = []
    for seed in (1, 1, 2):
        models.append(make_model())
        torch.rand(len(models))  # what the generator did before must not matter
        fit(models[-1], make_config(seed=seed, epochs=2))
    assert_same_weights(models[0], models[1])
    assert not torch.equal(models[0][0].weight, models[2][0].weight)


def test_train_is_not_influenced_by_the_test_data():
    models = [make_model(), make_model()]
    fit(models[0], make_config(epochs=2))
    train(models[1], TRAIN, make_data(60, seed=5), make_config(epochs=2), show_progress=False)
    assert_same_weights(*models)


def test_train_leaves_checkpoint_model_and_log(tmp_path):
    model = make_separable()
    options = {"width_multiplier": 0.125, "stem": "small"}
    config = make_config(epochs=2, output_dir=tmp_path / "run", network_options=options)
    result = fit(model, config)
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == sorted([CHECKPOINT_FILE, MODEL_FILE, LOG_FILE])
    _, info = read_model(folder / MODEL_FILE)
    assert (info.class_names, info.epochs, info.image_size) == (TRAIN.class_names, 2, (8, 8))
    assert (info.mean, info.std) == (result.normalisation.mean, result.normalisation.std)
    for name in (CHECKPOINT_FILE, MODEL_FILE):
        weights = folder / name
        again = networks.create(
            info.network, num_classes=info.num_classes, in_channels=1, weights=weights, **info.options
        )
        assert_same_weights(again, model)
    header, *epochs = read_log(folder / LOG_FILE)
    assert header["type"] == "header"
    assert header["config"]["seed"] == 1
    assert header["versions"]["torch"] == torch.__version__
    assert [(r["epoch"], r["test_accuracy"]) for r in epochs] == [(h.epoch, h.test_accuracy) for h in result.history]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("make", [make_model, make_separable])
def test_train_resumes_bit_for_bit_after_an_epoch(tmp_path, make, optimizer):
    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise Stop

    straight = make()
    expected = fit(straight, make_config(optimizer=optimizer))
    config = make_config(optimizer=optimizer, output_dir=tmp_path)
    with pytest.raises(Stop):
        fit(make(), config, on_epoch=stop)
    resumed = make(seed=8)  # its weights must all come from the checkpoint
    result = fit(resumed, config, resume=True)
    assert_same_weights(straight, resumed)
    assert [(r.train_loss, r.test_loss, r.test_accuracy) for r in result.history] == [
        (r.train_loss, r.test_loss, r.test_accuracy) for r in expected.history
    ]


@pytest.mark.parametrize("make", [make_model, make_separable])
@pytest.mark.parametrize("step", [1, 6, 10])
def test_train_resumes_bit_for_bit_after_an_interrupt(tmp_path, make, step):
    straight = make()
    expected = fit(straight, make_config())
    config = make_config(output_dir=tmp_path)
    with pytest.raises(TrainingInterrupted, match=r"continue from .*checkpoint\.safetensors") as caught:
        fit(StopAtStep(make(), step), config)
    assert caught.value.signal_number == signal.SIGINT
    state = checkpoint.load(tmp_path / CHECKPOINT_FILE).state
    assert state.epoch * 6 + state.batch == step
    assert not (tmp_path / MODEL_FILE).exists()
    resumed = StopAtStep(make(seed=8), step=0)
    result = fit(resumed, config, resume=True)
    assert_same_weights(straight, resumed.model)
    assert [r.train_loss for r in result.history] == [r.train_loss for r in expected.history]
    kinds = [record["type"] for record in read_log(tmp_path / LOG_FILE)]
    assert kinds.count("epoch") == 4
    assert {"header", "interrupted", "resume"} <= set(kinds)


def test_train_stops_for_sigterm_and_puts_the_handlers_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(TrainingInterrupted) as caught:
        fit(StopAtStep(make_model(), 2, signal.SIGTERM), make_config(output_dir=tmp_path))
    assert caught.value.signal_number == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_train_says_that_nothing_was_saved_without_a_folder():
    with pytest.raises(TrainingInterrupted, match="no checkpoint was written"):
        fit(StopAtStep(make_model(), 2), make_config())


def test_train_resumes_a_finished_run_without_changing_it(tmp_path):
    config = make_config(epochs=2, output_dir=tmp_path)
    model = make_model()
    first = fit(model, config)
    again = make_model(seed=3)
    second = fit(again, config, resume=True)
    assert_same_weights(model, again)
    assert second.history == first.history
    assert second.final.accuracy == first.final.accuracy


def test_train_refuses_to_replace_a_run_unless_told(tmp_path):
    config = make_config(epochs=2, output_dir=tmp_path)
    fit(make_model(), config)
    content = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(FileExistsError, match="holds the checkpoint of an earlier run"):
        fit(make_model(), config)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == content
    fit(make_model(), make_config(epochs=3, output_dir=tmp_path), overwrite=True)
    assert checkpoint.load(tmp_path / CHECKPOINT_FILE).state.epoch == 3
    assert [r["type"] for r in read_log(tmp_path / LOG_FILE)] == ["header", "epoch", "epoch", "epoch"]


def test_train_refuses_to_resume_another_run(tmp_path):
    fit(make_model(), make_config(epochs=2, output_dir=tmp_path))
    with pytest.raises(ValueError, match="made with other settings: epochs: 2, not 3"):
        fit(make_model(), make_config(epochs=3, output_dir=tmp_path), resume=True)
    with pytest.raises(ValueError, match="made with other training data than toy"):
        other = make_data(100, seed=7)
        train(make_model(), other, TEST, make_config(epochs=2, output_dir=tmp_path), resume=True, show_progress=False)
    with pytest.raises(ValueError, match=r"does not fit|optimiser"):
        fit(make_separable(), make_config(epochs=2, output_dir=tmp_path), resume=True)


def test_train_refuses_to_resume_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.safetensors does not exist"):
        fit(make_model(), make_config(output_dir=tmp_path), resume=True)
    with pytest.raises(ValueError, match=r"resume needs config\.output_dir"):
        fit(make_model(), make_config(), resume=True)


def test_train_refuses_data_that_do_not_match():
    with pytest.raises(ValueError, match="training and test data have different classes"):
        train(make_model(), TRAIN, replace(TEST, class_names=("x", "y", "z")), make_config(), show_progress=False)
    with pytest.raises(ValueError, match=r"training images have size \(8, 8\), test images \(4, 8\)"):
        train(make_model(), TRAIN, replace(TEST, images=TEST.images[:, :, :4]), make_config(), show_progress=False)
    with pytest.raises(ValueError, match="batch_size must be at most 100, the images of toy, got 101"):
        fit(make_model(), make_config(batch_size=101))


def test_train_refuses_a_network_of_other_classes():
    model = make_model()
    model[6] = nn.Linear(384, 4)
    with pytest.raises(
        ValueError, match=r"toy has 3 classes, so the network must return \(N, 3\) logits, got \(16, 4\)"
    ):
        fit(model, make_config())


def test_train_stops_when_the_loss_is_not_finite(tmp_path):
    model = make_model()
    with torch.no_grad():
        model[6].weight.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="the training loss became nan in epoch 1, step 1, at learning rate"):
        fit(model, make_config(output_dir=tmp_path))
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_train_shows_progress_on_standard_error(capsys):
    train(make_model(), TRAIN, TEST, make_config(epochs=2))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 1/2  train loss" in captured.err
    assert "images/s" in captured.err
    fit(make_model(), make_config(epochs=2))
    assert capsys.readouterr().err == ""
