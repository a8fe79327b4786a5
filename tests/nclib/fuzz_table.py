"""What `test_fuzz` calls, valid calls of all that is public, and what it replaces their arguments by.

To make a call that it reports, do ``from tests.nclib.fuzz_table import *`` and paste the line.
"""

from __future__ import annotations

import functools
from dataclasses import replace  # noqa: F401, for the calls
from pathlib import Path
from types import FunctionType  # noqa: F401

import numpy as np
import pandas as pd
import torch
from numpy import inf, nan  # noqa: F401

import nclib as nc
from nclib.book import claims

ROOT = Path(__file__).resolve().parents[2]

# --- valid calls: every public function, method and parameter is in one of them ---------------------------
# Numbers are sums of few powers of two, so that every floating-point type holds them exactly.

X = np.array([[1.0, 0.5], [-0.5, 1.25], [0.25, -1.0], [-1.125, -0.25], [0.625, 0.75], [-0.75, 0.375]])
Y = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
LABELS = np.array([0, 1, 2, 0, 1, 2])
W = np.array([[1.0, 0.25], [-0.375, 0.75], [-0.5, -0.625]])
B = np.array([0.5, 0.25, 0.125])
IMAGES = np.arange(96.0).reshape(6, 1, 4, 4) / 64
FRAME = pd.DataFrame({"t": [0, 1, 2] * 2, "rho": [1.0, 2.0, 2.5, 3.0, 2.5, 2.25], "start": [1] * 3 + [3] * 3})
OPT = nc.sgd(lr=0.25, batch=3, epochs=2)

#: After the bar: the call is slow, and made in one of so many rounds only.
TABLE = """
nc.CollapseStatistics(classes=3, weight=W, bias=B)
begun(0).first_pass(features=X, labels=LABELS)
begun(1).second_pass(features=X, labels=LABELS)
begun(2).result()
nc.Data(name='own', classes=('a', 'b'), x=T(X), labels=T(LABELS % 2), x_test=T(X),
    labels_test=T(LABELS % 2), truth=(T(W),), bayes_error=0.25)
points().to(device='cpu', dtype=torch.float64)
nc.Watch(model=net(outputs=3), inputs=X, labels=LABELS, every=2, points=4, path=None)
nc.Watch(net(outputs=3), X, LABELS).__call__(step=0)
nc.audit(model=net(outputs=3), inputs=X, labels=LABELS, weight_decay=0.25, lr=0.5, momentum=0.5, loss='square',
    last_layer='layers.1')
nc.balance(net=ready('bn'))
nc.calibrate(net=net('bn'), x=T(X), chunk=4, max_bytes=1024)
nc.chapter(name='02_minimum_norm')
clean().claim(theorem='thm-a', statement='two and two', measured=Y, predicted=Y, rtol=0.5, seeds=3)
clean().claim(theorem='thm-a', statement='s', measured=B, predicted=0.25, atol=2.0, mean=True, source=stored())
clean().claim(theorem='thm-a', statement='s', measured=B, at_most=2.0)
clean().claim(theorem='thm-a', statement='s', measured=B, at_least=-2.0)
clean().claim(theorem='thm-a', statement='s', measured=B, between=(-2.0, 2.0))
nc.collapse(features=X, labels=LABELS, weight=W, bias=B)
nc.confidence_interval(values=B)
nc.convex_optimum(problem=points(), weight_decay=0.25, weight_decay_on='rho') | 4
nc.convnet(widths=(4, 2), norm='bn', eps=0.25)
nc.convnet((2,)).build(input_shape=(1, 4, 4), outputs=2, init_norm=(0.5, 2.0), seed=1, dtype=torch.float64)
nc.convnet((2,)).shapes(input_shape=(1, 4, 4), outputs=2)
nc.data(name='digits', classes=(3, 8), n=20, n_test=10, seed=1, unit_norm=True, standardise=True, flat=False,
    noise=0.25, dtype=torch.float64, device='cpu') | 3
nc.data(name='gaussians', classes=3, n=9, n_test=4, seed=1, noise=0.25, d=3, separation=2.0)
nc.data(name='teacher', n=9, n_test=4, seed=1, d=3, width=4, dtype=torch.float32)
nc.device()
nc.equilibrium_loss(f=X[:, 0], y=Y, weight_decay=0.25)
nc.equilibrium_norm(f=X.T, y=Y, weight_decay=np.array([0.25, 0.5]))
nc.exact_flow(problem=points(), widths=(2,), weight_decay=0.25, time=0.5, rho0=2.0, seed=1, model='normalised',
    leak=0.5, paired=True, rtol=0.001, records=3, max_evaluations=500) | 4
nc.exact_flow(problem=points(), widths=(2,), weight_decay=(0.25, 0.5), time=0.5, model='plain',
    layer_norms=(0.5, 2.0), rtol=0.001, records=(0.25, 0.5)) | 2
nc.explore_curves(frame=FRAME, x='t', measures={'rho': 'norm'}, controls={'start': 'at first'}, told=repr,
    caption='c', alt='a', name='n', log='', log_measures=('rho',), predicted={'rho': 'start'},
    legend={'chosen': 'this'}, start=(1,)) | 8
nc.explore_flow(problem=points(), widths=(2,), weight_decay=(0.25,), rho0=(0.5, 2.0), time=0.5, caption='c',
    alt='a', name='n', seed=1, start=0) | 10
nc.flow(problem=points(), widths=(2,), weight_decay=0.25, time=0.5, rho0=2.0, seed=1, model='normalised', leak=0.5,
    paired=True, dt=0.125, cooling=0, records=3, start=None)
nc.flow(problem=points(), widths=(2,), weight_decay=(0.25, 0.5), time=0.5, rho0=1.0, seed=(1, 2), model='plain',
    layer_norms=(0.5, 2.0), biases=True, dt=0.125, cooling=0, records=(0.25, 0.5))
nc.flow(problem=drawn, widths=(), weight_decay=0.25, time=0.5, seed=1, dt=0.125, cooling=0, start=flowed())
nc.fold(net=ready('bn'))
nc.fold(net=net('lm'))
nc.from_arrays(x=X, labels=LABELS, x_test=X, labels_test=LABELS, name='own', classes=(0, 1, 2), seed=1,
    unit_norm=True, standardise=True, noise=0.25, dtype=torch.float64, device='cpu')
nc.from_arrays(x=IMAGES, labels=Y, unit_norm=False, standardise=True)
nc.growth_clock(rho=X + 2, depth=3)
nc.interpolant_from(x=X, y=Y, w0=np.array([0.5, -0.25]), depth=2)
nc.interpolant_from(x=X, y=X[::-1], w0=X[:2], depth=1)
nc.last_layer(net=ready('bn'), x=T(X), chunk=4)
nc.linear_escape_time(rho0=0.125, level=0.25, depth=3, size=0.5, angle=0.25)
nc.lines(frame=FRAME, x='t', y='rho', log='y', ax=None) | 8
nc.lines(frame=FRAME, x='t', y='rho', log='y', ax=nc.lines(FRAME, x='t', y='rho', log='y')) | 8
nc.low_rank_distance(weight=T(W))
nc.margin_bound(margins=X[:, 0], gamma=0.25, depth=3, radius=2.0, delta=0.125, patches=(9, 4), classes=3)
nc.margin_bound_over_grid(margins=X[:, 0], depth=3, radius=2.0, delta=0.5, gammas=(0.25,), patches=None, classes=3)
nc.margins(net=ready('bn'), x=T(X), y=T(Y), chunk=4)
nc.margins(net=net(outputs=3), x=T(X), y=T(LABELS))
nc.minimum_norm(x=X, y=Y)
nc.mlp(widths=(4, 2), norm='bn', eps=0.25)
nc.mlp((3,), 'lm').build(input_shape=(2,), outputs=2, init_norm=2.0, seed=1, dtype=torch.float64)
nc.mlp((3,)).shapes(input_shape=(2,), outputs=2)
nc.mse_split(features=X, labels=LABELS, weight=W, bias=B)
nc.panels(n=2, height=2.0) | 4
nc.patch_radius(images=T(IMAGES), kernel=2, stride=1, padding=1)
nc.per_sample_gradients(net=net(), x=T(X), y=T(Y), weight_decay=0.25)
nc.rademacher_ascent(x=X, signs=[[1, -1, 1, 1, 1, -1]], arch=nc.mlp((2,)), restarts=2, steps=3, seed=1) | 2
nc.rademacher_bound(n=8, depth=3, radius=0.5, patches=(9, 4), classes=3)
nc.rademacher_exact(x=X, signs=np.array([[1, -1, 1, 1, 1, -1]]), depth=2)
nc.replay(frames=np.stack([X, 2 * X]), groups=LABELS, names=('a', 'b', 'c'), at=(0, 1), told=('s', 't'), title='t',
    caption='c', alt='a', name='n', means=np.stack([W, 2 * W])) | 8
nc.resnet18(norm='none', widths=(2, 4), eps=0.25)
nc.resnet18(widths=(2,)).build(input_shape=(1, 4, 4), outputs=2, init_norm=2.0, seed=1, dtype=torch.float32) | 2
nc.resnet18(widths=(2,)).shapes(input_shape=(1, 4, 4), outputs=2)
nc.result('collapse_cpu', folder=ROOT / 'results') | 4
stored().stamp(figure=nc.panels(1)[0]) | 8
nc.rho(net=ready('bn'))
nc.ridge(x=X, y=Y, weight_decay=0.25)
nc.scale(quick=1.0, full=2.0)
nc.seeds(n=3, stream=1)
nc.sgd(lr=0.25, momentum=0.5, batch=3, epochs=4, weight_decay=0.25, schedule=((2, 0.5),), loss='square',
    reduction='mean', coding='one-hot', weight_decay_on='layers', precision='float32', sampling='shuffle')
nc.sgd(lr=0.25, epochs=4, schedule='cosine').rate(epoch=2)
nc.sgd(lr=0.25, epochs=4).decays(arch=nc.mlp((2,)))
nc.sgd(lr=0.25, epochs=4).outputs(classes=3)
nc.simplex_etf(classes=3, dim=4, seed=1)
nc.simplex_view(features=X, labels=LABELS, weight=W)
nc.step_by_step(data=points(), arch=nc.mlp((2,)), opt=OPT, grid={'lr': [0.25, 0.125]}, start=None, train_last=False)
nc.step_by_step(data=points(), arch=nc.mlp(()), opt=OPT, start=[torch.ones(1, 1, 2)])
stepped().table(at=(0, 1))
nc.tangent_kernel(layers=[np.ones((1, 3, 2)), np.ones((1, 1, 3))], x=X[None], leak=0.25)
nc.train(data=points(), arch=nc.mlp((2,)), opt=OPT, grid={'seed': [0, 1], 'init_norm': [0.5, 2.0]},
    measure=('loss', 'test', 'norms', 'margins', 'stable_rank', 'collapse'), measure_every=1, snapshots=True,
    checkpoint_seconds=30.0, engine='auto', progress=False) | 2
nc.train(data=points(), arch=nc.mlp((2,), 'lm'), opt=OPT, measure=lambda net: {'one': 1.0},
    measure_every=(0, 2), engine='loop') | 2
trained().model(member=1, epoch=2)
trained().data(member=1)
nc.ufm_descent(classes=3, per_class=2, weight_decay_w=0.125, weight_decay_h=0.125, bias=True, relu=False, dim=3,
    seed=1, init=0.5)
nc.ufm_minimiser(classes=3, per_class=(2, 3, 4), weight_decay_w=0.125, weight_decay_h=0.125, bias=True, dim=4,
    seed=1)
"""


@functools.cache
def points(classes=2):
    return nc.from_arrays(X, LABELS % classes, X, LABELS % classes, dtype=torch.float64)


def net(norm="none", outputs=1):
    return nc.mlp((3,), norm).build((2,), outputs, dtype=torch.float64)


def ready(norm):
    """A network in evaluation mode, calibrated."""
    made = net(norm).eval()
    nc.calibrate(made, T(X))
    return made


def spoilt(net, what):
    """A network one of whose weights is another number."""
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = what
    return net


def begun(passes):
    """Statistics after so many passes."""
    statistics = nc.CollapseStatistics(3, W, B)
    for one in (statistics.first_pass, statistics.second_pass)[:passes]:
        one(X, LABELS)
    return statistics


def clean():
    """nclib without the claims made so far."""
    claims._records.clear()
    claims._chapter = "notebook"
    return nc


def drawn(seed):
    return nc.data("teacher", n=6, d=2, seed=seed, dtype=torch.float64)


flowed = functools.cache(lambda: nc.flow(drawn, (), weight_decay=0.25, time=0.5, seed=1, dt=0.125, cooling=0))
stepped = functools.cache(lambda: nc.step_by_step(points(), nc.mlp((2,)), OPT))
stored = functools.cache(lambda: nc.result("collapse_cpu"))
trained = functools.cache(lambda: nc.train(points(), nc.mlp((2,)), OPT, grid={"seed": [0, 1]}, snapshots=True))


def T(values):
    return torch.tensor(A(values))


class Broken:
    def __array__(self, *_, **__):
        raise KeyError("no array")


# --- what an argument is replaced by; @ stands for it as it is ----------------------------------------------

A = np.asarray
REPLACEMENTS = """
type: None; 'a'; b'a'; {}; object(); int; (v for v in [1]); True; set(); []; (); np.array([]); np.array(None); 1j;
    Broken(); [None]; pd.NA; pd.DataFrame(); np.datetime64('2020'); [[1.0], [1.0, 2.0]]
number: 0; -1; nan; inf; -inf; 0.3; 1.5; '3'; np.float32(nan); -1e-300; -@; [@]; np.array([@, @]);
    torch.tensor(nan)
huge: 1e-300; 1e300; 2**63; 2**64; -2**63; 10**400; 1e160; 1e-160
text: ''; 'x' * 1000; '../x'; '\\0'; 'ü'; [@]; @.upper(); @.encode(); @ + ' '
array: A(@) * 1e160; A(@) * 1e-160; A(@) * 1e200; A(@) * 1e-200; A(@) * nan; A(@) * 0; A(@) * -1; A(@) * 1e300;
    np.where(@ == @[0], nan, @); np.where(@ == @[0], inf, @); np.where(@ == @[0], 1e300, @);
    np.where(@ == @[0], 0.3, @); np.where(@ == @[0], 2.0**63, @); A(@)[0]; A(@)[:0]; A(@)[:-1]; A(@)[..., None];
    A(@)[None]; A(@)[..., :1]; A(@)[..., :0]; A(@).astype(complex); A(@).astype(str); A(@).astype(bool);
    A(@).astype('S8'); A(@).astype('datetime64[s]'); T(@).to(torch.complex64); T(@).to(torch.bool);
    T(@).to(torch.uint8); np.asmatrix(@); np.ma.masked_less(@, 0.4); pd.Series([1.0, None, 2.0]);
    [torch.ones(2), torch.ones(3)]; [@, @]; pd.DataFrame({'a': ['u', 'v'], 'b': [1, 2]});
    np.zeros(3, [('a', float)]); np.full((6, 2), 2**64 - 1, 'u8')
same: A(@).tolist(); tuple(A(@).tolist()); list(A(@)); T(@); pd.Series(np.repeat(A(@), 2, axis=0))[::2];
    pd.Index(pd.Series(@)); pd.Categorical(pd.Series(@));
    pd.DataFrame(dict(enumerate(np.repeat(A(@), 2, axis=0).T)))[::2]; np.flip(np.flip(@).copy());
    np.asfortranarray(@); A(@).astype(A(@).dtype.newbyteorder('>')); A(@).astype('f4');
    np.broadcast_to(A(@), np.shape(@)); np.repeat(A(@), 2, axis=0)[::2]; T(@).double().requires_grad_();
    T(@).to(torch.float32); T(@).to(torch.float16); T(@).to(torch.bfloat16)
perhaps: A(@).astype(object); memoryview(np.ascontiguousarray(@)); np.ma.array(@); pd.array(pd.Series(@));
    pd.Series(@).astype('Float64'); T(@).to_sparse(); A(@).astype('f2'); A(@).astype('longdouble');
    pd.DataFrame(dict(enumerate(A(@).T))).astype(object)
nc.Data: replace(@, x=@.x * nan); replace(@, x=@.x * 0); replace(@, x=@.x * 1e160); replace(@, x=@.x * 1e-160);
    replace(@, x=@.x * 1e300); replace(@, x=@.x.half()); replace(@, labels=@.labels[:-1]); points(3); nc.Data;
    replace(@, labels=@.labels + 5); replace(@, x=@.x[:0], labels=@.labels[:0]); replace(@, x=@.x.numpy());
    replace(@, classes=('a',)); replace(@, labels=@.labels * 0); replace(@, labels=@.labels.double()); @.x;
    replace(@, x_test=@.x_test[:0], labels_test=@.labels_test[:0]); replace(@, x=@.x[:, :, None, None]);
    (@.x, @.y)
torch.nn.Module: net('bn'); net('wn'); net('lm'); net(outputs=3); ready('bn').train(); net().half();
    net().float(); spoilt(@, nan); spoilt(@, inf); spoilt(@, 1e200); spoilt(@, -1e-200); torch.nn.Linear(2, 1);
    nc.mlp((2,)); nc.resnet18(widths=(2,)).build((1, 4, 4)).eval(); nc.mlp(()).build((2,), dtype=torch.float64);
    torch.nn.ReLU()
type(nc.mlp()).__mro__[1]: nc.mlp((2,), norm='bn'); nc.mlp((2,), norm='wn'); nc.mlp((2,), norm='lm'); nc.mlp;
    net(); nc.resnet18(widths=(2,)); nc.convnet((2,)); nc.mlp((2,), norm='bn', eps=0); nc.mlp((1, 1, 1, 1))
type(OPT): replace(@, lr=1e30); replace(@, lr=1e300); replace(@, lr=nan); replace(@, batch=1); nc.sgd;
    nc.sgd(lr=0.25, epochs=2, coding='one-hot'); nc.sgd(lr=0.25, epochs=2, loss='cross_entropy');
    nc.sgd(lr=0.25, epochs=2, schedule=((0, 0.0),)); nc.sgd(lr=0.25, epochs=2, weight_decay=1e300);
    nc.sgd(lr=0.25, epochs=2, weight_decay_on='rho'); nc.sgd(lr=0.25, epochs=2, batch=99);
    nc.sgd(lr=0.25, epochs=2, sampling='independent', batch=4); nc.sgd(lr=1e-300, epochs=2, momentum=0.999)
torch.dtype: torch.float16; torch.bfloat16; torch.int64; torch.complex64; torch.bool; 'float32'; float;
    np.float32; torch.float8_e5m2
pd.DataFrame: @.iloc[:0]; @.iloc[:1]; @.iloc[::-1]; @.iloc[:, :1]; @.astype(str); @.astype(object); @ * nan;
    @ * 1e200; @.assign(rho=nan); @.assign(rho=-1); @.assign(rho=inf); @.assign(start=1);
    @.rename(columns=str.upper); pd.concat([@, @]); pd.concat([@, @], axis=1); @.to_dict(); @.to_numpy();
    @.set_index('t'); @.iloc[:-1]
dict: {'x': 1}; {1: 2}; {'lr': []}; {'lr': None}; {'lr': [nan]}; {'seed': [0.5]}; [{}]; [@]; {None: None};
    {'lr': 'a'}; {'seed': [2**64]}; {'init_norm': [(1.0,)]}; {'init_norm': [0]}; {'init_norm': ['1']};
    {'noise': [0.5, 2]}; {'lr': np.array([0.25])}; {'init_norm': [1e200]}; {'seed': range(0)}; {'rho': 'none'}
FunctionType: repr; lambda *_: None; lambda *_: nan; lambda *_: {'a': nan}; lambda *_: {'a': 'b'};
    lambda *_: points(3); lambda *_: {1: 2}
tuple: (0,); (-1,); (1.5,); (nan,); (inf,); (2**63,); (2**64,); ('a',); (None,); 5; '16'; (True,); @ + @; (@,);
    @[:1]; (1e300,); (1e-300,); set(@); @[::-1]; dict(enumerate(@)); (v for v in @)
"""
