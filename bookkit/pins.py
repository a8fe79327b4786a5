"""Print the versions installed beside this Python as pip constraints (``make pins``)."""

from __future__ import annotations

from importlib.metadata import distributions

#: Not pinned: the project itself, and what every virtual environment brings.
OURS = {"small-norm-large-margin", "pip", "setuptools", "wheel"}


def pins() -> list[str]:
    """``name==version`` of every installed distribution, sorted; PyTorch without its build tag."""
    found = {dist.metadata["Name"]: dist.version.partition("+")[0] for dist in distributions()}
    return sorted((f"{name}=={version}" for name, version in found.items() if name not in OURS), key=str.lower)


if __name__ == "__main__":
    print("# Exact versions of everything that a build installs, so that it can be repeated: `make pins`.")
    print("\n".join(pins()))
