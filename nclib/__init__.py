"""nclib: the small package behind *Small Norm, Large Margin*.

Chapters do ``import nclib as nc`` and need nothing else. Most names are loaded on first use, so that the import
itself costs little more than PyTorch's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# These functions bear the names of their modules; imported here, so that the function wins over the module.
from .collapse import collapse as collapse
from .data import data as data
from .flow import flow as flow
from .scale import scale as scale
from .training.train import train as train

if TYPE_CHECKING:
    from .bounds import MarginBound as MarginBound
    from .bounds import margin_bound as margin_bound
    from .bounds import margin_bound_over_grid as margin_bound_over_grid
    from .bounds import patch_radius as patch_radius
    from .bounds import rademacher_bound as rademacher_bound
    from .claims import ClaimFailed as ClaimFailed
    from .claims import chapter as chapter
    from .claims import claim as claim
    from .claims import claims_table as claims_table
    from .closed_forms import balanced_penalty as balanced_penalty
    from .closed_forms import equilibrium_loss as equilibrium_loss
    from .closed_forms import equilibrium_norm as equilibrium_norm
    from .closed_forms import growth_clock as growth_clock
    from .closed_forms import interpolant_from as interpolant_from
    from .closed_forms import linear_escape_time as linear_escape_time
    from .closed_forms import margin_moments as margin_moments
    from .closed_forms import minimum_norm as minimum_norm
    from .closed_forms import ridge as ridge
    from .closed_forms import simplex_etf as simplex_etf
    from .closed_forms import ufm_minimiser as ufm_minimiser
    from .collapse import CollapseStatistics as CollapseStatistics
    from .collapse import simplex_view as simplex_view
    from .complexity import rademacher_ascent as rademacher_ascent
    from .complexity import rademacher_exact as rademacher_exact
    from .convex import convex_optimum as convex_optimum
    from .data import Data as Data
    from .data import from_arrays as from_arrays
    from .experiments import binary_experiment as binary_experiment
    from .experiments import published_norm as published_norm
    from .explore import Explorable as Explorable
    from .explore import explore_curves as explore_curves
    from .explore import explore_flow as explore_flow
    from .explore import replay as replay
    from .flow import Flow as Flow
    from .flow import exact_flow as exact_flow
    from .networks.calibration import calibrate as calibrate
    from .networks.folding import fold as fold
    from .networks.gradients import per_sample_gradients as per_sample_gradients
    from .networks.last_layer import last_layer as last_layer
    from .networks.models import convnet as convnet
    from .networks.models import mlp as mlp
    from .networks.models import project_ as project_
    from .networks.models import resnet18 as resnet18
    from .networks.norms import balance as balance
    from .networks.norms import homogeneity_error as homogeneity_error
    from .networks.norms import layer_norms as layer_norms
    from .networks.norms import low_rank_distance as low_rank_distance
    from .networks.norms import margins as margins
    from .networks.norms import normalised_margins as normalised_margins
    from .networks.norms import rho as rho
    from .networks.norms import stable_rank as stable_rank
    from .plots import lines as lines
    from .plots import panels as panels
    from .plots import style as style
    from .relu import tangent_kernel as tangent_kernel
    from .scale import base_seed as base_seed
    from .scale import device as device
    from .scale import device_name as device_name
    from .scale import scale_name as scale_name
    from .scale import seeds as seeds
    from .store import Result as Result
    from .store import result as result
    from .store import save_result as save_result
    from .sweeps import SweepFailed as SweepFailed
    from .sweeps import sweep as sweep
    from .training.optim import sgd as sgd
    from .training.results import Runs as Runs
    from .training.steps import Steps as Steps
    from .training.steps import step_by_step as step_by_step
    from .unconstrained import ufm_descent as ufm_descent

__version__ = "0.1.0"

#: Where each public name lives.
_HOME = {
    "bounds": ["MarginBound", "margin_bound", "margin_bound_over_grid", "patch_radius", "rademacher_bound"],
    "networks.calibration": ["calibrate"],
    "claims": ["ClaimFailed", "chapter", "claim", "claims_table"],
    "closed_forms": [
        "balanced_penalty",
        "equilibrium_loss",
        "equilibrium_norm",
        "growth_clock",
        "interpolant_from",
        "linear_escape_time",
        "margin_moments",
        "minimum_norm",
        "ridge",
        "simplex_etf",
        "ufm_minimiser",
    ],
    "collapse": ["CollapseStatistics", "collapse", "simplex_view"],
    "complexity": ["rademacher_ascent", "rademacher_exact"],
    "convex": ["convex_optimum"],
    "data": ["Data", "data", "from_arrays"],
    "explore": ["Explorable", "explore_curves", "explore_flow", "replay"],
    "experiments": ["binary_experiment", "published_norm"],
    "flow": ["Flow", "exact_flow", "flow"],
    "networks.folding": ["fold"],
    "networks.gradients": ["per_sample_gradients"],
    "networks.last_layer": ["last_layer"],
    "networks.models": ["convnet", "mlp", "project_", "resnet18"],
    "networks.norms": [
        "balance",
        "homogeneity_error",
        "layer_norms",
        "low_rank_distance",
        "margins",
        "normalised_margins",
        "rho",
        "stable_rank",
    ],
    "training.optim": ["sgd"],
    "plots": ["lines", "panels", "style"],
    "training.results": ["Runs"],
    "relu": ["tangent_kernel"],
    "training.steps": ["Steps", "step_by_step"],
    "scale": ["base_seed", "device", "device_name", "scale", "scale_name", "seeds"],
    "store": ["Result", "result", "save_result"],
    "sweeps": ["SweepFailed", "sweep"],
    "training.train": ["train"],
    "unconstrained": ["ufm_descent"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'nclib' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
