"""`audit` and `Watch`: the numbers of other routes, on models that nobody designed for them, left as they were."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nclib as nc
from nclib.auditing.tape import structure

CLASSES = 3


def settled(model, x, rounds=4):
    """Weights, gains, shifts and running statistics that are none of the defaults; then evaluation mode."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        for _ in range(rounds):
            model.train()(x + 0.1 * torch.randn_like(x))
    return model.eval()


def labels(n, classes=CLASSES):
    return torch.arange(n) % classes


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-3)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, momentum=None)

    def forward(self, x):
        return F.relu(x + self.bn2(self.second(F.relu(self.bn1(self.first(x)), inplace=True))))


class SmallResNet(nn.Module):
    """Affine BN, biases, skips, and a branch that no tracer takes."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks, self.fc = nn.Sequential(Residual(8), Residual(8)), nn.Linear(8, classes)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        if float(x.detach().sum()) > 1e9:
            x = x / 2
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """Of MobileNet's kind: pointwise, depthwise, pointwise; ReLU6."""

    def __init__(self, channels, wide):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


class PreActivation(nn.Module):
    """Of DenseNet's kind: BN before the convolution, and channels that are joined."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(torch.cat([x, self.conv(F.relu(self.bn(x)))], 1).mean((2, 3)))


class Twice(nn.Module):
    """One layer called twice, BN behind the first call only."""

    def __init__(self):
        super().__init__()
        self.layer, self.bn, self.out = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.out(F.relu(self.layer(F.relu(self.bn(self.layer(x))))))


def vgg():
    plan, channels, layers = [4, "pool", 8, "pool"], 3, []
    for width in plan:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    head = [nn.Flatten(), nn.Linear(8 * 4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*layers, *head)


def head(width):
    return nn.Linear(width, CLASSES)


def chain(*layers):
    return lambda: nn.Sequential(*copy.deepcopy(layers))


IMAGES, ROWS = (12, 3, 8, 8), (12, 6)
WEIGHT, SPECTRAL = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
ENCODER = nn.TransformerEncoderLayer(2, 1, 8, batch_first=True)
TRANSPOSED = nn.ConvTranspose2d(6, 4, 2)
MODELS = {
    "resnet": (SmallResNet, IMAGES),
    "vgg": (vgg, IMAGES),
    "mobilenet": (
        chain(nn.Conv2d(3, 4, 1), Inverted(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(4)),
        IMAGES,
    ),
    "pre-activation": (PreActivation, IMAGES),
    "mlp": (
        chain(nn.Linear(6, 9), nn.BatchNorm1d(9, eps=0.1), nn.LeakyReLU(), nn.Dropout(0.5), head(9)),
        ROWS,
    ),
    "transformer": (chain(nn.Unflatten(1, (3, 2)), ENCODER, nn.Flatten(), head(6)), ROWS),
    "twice": (Twice, ROWS),
    "weight norm": (lambda: nn.Sequential(WEIGHT(nn.Linear(6, 8)), nn.ReLU(), head(8)), ROWS),
    "spectral norm": (lambda: nn.Sequential(SPECTRAL(nn.Linear(6, 8)), nn.GELU(), head(8)), ROWS),
    "transposed": (
        chain(nn.Unflatten(1, (6, 1, 1)), TRANSPOSED, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), head(16)),
        ROWS,
    ),
    "softmax": (chain(head(6), nn.Softmax(1)), ROWS),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, shape = MODELS[request.param]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    return request.param, settled(model, x), x


# --- any model gives a report, and is left alone


def test_every_model_gives_a_report(case):
    name, model, x = case
    report = nc.audit(model, x, labels(len(x)), weight_decay=1e-3, lr=0.1, loss="cross_entropy")
    assert report["error"] == pytest.approx((model(x).argmax(1) != labels(len(x))).float().mean().item())
    told = " ".join(report.findings)
    expected = {
        "resnet": ["branches are added", "5 of 5 batch norms folded", "biases"],
        "vgg": ["2 of 2 batch norms folded", "biases"],
        "mobilenet": ["hardtanh", "3 of 3 batch norms folded"],
        "pre-activation": ["is used elsewhere too"],
        "mlp": ["1 of 1 batch norms folded"],
        "transformer": ["multi_head_attention_forward", "layer_norm"],
        "twice": ["1 of 1 batch norms folded"],
        "weight norm": ["2 layers"],
        "spectral norm": ["gelu"],
        "transposed": ["1 of 1 batch norms folded"],
        "softmax": ["softmax"],
    }
    assert all(words in told for words in expected[name]), told
    assert report["departure"] > 1e-3  # biases, at least
    page = report._repr_html_()
    assert "<script" not in page
    assert len(page) < 100_000
    assert json.loads(report.to_json())["n"] == len(x)
    assert str(report).count("\n") > 20


def test_the_model_is_left_as_it_was(case):
    _, model, x = case
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    model.train()
    next(iter(model.children())).eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    random = torch.random.get_rng_state()
    nc.audit(model, x, labels(len(x)), weight_decay=1e-3, loss="square")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())
    assert len(model._forward_hooks) == 1
    assert seen


def test_folding_changes_no_output(case):
    """Every fold is proved by the outputs; here by a chain written out with the folded weights, where it is one."""
    name, model, x = case
    model.double()
    found = structure(model, x.double())
    if name in ("mlp", "twice"):
        h = x.double()
        activation = F.leaky_relu if name == "mlp" else F.relu
        for k, layer in enumerate(found.layers):
            h = F.linear(h, layer.weight, layer.bias)
            h = activation(h) if k + 1 < len(found.layers) else h
        torch.testing.assert_close(h, model(x.double()), rtol=1e-10, atol=1e-12)
    assert not found.unfolded or name == "pre-activation"
    assert all(layer.folded == layer.normalised for layer in found.layers) or name == "pre-activation"


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("affine", [True, False])
def test_convolutions_are_folded_exactly(eps, groups, affine):
    torch.manual_seed(3)
    conv, bn = nn.Conv2d(4, 8, 3, groups=groups), nn.BatchNorm2d(8, eps=eps, affine=affine, momentum=None)
    model, x = nn.Sequential(conv, bn, nn.Flatten(), nn.Linear(8 * 9, 2)).double(), torch.randn(9, 4, 5, 5).double()
    settled(model, x)
    layer, _ = structure(model, x).layers
    folded = F.conv2d(x, layer.weight, layer.bias, groups=groups)
    torch.testing.assert_close(folded, bn(conv(x)), rtol=1e-12, atol=1e-12)


def test_positions_are_not_taken_for_channels():
    """BN1d over (N, L, C) normalises L: folded as if it were C, which is as long, it would be wrong."""
    model = nn.Sequential(
        nn.Unflatten(1, (4, 4)), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 2)
    )
    x = torch.randn(20, 16)
    report = nc.audit(settled(model, x), x, labels(20, 2))
    assert any("normalises positions" in finding for finding in report.findings)
    assert np.isnan(report["rho"])


def test_batch_norm_without_running_statistics_is_not_folded():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.ReLU(), nn.Linear(5, 2))
    report = nc.audit(model.eval(), torch.randn(20, 6), labels(20, 2))
    assert any("no running statistics" in finding for finding in report.findings)


# --- the numbers, by another route


def plain_copy(net):
    """The same network in PyTorch's own modules."""
    layers = []
    for k, layer in enumerate(net.layers):
        rows, columns = layer.matrix.shape
        linear = nn.Linear(columns, rows, bias=False).to(layer.weight)
        linear.weight.data.copy_(layer.weight)
        layers.append(linear)
        if k < len(net.norms):
            bn = nn.BatchNorm1d(rows, eps=net.norms[k].eps, affine=False).to(layer.weight)
            bn.running_mean.copy_(net.norms[k].mean)
            bn.running_var.copy_(net.norms[k].var)
            layers.append(bn)
        if k + 1 < len(net.layers):
            layers.append(nn.ReLU())
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("norm", ["none", "bn", "wn"])
@pytest.mark.parametrize("classes", [2, 4])
def test_nclibs_networks_and_pytorchs_read_alike(norm, classes):
    data = nc.data("gaussians", classes=classes, n=40, d=5, seed=2, dtype=torch.float64)
    runs = nc.train(data, nc.mlp((8, 7), norm), nc.sgd(lr=0.1, epochs=60), grid=dict(seed=[1]), progress=False)
    net = runs.model(0)
    y = data.y if classes == 2 else data.labels
    options = dict(weight_decay=0.01, loss="square")
    own, other = nc.audit(net, data.x, y, **options), nc.audit(plain_copy(net), data.x, y, **options)
    for one, two in zip(own.readings, other.readings, strict=True):
        assert one.name == two.name
        if one.name != "stationarity" or norm != "wn":  # WN's own parameters are others
            assert own[one.name] == pytest.approx(other[two.name], rel=1e-10, abs=1e-12, nan_ok=True), one.name
    assert own["rho"] == pytest.approx(nc.rho(net), rel=1e-12)
    np.testing.assert_allclose(own.margins, nc.margins(net, data.x, y).numpy(), rtol=1e-10)
    final = runs.final.iloc[0]
    assert own["margin_q25"] == pytest.approx(final.margin_q25, rel=1e-6)
    assert own["error"] == final.error
    features, weight, bias = nc.last_layer(net, data.x)
    if classes > 2:
        for key, value in nc.collapse(features, data.labels, weight, bias).items():
            assert own[key] == pytest.approx(value, rel=1e-8, abs=1e-12), key
        split = nc.mse_split(features, data.labels, weight, bias)
        assert own["mse_least_squares"] * classes / 2 == pytest.approx(split["mse_ls"], rel=1e-6, abs=1e-12)


def batches(x, y, sizes):
    ends = np.cumsum([0, *sizes])
    return [(x[a:b], y[a:b]) for a, b in pairwise(ends)]


def test_how_the_data_are_cut_does_not_matter():
    model, x = settled(SmallResNet(), torch.randn(16, 3, 8, 8)), torch.randn(700, 3, 8, 8)
    y, options = labels(700), dict(weight_decay=0.01, loss="cross_entropy")
    whole = nc.audit(model, x, y, **options)
    for sizes in ([700], [1, 699], [100] * 7, [3] * 233 + [1]):
        cut = nc.audit(model, batches(x, y, sizes), **options)
        for one, two in zip(whole.readings, cut.readings, strict=True):
            assert whole[one.name] == pytest.approx(cut[two.name], rel=1e-9, nan_ok=True), one.name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types(dtype):
    x = torch.randn(30, 6)
    model = settled(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), x)
    exact = nc.audit(model.double(), x.double(), labels(30))
    report = nc.audit(model.to(dtype), x.numpy(), labels(30).tolist())
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for name in ("rho", "margin_std", "nc1_quotient", "mse"):
        assert report[name] == pytest.approx(exact[name], rel=near)


def test_labels_in_every_coding():
    torch.manual_seed(0)
    one, x = nn.Sequential(nn.Linear(4, 1, bias=False)), torch.randn(20, 4)
    signs = torch.where(torch.arange(20) % 2 == 0, 1, -1)
    same = [signs, (signs > 0).long(), signs.double(), (signs > 0), signs.numpy(), signs[:, None]]
    reports = [nc.audit(one, x, y) for y in same]
    assert len({report["mse"] for report in reports}) == 1
    two = nn.Linear(4, 3)
    numbers = labels(20)
    assert nc.audit(two, x, numbers)["mse"] == nc.audit(two, x, F.one_hot(numbers, 3))["mse"]


# --- what the theorems predict


@pytest.fixture(scope="module")
def rested():
    data = nc.data("teacher", n=8, d=20, seed=1, dtype=torch.float64)
    opt = nc.sgd(lr=0.2, epochs=6000, weight_decay=0.01, schedule=((4000, 0.1), (5000, 0.01)))
    return nc.train(data, nc.mlp((24,)), opt, grid=dict(seed=[1]), progress=False).model(0), data


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_the_margin_bound(outputs):
    """Of two outputs it is that of their difference, a network with one output; of several that for K classes."""
    torch.manual_seed(0)
    x = F.normalize(torch.randn(50, 6).double(), dim=1)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, outputs, bias=False)).double()
    y = labels(50, max(outputs, 2))
    report = nc.audit(model, x, y)
    if outputs == 2:
        last = model[2].weight.detach()
        one = nn.Sequential(model[0], model[1], nn.Linear(8, 1, bias=False)).double()
        one[2].weight.data = (last[:1] - last[1:]) * last.norm() * 2**0.5 / (last[0] - last[1]).norm()
        scale = last.norm() * 2**0.5 / (last[0] - last[1]).norm()
        other = nc.audit(one, x, 1 - y)
        np.testing.assert_allclose(report.margins / 2**0.5 * scale.item(), other.margins, rtol=1e-10)
    margins = report.margins / 2**0.5 if outputs == 2 else report.margins
    radius = x.norm(dim=1).max().item()
    bound = nc.margin_bound_over_grid(margins, 2, radius, classes=max(outputs, 2))
    assert report["margin_bound"] == pytest.approx(bound.total)


def verdicts(report):
    return {reading.name: reading.verdict for reading in report.readings}


def test_at_rest_the_predictions_hold(rested):
    net, data = rested
    found = verdicts(nc.audit(net, data.x, data.y, weight_decay=0.01, loss="square"))
    names = ("departure", "rest_norms", "last_norm", "ridge_distance", "balance", "neuron_balance")
    assert {name: found[name] for name in names} == dict.fromkeys(names, "holds")


def test_with_another_decay_they_fail(rested):
    """PyTorch's weight_decay where λ is meant: twice too much."""
    net, data = rested
    found = verdicts(nc.audit(net, data.x, data.y, weight_decay=0.02, loss="square"))
    assert {found[name] for name in ("rest_norms", "last_norm", "ridge_distance")} == {"fails"}
    found = verdicts(nc.audit(net, data.x, data.y, weight_decay=0.01, loss="cross_entropy"))
    assert found["last_norm"] == "fails"
    assert found["ridge_distance"] == "does not apply"


def test_a_loss_of_ones_own(rested):
    net, data = rested

    def loss(outputs, y):
        return (outputs - y).square().mean()

    own = nc.audit(net, data.x, data.y, weight_decay=0.01, loss=loss)
    named = nc.audit(net, data.x, data.y, weight_decay=0.01, loss="square")
    for name in ("last_norm", "stationarity", "rest_norms"):
        assert own[name] == pytest.approx(named[name], rel=1e-12)


def test_cross_entropy_at_rest_with_biases():
    """λ‖W‖² of the last layer follows from the outputs whatever is before it, and whether or not it has a bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y, lam = torch.randn(30, 5).double(), labels(30), 0.01
    steps = torch.optim.LBFGS(model.parameters(), max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure():
        steps.zero_grad()
        value = F.cross_entropy(model(x), y) + lam * sum(p.square().sum() for p in model.parameters())
        value.backward()
        return value

    steps.step(closure)
    report = nc.audit(model, x, y, weight_decay=lam, loss="cross_entropy")
    assert verdicts(report)["last_norm"] == "holds"
    assert report["stationarity"] < 1e-3
    assert verdicts(report)["departure"] == "does not apply"


# --- what is wrong is said


def test_mistakes_are_named():
    model, x = nn.Linear(4, 3), torch.randn(9, 4)
    cases = [
        (lambda: nc.audit(model, x, torch.arange(9)), "labels: 3 is none of the classes 0 to 2"),
        (lambda: nc.audit(model, x, labels(8)), "8 for 9 inputs"),
        (lambda: nc.audit(model, x), "labels is missing"),
        (lambda: nc.audit(model, iter([(x, labels(9))])), "an iterator, read only once"),
        (lambda: nc.audit(model, [x]), "expected pairs"),
        (lambda: nc.audit(model, []), "inputs is empty"),
        (lambda: nc.audit(nn.ReLU(), x, labels(9)), "no parameters"),
        (lambda: nc.audit("model", x, labels(9)), "expected a torch.nn.Module"),
        (lambda: nc.audit(model, x * torch.inf, labels(9)), "NaN or infinity"),
        (lambda: nc.audit(nn.Linear(4, 1), x, labels(9)), "a model with one output takes"),
        (lambda: nc.audit(model, x, labels(9), loss="mse"), "write one of 'square', 'cross_entropy'"),
        (lambda: nc.audit(model, x, labels(9), weight_decay=-1), "weight_decay=-1"),
        (lambda: nc.audit(model, x, labels(9), last_layer="head"), "last_layer='head': no layer of the model"),
        (lambda: nc.audit(model, x, list("abcabcabc")), "labels are strings"),
        (lambda: nc.Watch(model, x, labels(9), wd=1), "wd: no option of audit"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(KeyError, match="did you mean 'nc1_quotient'"):
        nc.audit(model, x, labels(9))["nc1_quotent"]


def test_a_missing_class_costs_its_readings_only():
    report = nc.audit(nn.Linear(4, 3), torch.randn(9, 4), torch.zeros(9, dtype=torch.long))
    assert np.isnan(report["nc1"])
    assert any("no row of class 1" in reading.note for reading in report.readings)
    assert 0 <= report["error"] <= 1


def test_an_untrained_network_is_told_so():
    model, x = (
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)),
        torch.randn(12, 6),
    )
    report = nc.audit(model, x, labels(12), weight_decay=0.01, loss="square")
    assert verdicts(report)["rho_margin"] == "does not apply"
    assert any("perhaps not at rest" in reading.note for reading in report.readings)


# --- Watch


def test_watching_changes_nothing_and_can_be_resumed(tmp_path):
    def train(watch=None, model=None, first=0, last=40):
        torch.manual_seed(0)
        model = model or nn.Sequential(
            nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 3)
        )
        x, y = torch.randn(60, 6), labels(60)
        watching = watch(model, x, y) if watch else None
        steps = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
        for step in range(first, last):
            if watching:
                watching(step)
            steps.zero_grad()
            F.cross_entropy(model(x), y).backward()
            steps.step()
        return model, watching

    alone, _ = train()
    watched, watch = train(lambda *data: nc.Watch(*data, every=10, path=tmp_path / "history.csv"))
    for one, two in zip(alone.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert watch.history.step.tolist() == [0, 10, 20, 30]
    assert (watch.history.share < 1).all()
    assert np.isfinite(watch.history.angle).all()
    assert watch.figure().axes
    _, again = train(lambda *data: nc.Watch(*data, every=10, path=tmp_path / "history.csv"), watched, 30, 51)
    assert again.history.step.tolist() == [0, 10, 20, 30, 40, 50]


def test_the_angle_that_is_watched_is_that_of_the_theorem():
    """SGD on random labels under BN: each step turns the layer by √(4ηλ)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 16, bias=False), nn.BatchNorm1d(16, affine=False), nn.ReLU(), nn.Linear(16, 2)
    )
    x, y = torch.randn(100, 20), torch.randint(2, (100,))
    watch = nc.Watch(model, x, y, every=20, weight_decay=0.03, lr=0.1, loss="cross_entropy")
    steps = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.06)
    for step in range(2500):
        watch(step)
        batch = torch.randint(100, (10,))
        steps.zero_grad()
        F.cross_entropy(model.train()(x[batch]), y[batch]).backward()
        steps.step()
    late = watch.history[watch.history.step > 700]
    assert np.sqrt((late.angle**2).mean()) == pytest.approx(late.angle_predicted.iloc[0], rel=0.1)
    assert late.angle_predicted.iloc[0] == pytest.approx(np.sqrt(4 * 0.1 * 0.03))


# --- the command line

MODEL = """
from torch import nn


def make():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
"""


def test_the_command_line(tmp_path, capsys, monkeypatch):
    from safetensors.torch import save_file

    from nclib.__main__ import main

    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(MODEL)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    save_file(model.state_dict(), "w.safetensors")
    torch.save(model.state_dict(), "w.pt")
    x, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    np.savez("d.npz", x=x, y=y)
    audit = ["audit", "own.py:make", "--data", "d.npz"]

    command = [sys.executable, "-m", "nclib", *audit, "--weights", "w.safetensors"]
    command += ["--json", "r.json", "--html", "r.html"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    found = {r["name"]: r["value"] for r in json.loads(Path("r.json").read_text())["readings"]}
    assert found["mse"] == pytest.approx(nc.audit(model, x, y)["mse"], rel=1e-6)
    assert Path("r.html").read_text().startswith("<!doctype html>")

    assert main([*audit, "--weights", "w.pt"]) == 0
    assert "2 layers" in capsys.readouterr().out
    for wrong in (["--weights", "missing.pt"], ["--data", "own.py"], ["--loss", "square", "--weight-decay", "-1"]):
        assert main([*audit, *wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith("nclib audit: ")
        assert said.count("\n") == 1
    assert main(["audit", "own.py:other", "--data", "d.npz"]) == 2
