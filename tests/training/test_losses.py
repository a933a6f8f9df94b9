"""The loss: weights of classes, what is left out, and a teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dwsep.training.distillation import distillation_loss, load_teacher
from dwsep.training.loop import MODEL_FILE, train
from dwsep.training.losses import Loss, class_weights
from dwsep.training.setup import build_model, complete_options
from tests.training.toys import TOYS, make_config, make_data, make_task_config

CPU = torch.device("cpu")


def test_balanced_weights_make_classes_count_alike():
    data = make_data(9)
    data.labels[:] = torch.tensor([0] * 6 + [1] * 3)
    weights = class_weights(make_config(class_weights="balanced"), data)
    assert weights[:2].tolist() == pytest.approx([9 / 18, 9 / 9])
    with pytest.raises(ValueError, match="class_weights must have one weight per class, got 2 for 3"):
        class_weights(make_config(class_weights=(1.0, 2.0)), data)
    assert class_weights(make_config(), data) is None


def test_the_loss_leaves_out_what_does_not_count():
    data = TOYS["segment"](4)
    loss = Loss(make_task_config("segment"), data, CPU, None)
    logits, targets = torch.randn(1, 2, 2, 2, requires_grad=True), torch.tensor([[[0, 255], [1, 255]]])
    expected = F.cross_entropy(logits[:, :, :, 0], targets[:, :, 0])
    torch.testing.assert_close(loss(logits, targets, logits), expected)
    nothing = loss(logits, torch.full((1, 2, 2), 255), logits)
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def test_distillation_loss_is_the_divergence_of_softened_predictions():
    student, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0).double(), expected, rtol=1e-5, atol=1e-7)
    keep = torch.tensor([True, False, False, False, False])
    one = distillation_loss(student[:1], teacher[:1], 2.0)
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0, keep), one)
    assert distillation_loss(teacher, teacher, 3.0) == 0


def test_a_network_learns_from_its_teacher(tmp_path):
    data = TOYS["text"](48), TOYS["text"](24, seed=1)
    options = {"augment": False, "epochs": 15, "learning_rate": 0.01}
    config = complete_options(make_task_config("text", output_dir=tmp_path, **options), data[0])
    assert train(build_model(config, data[0]), *data, config, show_progress=False).final.accuracy > 0.9
    data[0].labels[:] = torch.randint(0, 2, (48,))  # nothing to learn from the labels
    changes = {"teacher": tmp_path / MODEL_FILE, "distill_weight": 1.0, "output_dir": None, "seed": 2}
    config = config.model_copy(update=changes)
    assert train(build_model(config, data[0]), *data, config, show_progress=False).final.accuracy > 0.9


def test_a_teacher_of_other_data_is_refused(tmp_path):
    data = make_data(32), make_data(30, seed=1)
    options = {"network_options": {"width_multiplier": 0.125, "stem": "small"}}
    config = make_config(output_dir=tmp_path, epochs=2, **options)
    train(build_model(config, data[0]), *data, config, show_progress=False)
    other = make_data(32, seed=9)
    with pytest.raises(ValueError, match="was trained with other mean"):
        config = make_config(teacher=tmp_path / MODEL_FILE, epochs=2, **options)
        train(build_model(config, other), other, data[1], config, show_progress=False)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_teacher(tmp_path / "nowhere", None)
