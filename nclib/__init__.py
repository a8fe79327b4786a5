"""nclib: the small package behind *Small Norm, Large Margin*.

Chapters do ``import nclib as nc`` and need nothing else.
"""

from .book.claims import ClaimFailed, chapter, claim, claims_table
from .book.explore import Explorable, explore_curves, explore_flow, replay
from .book.plots import lines, panels, style
from .book.results import Result, result, save_result
from .collapse import CollapseStatistics, collapse, simplex_view
from .data import Data, data, from_arrays
from .experiments import binary_experiment, published_norm
from .networks.calibration import calibrate
from .networks.folding import fold
from .networks.gradients import per_sample_gradients
from .networks.last_layer import last_layer
from .networks.models import convnet, mlp, project_, resnet18
from .networks.norms import (
    balance,
    homogeneity_error,
    layer_norms,
    low_rank_distance,
    margins,
    normalised_margins,
    rho,
    stable_rank,
)
from .scale import base_seed, device, device_name, scale, scale_name, seeds
from .sweeps import SweepFailed, sweep
from .theory.bounds import MarginBound, margin_bound, margin_bound_over_grid, patch_radius, rademacher_bound
from .theory.closed_forms import (
    balanced_penalty,
    equilibrium_loss,
    equilibrium_norm,
    growth_clock,
    interpolant_from,
    linear_escape_time,
    margin_moments,
    minimum_norm,
    ridge,
    simplex_etf,
    ufm_minimiser,
)
from .theory.complexity import rademacher_ascent, rademacher_exact
from .theory.convex import convex_optimum
from .theory.flow import Flow, exact_flow, flow
from .theory.relu import tangent_kernel
from .theory.unconstrained import ufm_descent
from .training import train
from .training.optim import sgd
from .training.runs import Runs
from .training.steps import Steps, step_by_step

__version__ = "0.1.0"

__all__ = [
    "ClaimFailed",
    "CollapseStatistics",
    "Data",
    "Explorable",
    "Flow",
    "MarginBound",
    "Result",
    "Runs",
    "Steps",
    "SweepFailed",
    "balance",
    "balanced_penalty",
    "base_seed",
    "binary_experiment",
    "calibrate",
    "chapter",
    "claim",
    "claims_table",
    "collapse",
    "convex_optimum",
    "convnet",
    "data",
    "device",
    "device_name",
    "equilibrium_loss",
    "equilibrium_norm",
    "exact_flow",
    "explore_curves",
    "explore_flow",
    "flow",
    "fold",
    "from_arrays",
    "growth_clock",
    "homogeneity_error",
    "interpolant_from",
    "last_layer",
    "layer_norms",
    "linear_escape_time",
    "lines",
    "low_rank_distance",
    "margin_bound",
    "margin_bound_over_grid",
    "margin_moments",
    "margins",
    "minimum_norm",
    "mlp",
    "normalised_margins",
    "panels",
    "patch_radius",
    "per_sample_gradients",
    "project_",
    "published_norm",
    "rademacher_ascent",
    "rademacher_bound",
    "rademacher_exact",
    "replay",
    "resnet18",
    "result",
    "rho",
    "ridge",
    "save_result",
    "scale",
    "scale_name",
    "seeds",
    "sgd",
    "simplex_etf",
    "simplex_view",
    "stable_rank",
    "step_by_step",
    "style",
    "sweep",
    "tangent_kernel",
    "train",
    "ufm_descent",
    "ufm_minimiser",
]
