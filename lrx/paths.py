"""Where the configuration and the sweeps are: in the repository, or beside the package in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    """``conf`` and ``sweeps`` stand beside the package in a checkout and inside it in a wheel."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def conf_dir() -> Path:
    """The folder of config groups."""
    return _shipped("conf")


def sweeps_dir() -> Path:
    """The folder of sweep files."""
    return _shipped("sweeps")


def search_root() -> Path:
    """The folder whose ``sweeps/`` Hydra finds as the config group ``sweeps``."""
    return sweeps_dir().parent
