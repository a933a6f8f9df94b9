"""Small networks of the shapes that libraries build, and what tests ask of them."""

from __future__ import annotations

import copy

import torch
from torch import nn

import dwsep
from dwsep.bench.peers._networks import overruns


def conv_norm(inputs, outputs, kernel=1, stride=1, groups=1, activation=None, **options):
    """Convolution, batch norm, activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=options.pop("bias", False)),
        nn.BatchNorm2d(outputs, **options),
    ]
    return layers + ([activation] if activation is not None else [])


class Gate(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """An inverted residual: expand, depthwise, squeeze-and-excite, project, sum."""

    def __init__(self, inputs, outputs, stride=1, activation=nn.ReLU6, gate=False, **options):
        super().__init__()
        wide = 2 * inputs
        self.expand = nn.Sequential(*conv_norm(inputs, wide, activation=activation(), **options))
        self.depthwise = nn.Sequential(*conv_norm(wide, wide, 3, stride, wide, activation(), **options))
        self.gate = Gate(wide) if gate else nn.Identity()
        self.project = nn.Sequential(*conv_norm(wide, outputs, **options))
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.skips else y


class Net(nn.Module):
    """Stem, two blocks, head, classifier."""

    def __init__(self, activation=nn.ReLU6, gate=False, dropout=0.0, **options):
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8, 3, 2, activation=activation(), **options))
        self.blocks = nn.Sequential(
            Block(8, 8, 1, activation, gate, **options), Block(8, 16, 2, activation, gate, **options)
        )
        self.head = nn.Sequential(*conv_norm(16, 24, activation=activation(), **options))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(24, 5)

    def forward(self, x):
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(x.mean((2, 3))))


def randomise(model):
    """Statistics and affine parameters as a trained network has them, none of them trivial."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                if module.running_mean is not None:
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2)
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.2)
    return model


def smooth(model):
    """Activations without kinks: where a float32 and a float64 step fall on two sides of one, gradients differ."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) in (nn.ReLU, nn.ReLU6, nn.Hardswish):
                setattr(module, name, nn.SiLU())
            elif "Hardsigmoid" in type(child).__name__ or "HardSigmoid" in type(child).__name__:
                setattr(module, name, nn.Sigmoid())
    return model


def distance(a, b):
    """Relative distance in norm, over all tensors of a nested result."""
    leaves_a, leaves_b = torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b)
    assert len(leaves_a) == len(leaves_b)
    return max(
        ((x.double() - y.double()).norm() / (y.double().norm() + 1e-30)).item() for x, y in zip(leaves_a, leaves_b)
    )


def program_runs(model):
    """Whether the model's own forward has run a plan of ours."""
    forward = model.__dict__.get("forward")
    return forward is not None and any(reading.plan is not None for reading in forward.readings)


def step(model, x, call=None):
    """Output, running statistics and gradients of one training step."""
    torch.manual_seed(1)
    model.zero_grad()
    out = (call or model)(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weight).sum().backward() if out.requires_grad else None
    result = {"output": out.detach()}
    result |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    result |= {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if x.requires_grad:
        result["x.grad"], x.grad = x.grad.clone(), None
    return result


def is_zero_but_for_rounding(expected, total):
    """Whether a float64 gradient is, beside the ``total`` of all: that of a bias before a batch norm is, for one.

    It has no relative distance, as what float32 makes of it is chance.
    """
    return expected.norm().item() < 1e-9 * total


_drawing_again = [False]


def draws_again():
    """Whether :func:`check_step` runs a step once more, on a copy of the model that the test knows nothing of."""
    return _drawing_again[0]


def check_step(model, x, call=lambda model: model, both_layouts=False):
    """The accelerated step is no further from float64 than twice the distance of eager's, plus 1e-6.

    Rounding is chance: the norms of a few numbers' errors differ by more than twice now and then, whoever's are
    compared. What lies beyond the bound, by no more than five times, is therefore measured on four more inputs, and the
    root mean square of all five distances must keep it.

    ``both_layouts`` is for deep networks: the worse of eager's two counts. Among hundreds of tensors some fall
    unluckily (eager's own layouts: up to 4.2 times the bound of one another, 1 in 100 beyond it): two tensors in 100
    may be up to five times the bound away.
    """
    drawn = [_distances(model, x, call, both_layouts)]
    beyond = _beyond(drawn)
    assert all(share <= 5 for share, _ in beyond), beyond
    if both_layouts:
        assert len(beyond) <= max(2, len(drawn[0]) // 50), beyond
        return
    if beyond:
        try:
            _drawing_again[0] = True
            for _ in range(4):
                other = torch.randn_like(x).requires_grad_(x.requires_grad)
                drawn.append(_distances(copy.deepcopy(model), other, call, both_layouts))
        finally:
            _drawing_again[0] = False
        beyond = _beyond(drawn)
    assert not beyond, beyond


def _beyond(drawn):
    """Of distances by name, one dictionary a draw: (share of the bound, name) where beyond, the furthest first."""
    found = []
    for name in drawn[0]:
        mine, eager = ((sum(draw[name][whose] ** 2 for draw in drawn) / len(drawn)) ** 0.5 for whose in range(2))
        found.append((mine / (2 * eager + 1e-6), name))
    return sorted((share, name) for share, name in found if not share <= 1)[::-1]  # NaN is beyond, too


def _distances(model, x, call, both_layouts):
    """By name, how far the accelerated step's tensors are from float64, and eager's."""
    plain = copy.deepcopy(model)
    dwsep.revert_(plain)
    exact, before = copy.deepcopy(plain).double(), copy.deepcopy(plain.state_dict())
    wide = x.detach().double().requires_grad_(x.requires_grad)
    ours, theirs, truth = step(model, x, call(model)), step(plain, x, call(plain)), step(exact, wide, call(exact))
    others = [theirs]
    if both_layouts:
        unsafe = any(overruns(module) for module in plain.modules())
        layout = torch.contiguous_format if unsafe else torch.channels_last
        plain = copy.deepcopy(exact).float().to(memory_format=layout)
        plain.load_state_dict(before)
        torch._C._set_mkldnn_enabled(not unsafe)  # other sums, if not another layout
        try:
            laid_out = x.detach().contiguous(memory_format=layout).requires_grad_(x.requires_grad)
            others.append(step(plain, laid_out, call(plain)))
        finally:
            torch._C._set_mkldnn_enabled(True)
    assert ours.keys() == theirs.keys() == truth.keys()
    total = max([t.double().norm().item() for name, t in truth.items() if name.endswith("grad")], default=0)
    distances = {}
    for name, expected in truth.items():
        if not torch.is_floating_point(expected):
            assert torch.equal(ours[name], theirs[name]), name
            continue
        if name.endswith("grad") and is_zero_but_for_rounding(expected, total):
            assert ours[name].double().norm() < 1e-5 * total, name
            continue
        eager = max(distance(other[name], expected) for other in others)
        if both_layouts and eager > 1e-4:
            continue  # lost in eager as well: a scale that the norm behind it takes out again, as RepVit's 1x1 branch
        distances[name] = distance(ours[name], expected), eager
    return distances


def check_inference(net, x):
    """Accelerated inference is no further from float64 than twice the distance of eager's, plus 1e-6."""
    plain = copy.deepcopy(net)
    dwsep.revert_(plain)
    with torch.no_grad():
        expected = copy.deepcopy(plain).double()(x.double())
        bound = 2 * distance(plain(x), expected) + 1e-6
        for _ in range(2):  # its shape is new, then known
            assert distance(net(x), expected) < bound


def check_bfloat16(net, x, autocast):
    """Of bfloat16, or under autocast to it, a network is about as close to float64 accelerated as it is in eager."""
    exact = copy.deepcopy(net).double()(x.double())
    if not autocast:
        net, x = net.bfloat16(), x.bfloat16()
    plain = copy.deepcopy(net)
    dwsep.accelerate_(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for _ in range(2):
            out, eager = net(x), plain(x)
            assert out.dtype is eager.dtype
            assert distance(out, exact) <= 1.5 * distance(eager, exact) + 1e-3
