"""The flow against independent routes: automatic differentiation, closed forms, conservation laws."""

import numpy as np
import pytest
import torch

import nclib as nc
from nclib.theory.flow import _Members
from nclib.theory.relu import forward, gradients, norms, random_directions


def teacher(seed, n=6, d=5):
    return nc.data("teacher", n=n, d=d, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize("hidden", [(), (7,), (4, 3), (1, 1)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
def test_forward_and_gradients_agree_with_automatic_differentiation(hidden, with_bias, leak):
    rng = np.random.default_rng(0)
    widths = (5, *hidden, 1)
    W = random_directions(widths, [1, 2])
    b = [rng.normal(size=(2, out, 1)) for out in widths[1:]] if with_bias else None
    x, r = rng.normal(size=(2, 6, 5)), rng.normal(size=(2, 6))
    f, inputs = forward(W, x, b, leak=leak)
    found = gradients(W, inputs, r, biases=with_bias, leak=leak)
    parameters = [torch.tensor(p, requires_grad=True) for p in [*W, *(b or [])]]
    h = torch.tensor(x).transpose(1, 2)
    for k in range(len(W)):
        h = parameters[k] @ h + (parameters[len(W) + k] if with_bias else 0)
        h = torch.nn.functional.leaky_relu(h, leak) if k < len(W) - 1 else h
    np.testing.assert_allclose(f, h[:, 0].detach(), atol=1e-14)
    expected = torch.autograd.grad((torch.tensor(r) * h[:, 0]).sum(), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_a_seed_gives_the_same_directions_in_any_company():
    alone = random_directions((5, 4, 1), [7])
    company = random_directions((5, 4, 1), [3, 7])
    for a, b in zip(alone, company, strict=True):
        np.testing.assert_array_equal(a[0], b[1])
        np.testing.assert_allclose(norms(b), 1, atol=1e-15)


@pytest.mark.parametrize("model", ["normalised", "plain"])
def test_the_step_and_the_right_hand_side_are_one_formula(model):
    options = dict(weight_decay=0.05, seed=[1, 2], rho0=2.0, model=model, records=2, cooling=0)
    start = nc.flow(teacher, (8, 4), time=1e-8, dt=1e-8, **options)
    state = list(start.V) if model == "plain" else [*start.V, start.rho]
    if model == "plain":
        each = [start.final[f"rho_{k}"].to_numpy()[:, None, None] for k in (1, 2, 3)]
        state = [v * r for v, r in zip(state, each, strict=True)]
    members = _Members(None, start.x, start.y, np.array([0.05, 0.05]), 3, model == "normalised", 0.0)
    velocity = members.velocity(state)
    h = 1e-6
    after = nc.flow(teacher, (8, 4), time=h, dt=h, start=start, **options)
    if model == "normalised":
        moved = [(b - a) / h for a, b in zip(state, [*after.V, after.rho], strict=True)]
    else:
        each = [after.final[f"rho_{k}"].to_numpy()[:, None, None] for k in (1, 2, 3)]
        moved = [(b * r - a) / h for a, b, r in zip(state, after.V, each, strict=True)]
    for ours, theirs in zip(moved, velocity, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_normalised_velocity_is_the_projected_gradient():
    rng = np.random.default_rng(3)
    V = random_directions((5, 6, 4, 1), [1])
    x, y, rho, lam = rng.normal(size=(1, 6, 5)), np.sign(rng.normal(size=(1, 6))), np.array([1.7]), np.array([0.1])
    velocity = _Members(None, x, y, lam, 3, True, 0.0).velocity([*V, rho])
    U = [torch.tensor(v[0], requires_grad=True) for v in V]
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    h = torch.tensor(x[0]).T
    for k, u in enumerate(U):
        h = (u / u.norm()) @ h
        h = torch.relu(h) if k < 2 else h
    loss = ((scale * h[0] - torch.tensor(y[0])) ** 2).mean() + 0.1 * scale**2
    expected = torch.autograd.grad(loss, [*U, scale])
    for ours, theirs in zip(velocity, expected, strict=True):
        np.testing.assert_allclose(ours[0], -theirs.numpy(), atol=1e-13)


def test_members_do_not_influence_each_other():
    options = dict(widths=(8,), time=20.0, cooling=1)
    many = nc.flow(teacher, weight_decay=[0.0, 0.1], rho0=[0.5, 2.0], seed=[1, 2], **options)
    assert many.rho.shape == (8,)
    one = nc.flow(teacher, weight_decay=0.1, rho0=2.0, seed=2, **options)
    row = many.final.query("seed == 2 and weight_decay == 0.1 and rho0 == 2.0").iloc[0]
    assert row.rho == pytest.approx(one.rho[0], rel=1e-9)


def test_the_directions_stay_on_the_sphere_and_the_norm_comes_to_rest():
    run = nc.flow(teacher, (16,), weight_decay=0.05, rho0=[0.1, 5.0], seed=[1, 2], time=150)
    assert run.history.sphere_error.max() <= 1e-12
    np.testing.assert_allclose(run.final.rho, run.final.rho_eq, rtol=1e-3)
    np.testing.assert_allclose(nc.equilibrium_norm(run.f, run.y, np.full(4, 0.05)), run.final.rho_eq, rtol=1e-12)


def test_halving_the_step_halves_the_error():
    options = dict(weight_decay=0.02, seed=[1, 2], time=2.0, rho0=1.0)
    exact = nc.exact_flow(teacher, (), **options).final.rho
    errors = [abs(nc.flow(teacher, (), dt=dt, cooling=0, **options).final.rho - exact) for dt in (2e-3, 1e-3)]
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.05)


def test_exact_flow_conserves_the_sphere_and_the_balance():
    sphere = nc.exact_flow(teacher, (), weight_decay=0.1, seed=1, time=10)
    assert sphere.history.sphere_error.max() < 1e-8
    plain = nc.exact_flow(
        lambda s: teacher(s, d=50), (3,), weight_decay=0.0, seed=1, time=0.01, model="plain", layer_norms=(0.5, 2)
    )
    difference = plain.history.rho_1**2 - plain.history.rho_2**2
    np.testing.assert_allclose(difference, 0.25 - 4, atol=1e-9)


def test_plain_linear_flow_ends_at_the_ridge_solution():
    problem = teacher(1)
    run = nc.flow(problem, (), weight_decay=0.1, time=100, model="plain")
    w = nc.ridge(problem.x.numpy(), problem.y.numpy(), 0.1)
    np.testing.assert_allclose(run.V[0][0, 0] * run.rho[0], w, atol=1e-8)


def test_plain_flow_balances_the_layers():
    run = nc.flow(teacher, (8,), weight_decay=0.1, time=60, model="plain", layer_norms=(0.5, 2.0), seed=[1, 2])
    np.testing.assert_allclose(run.final.rho_1, run.final.rho_2, rtol=1e-4)
    np.testing.assert_allclose(run.final.rho, run.final.rho_1 * run.final.rho_2, rtol=1e-12)


def test_a_negative_norm_is_reported_as_its_size():
    runs = nc.flow(teacher, (16,), weight_decay=0.01, rho0=1e-3, seed=list(range(8)), time=100)
    assert (runs.history.rho >= 0).all()
    f = forward(runs.V, runs.x)[0]
    np.testing.assert_allclose(f, runs.f)
    mse = ((runs.rho[:, None] * f - runs.y) ** 2).mean(1)
    np.testing.assert_allclose(mse, runs.final.mse)


def test_going_on_is_the_same_as_not_stopping():
    options = dict(widths=(8,), weight_decay=0.05, seed=[1, 2], cooling=0)
    whole = nc.flow(teacher, time=40.0, **options)
    half = nc.flow(teacher, time=20.0, **options)
    rest = nc.flow(teacher, time=20.0, start=half, **options)
    np.testing.assert_allclose(rest.rho, whole.rho, rtol=1e-3)


def test_without_relus_the_flow_is_that_of_the_product():
    """Two linear layers of width 1 against the closed equation of w = w_2 w_1, by small steps."""
    options = dict(weight_decay=0.0, seed=3, model="plain", layer_norms=(0.5, 0.5), leak=1.0)
    run = nc.exact_flow(teacher, (1,), time=3.0, records=2, **options)
    x, y = run.x[0], run.y[0]
    w, h = run.W0[1].item() * run.W0[0][0, 0], 3e-4
    for _ in range(10_000):
        G = 2 * x.T @ (y - x @ w) / len(y)
        size = np.linalg.norm(w)
        w = w + h * size * (G + (w @ G) * w / size**2)
    np.testing.assert_allclose(run.W[1].item() * run.W[0][0, 0], w, atol=1e-3)
    np.testing.assert_allclose(run.rho[0] * run.f[0], x @ (run.W[1].item() * run.W[0][0, 0]), atol=1e-12)


@pytest.mark.parametrize("model", ["normalised", "plain"])
def test_weights_at_both_ends(model):
    run = nc.flow(teacher, (8, 4), weight_decay=0.05, rho0=0.3, seed=[1, 2], time=5.0, model=model)
    for W, rho in ((run.W0, np.full(2, 0.3)), (run.W, run.rho)):
        np.testing.assert_allclose(np.prod([norms(w) for w in W], 0), rho, rtol=1e-10)
        np.testing.assert_allclose(norms(W[0]), rho ** (1 / 3), rtol=1e-2)  # balanced, up to the step
    np.testing.assert_allclose(forward(run.W, run.x)[0], run.rho[:, None] * run.f, rtol=1e-10)
    assert abs(run.W[0] - run.W0[0]).max() > 0.01


def test_times_can_be_given():
    times = [0.5, 1.0, 4.0]
    for follow in (nc.flow, nc.exact_flow):
        extra = dict(cooling=0) if follow is nc.flow else {}
        run = follow(teacher, (), weight_decay=0.1, time=4.0, records=times, **extra)
        assert run.history.t.tolist() == pytest.approx([0.0, *times])
        assert follow(teacher, (), weight_decay=0.1, time=4.0, records=1, **extra).history.t.tolist() == [0.0, 4.0]
    for wrong in ([1.0, 0.5, 4.0], [0.0, 4.0], [1.0, 2.0], []):
        with pytest.raises(ValueError, match="records: write a number, or times that rise from above 0 to time=4"):
            nc.flow(teacher, (), weight_decay=0.1, time=4.0, records=wrong)


def test_sliding_along_a_kink_stops_the_adaptive_solver_with_advice():
    problem = nc.data("teacher", n=6, d=20, seed=3757552657, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"it has most likely reached a kink; .*use flow\(\)"):
        nc.exact_flow(problem, (64,), weight_decay=0.01, time=100, seed=3757552657, max_evaluations=2000)


def test_biases_are_learned():
    problem = nc.from_arrays(
        np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), np.array([1, 1, -1]), dtype=torch.float64
    )
    run = nc.flow(problem, (8,), weight_decay=0.01, model="plain", biases=True, time=50)
    assert run.biases is not None
    assert max(abs(b).max() for b in run.biases) > 0.01

    options = dict(weight_decay=0.01, model="plain", cooling=0)
    half = nc.flow(problem, (8,), biases=True, time=5, **options)
    on = nc.flow(problem, (8,), biases=True, time=1e-6, start=half, **options)
    for went_on, began in zip(on.biases, half.biases, strict=True):
        np.testing.assert_allclose(went_on, began, atol=1e-5)
    with pytest.raises(ValueError, match="start has biases; write biases=True"):
        nc.flow(problem, (8,), time=5, start=half, **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(weight_decay=-0.1), "weight_decay=-0.1: expected a weight decay"),
        (dict(rho0=0.0), "rho0=0.0: expected a positive number"),
        (dict(time=0.0), "time=0.0: expected a positive number"),
        (dict(dt=-1.0), "dt=-1.0: expected a positive number"),
        (dict(widths=(0,)), "widths=0: expected a whole number >= 1"),
        (dict(model="lagrange"), "write one of 'normalised', 'plain'"),
        (dict(biases=True), "belong to the plain model; write model='plain'"),
        (dict(model="plain", layer_norms=(1.0,)), "give a fresh start 2 positive numbers"),
    ],
)
def test_bad_input_says_what_to_write(wrong, message):
    with pytest.raises(ValueError, match=message):
        nc.flow(teacher, **{**dict(widths=(4,), weight_decay=0.1, time=1.0), **wrong})


def test_more_than_two_classes_are_refused():
    problem = nc.data("digits", classes=(1, 2, 3), n=30)
    with pytest.raises(ValueError, match=r"problem has 3 classes; the flow is of two"):
        nc.flow(problem, (4,), weight_decay=0.1, time=1.0)


def test_another_number_of_members_cannot_be_a_start():
    one = nc.flow(teacher, (4,), weight_decay=0.1, time=1.0, cooling=0)
    with pytest.raises(ValueError, match="number of members=2, but start has 1"):
        nc.flow(teacher, (4,), weight_decay=0.1, time=1.0, seed=[1, 2], start=one)


def test_divergence_is_named():
    far = nc.from_arrays(
        np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([1, -1]), unit_norm=False, dtype=torch.float64
    )
    with (
        pytest.raises(FloatingPointError, match=r"grows without bound .*take a smaller dt"),
        np.errstate(all="ignore"),
    ):
        nc.flow(far, (4,), weight_decay=0.0, model="plain", time=50.0, dt=1.0)


def test_a_linear_network_is_its_product_and_both_flows_agree_on_it():
    options = dict(weight_decay=0.05, seed=[1, 2], time=2.0, leak=1.0)
    exact = nc.exact_flow(teacher, (6, 4), **options)
    small = nc.flow(teacher, (6, 4), dt=1e-3, cooling=0, **options)
    np.testing.assert_allclose(small.rho, exact.rho, rtol=1e-3)
    product = exact.V[2] @ exact.V[1] @ exact.V[0]
    np.testing.assert_allclose(exact.f, np.einsum("bd,bnd->bn", product[:, 0], exact.x), atol=1e-14)


@pytest.mark.parametrize("call", [nc.flow, nc.exact_flow])
def test_a_slope_outside_its_range_is_refused(call):
    with pytest.raises(ValueError, match=r"leak=2.0: expected a slope from 0 \(the ReLU\) to 1"):
        call(teacher(1), (4,), weight_decay=0.1, time=1.0, leak=2.0)
