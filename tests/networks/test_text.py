"""Networks for text: what is behind a text's end is not there, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch

from dwsep import networks
from dwsep.accelerate import accelerate_

NAMES = networks.names("text")


def make(name, **options):
    torch.manual_seed(3)
    model = networks.create(name, num_classes=2, vocabulary_size=50, width_multiplier=0.25, **options)
    model(torch.randint(0, 50, (16, 20)))  # statistics that are not the initial ones
    return model.eval()


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name, dense, accelerated):
    model = make(name, dense=dense)
    if accelerated:
        accelerate_(model)
    texts = [torch.randint(1, 50, (length,)) for length in (3, 17, 9)]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    wider = torch.nn.functional.pad(padded, (0, 11))
    with torch.no_grad():
        alone = torch.cat([model(text[None]) for text in texts])
        assert alone.std(0).min() > 0
        torch.testing.assert_close(model(padded), alone, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model(wider), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_accelerated_blocks_are_fused_and_train_alike(name):
    tokens, gradients = torch.randint(1, 50, (16, 20)), []
    for accelerated in (False, True):
        model = make(name, dropout=0.0)
        if accelerated:
            report = accelerate_(model)
            pointwise = [line for line in report.lines if line.what.startswith("1x1, batch norm")]
            assert len(pointwise) == {"text_light": 9, "text_separable": 3}[name], report
            assert all(line.status == "fused" for line in pointwise)
        model.train()(tokens).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, fused in zip(*gradients, strict=True):
        assert (fused - plain).norm() <= 1e-4 * plain.norm() + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_words_matters(name):
    model = make(name)
    with torch.no_grad():
        assert not torch.allclose(model(torch.tensor([[5, 6, 7, 8]])), model(torch.tensor([[8, 7, 6, 5]])))


@pytest.mark.parametrize("name", NAMES)
def test_a_text_without_words_is_finite(name):
    with torch.no_grad():
        assert make(name)(torch.tensor([[0, 0, 0], [5, 0, 0]])).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_stays_zero_under_training(name):
    model = make(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    model(torch.tensor([[5, 6, 0], [7, 0, 0]])).sum().backward()
    optimizer.step()
    assert not model.embedding.weight[0].any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("text_separable", {"vocabulary_size": 0}, "vocabulary_size must be a positive integer, got 0"),
        ("text_separable", {"dilations": "12"}, "dilations must be positive integers, at least one, got '12'"),
        ("text_light", {"kernel_sizes": (4,)}, r"kernel_sizes must be odd numbers, at least one, got \(4,\)"),
        ("text_light", {"heads": 7}, "heads must divide in_channels, got 7 and 128"),
    ],
)
def test_create_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        networks.create(name, num_classes=2, **{"vocabulary_size": 50, **options})
