"""A report of one's own network: ``python -m nclib audit model.py:make --weights w.safetensors --data d.npz``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .auditing import audit

_PAGE = """\
<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Audit</title>
<meta name="color-scheme" content="light dark"><meta name="viewport" content="width=device-width"></head>
<body>{}</body></html>
"""


def _model(where: str, weights: str | None) -> nn.Module:
    """What a function of a file makes, with its weights."""
    file, _, name = where.partition(":")
    if not name or not Path(file).is_file():
        raise ValueError(f"{where}: expected FILE.py:FUNCTION, a function without arguments that makes the model")
    spec = importlib.util.spec_from_file_location("audited", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audited"] = module
    sys.path.insert(0, str(Path(file).resolve().parent))  # what the file imports from beside itself
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{where}: {file} has no {name}")
    model: nn.Module = getattr(module, name)()
    if weights is not None:
        model.load_state_dict(_state(weights))
    return model


def _state(path: str) -> dict[str, Any]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    inner: dict[str, Any] = state.get("state_dict", state)
    return inner


def _data(path: str) -> tuple[Any, Any]:
    with np.load(path) as held:
        names = [("x", "y"), ("inputs", "labels"), ("x_train", "y_train")]
        for x, y in names:
            if x in held and y in held:
                return held[x], held[y]
        raise ValueError(f"{path}: holds {', '.join(held)}; expected arrays x and y (or inputs and labels)")


def main(arguments: list[str] | None = None) -> int:
    """Print a report, or write it as JSON or as a page of HTML."""
    parser = argparse.ArgumentParser(
        prog="python -m nclib", description="The book's theory, read off one's own network."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("audit", help="read a trained network")
    command.add_argument("model", help="FILE.py:FUNCTION, a function without arguments that makes the model")
    command.add_argument("--weights", help="a .safetensors file, or a state_dict saved by torch.save")
    command.add_argument("--data", required=True, help="a .npz file with the training inputs x and labels y")
    command.add_argument("--weight-decay", type=float, help="λ of λ‖W‖²: half of torch.optim's weight_decay")
    command.add_argument("--lr", type=float)
    command.add_argument("--momentum", type=float, default=0.0)
    command.add_argument("--loss", choices=("square", "cross_entropy"))
    command.add_argument("--last-layer")
    command.add_argument("--device", help="e.g. cuda")
    command.add_argument("--json", metavar="FILE", help="write the report as JSON")
    command.add_argument("--html", metavar="FILE", help="write the report as a page")
    options = parser.parse_args(arguments)
    try:
        model, (x, y) = _model(options.model, options.weights), _data(options.data)
        model = model.to(options.device) if options.device else model
        report = audit(
            model, x, y, weight_decay=options.weight_decay, lr=options.lr, momentum=options.momentum,
            loss=options.loss, last_layer=options.last_layer,
        )  # fmt: skip
    except (ValueError, OSError, RuntimeError) as error:
        print(f"nclib audit: {error}", file=sys.stderr)
        return 2
    if options.json:
        Path(options.json).write_text(report.to_json() + "\n", encoding="utf-8")
    if options.html:
        Path(options.html).write_text(_PAGE.format(report._repr_html_()), encoding="utf-8")
    if not (options.json or options.html):
        print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
