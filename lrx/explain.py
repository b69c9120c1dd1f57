"""One line for a user's mistake, from whatever Hydra, OmegaConf or the system raised about it."""

from __future__ import annotations

import re

from omegaconf.errors import OmegaConfBaseException

from lrx import paths
from lrx.errors import UserError, did_you_mean


def explain(error: BaseException) -> str | None:
    """One line for a user's mistake, or None when ``error`` is a defect of ours and its traceback is wanted."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        folder, _, choice = str(error.missing_cfg_file).rpartition("/")
        if folder.startswith("model/for"):
            return f"model: this task has no default backbone at scale {folder.split('/')[2]!r}; give model=NAME"
        group, _, inside = folder.partition("/")
        if inside:  # task=lra/listop
            choice = f"{inside}/{choice}"
            return f"{group}={choice}: no such option; {did_you_mean(choice, options(group))}"
        return f"{group or 'config'}={choice}: no such option; {did_you_mean(choice, error.options or options(group))}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {_first_line(error)} (the form is key=value)"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and cause.parent_node is not None:
        key = str(cause.full_key)
        names = [str(name) for name in getattr(cause.parent_node, "keys", list)()]
        if not names:  # a mapping that is filled freely, such as method.options
            return f"{key}: not set yet; add it with a plus: +{key}=VALUE"
        return f"{key}: no such key; {did_you_mean(key.rpartition('.')[2], names)}"
    if isinstance(error, OmegaConfBaseException | HydraException):
        text = _first_line(error)
        if match := re.match(r"Could not override '([^']+)'\.? ?No match in the defaults list", text):
            return f"{match[1]}: no such group; {did_you_mean(match[1], groups())}"
        return text + (f" ({_first_line(cause)})" if cause else "")
    if isinstance(error, ValueError) and _inside_hydra(error):
        return f"cannot compose the configuration: {_first_line(error)} (the form of an override is key=value)"
    if isinstance(error, ValueError) and isinstance(cause, OSError):  # Python's logging wraps what the disk refuses
        error = cause
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'a file the run writes'}; check paths.root and the disk"
    return None


def _inside_hydra(error: BaseException) -> bool:
    """Whether the error was raised by Hydra's or OmegaConf's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return name.startswith(("hydra.", "omegaconf."))


def groups() -> list[str]:
    return ["sweeps", *(p.name for p in paths.conf_dir().iterdir() if p.is_dir())]


def options(group: str) -> list[str]:
    folder = paths.sweeps_dir() if group == "sweeps" else paths.conf_dir() / group
    found = folder.glob("**/*.yaml" if group == "task" else "*.yaml")  # a suite's data sets: lra/listops
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in found)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).strip().splitlines()[:1])
