"""The package as a whole: its names, its import, its errors."""

import subprocess
import sys

from conftest import ROOT

import nclib as nc


def test_every_public_name_is_there_and_documented():
    for name in nc.__all__:
        thing = getattr(nc, name)
        assert type(thing).__name__ != "module", f"nc.{name} is a module, not what the name promises"
        assert thing.__doc__, f"nc.{name} has no docstring"


def test_names_do_not_depend_on_the_order_of_import():
    """Functions named like their module (nc.data, nc.flow, …) must not be shadowed by it."""
    code = (
        "import importlib, pathlib, nclib\n"
        "for file in pathlib.Path(nclib.__file__).parent.rglob('*.py'):\n"
        "    name = '.'.join(file.relative_to(pathlib.Path(nclib.__file__).parents[1]).with_suffix('').parts)\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
        "modules = [n for n in nclib.__all__ if type(getattr(nclib, n)).__name__ == 'module']\n"
        "assert not modules, modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["pandas", "scipy", "matplotlib", "seaborn", "sklearn", "pooch", "tqdm", "cvxpy", "dask", "IPython"]
    code = (
        "import torch, sys; before = set(sys.modules); import nclib; "
        f"print([m for m in {heavy} if m in set(sys.modules) - before])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_the_readme_s_example_runs(capsys):
    text = (ROOT / "README.md").read_text("utf-8")
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    assert "rho_eq" in capsys.readouterr().out
