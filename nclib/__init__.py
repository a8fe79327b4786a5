"""nclib: the small package behind *Small Norm, Large Margin*.

Chapters do ``import nclib as nc`` and need nothing else.
"""

from .auditing import audit
from .auditing.watch import Watch
from .book.claims import ClaimFailed, chapter, claim
from .book.explore import explore_curves, explore_flow, replay
from .book.plots import confidence_interval, lines, panels
from .book.results import result
from .collapse import CollapseStatistics, collapse, simplex_view
from .collapse.split import mse_split
from .data import Data, data, from_arrays
from .networks.models import convnet, mlp, resnet18
from .networks.normalisation import calibrate, fold
from .networks.readings import balance, last_layer, low_rank_distance, margins, per_sample_gradients, rho
from .scale import device, scale, seeds
from .theory.bounds import (
    margin_bound,
    margin_bound_over_grid,
    patch_radius,
    rademacher_ascent,
    rademacher_bound,
    rademacher_exact,
)
from .theory.closed_forms import (
    equilibrium_loss,
    equilibrium_norm,
    growth_clock,
    interpolant_from,
    linear_escape_time,
    minimum_norm,
    ridge,
    simplex_etf,
    ufm_minimiser,
)
from .theory.flow import exact_flow, flow
from .theory.optima import convex_optimum, ufm_descent
from .theory.relu import tangent_kernel
from .training import train
from .training.optim import sgd
from .training.steps import step_by_step

__version__ = "0.1.0"

__all__ = [
    "ClaimFailed",
    "CollapseStatistics",
    "Data",
    "Watch",
    "audit",
    "balance",
    "calibrate",
    "chapter",
    "claim",
    "collapse",
    "confidence_interval",
    "convex_optimum",
    "convnet",
    "data",
    "device",
    "equilibrium_loss",
    "equilibrium_norm",
    "exact_flow",
    "explore_curves",
    "explore_flow",
    "flow",
    "fold",
    "from_arrays",
    "growth_clock",
    "interpolant_from",
    "last_layer",
    "linear_escape_time",
    "lines",
    "low_rank_distance",
    "margin_bound",
    "margin_bound_over_grid",
    "margins",
    "minimum_norm",
    "mlp",
    "mse_split",
    "panels",
    "patch_radius",
    "per_sample_gradients",
    "rademacher_ascent",
    "rademacher_bound",
    "rademacher_exact",
    "replay",
    "resnet18",
    "result",
    "rho",
    "ridge",
    "scale",
    "seeds",
    "sgd",
    "simplex_etf",
    "simplex_view",
    "step_by_step",
    "tangent_kernel",
    "train",
    "ufm_descent",
    "ufm_minimiser",
]
