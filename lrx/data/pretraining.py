"""Where weights lie that are made on this machine once, by a recipe of ``lrx/models/pretrain.py``, and whether they do.

Torch-free: the command line looks before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lrx.data.embedded import cache_dir
from lrx.errors import UserError, did_you_mean

COMMAND = "python -m lrx pretrain"
# Recipe -> its version, which is part of the folder's name: raise it when the recipe would make other weights.
VERSIONS = {"mini_vit": 1}
WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"


def folder(name: str, root: Path | None = None) -> Path:
    """Where recipe ``name`` leaves what it makes. Raises ``UserError`` for a name that is not known."""
    if name not in VERSIONS:
        raise UserError(f"no recipe makes weights called {name!r}; {did_you_mean(name, VERSIONS)}")
    return (root or cache_dir()) / f"{name}-{VERSIONS[name]}"


def made(name: str, root: Path | None = None) -> Path:
    """The folder with the weights of recipe ``name``, whole by the hash in their manifest.

    Raises ``UserError`` with the command that makes them.
    """
    place = folder(name, root)
    try:
        expected = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        with (place / WEIGHTS).open("rb") as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == expected
    except FileNotFoundError:
        raise UserError(
            f"model={name}: its weights are not in {place}; make them once, in minutes, with: {COMMAND} {name}"
        ) from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{place} is damaged; delete it and make the weights again with: {COMMAND} {name}")
    return place
