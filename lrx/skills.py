"""The skill library: low-rank skills of a policy as files, one pair for each: ``NAME.safetensors`` and ``NAME.json``.

They lie in ``<paths.root>/skills``. The tensors of layer L are ``L.A`` (rank, inputs) and ``L.B`` (rank, outputs), the
transpose of the paper's B, in float32; the JSON says rank, scale, and where the skill comes from. Torch is imported
only to read or write tensors, so that ``python -m lrx skills`` answers at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrx.errors import UserError, did_you_mean
from lrx.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = "skills"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Skill:
    """``tensors``: see above. ``about``: ``kind``, ``task``, ``run`` and what else is known of where it comes from."""

    name: str
    tensors: Mapping[str, Any]
    rank: int
    scale: float
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls, name: str, layers: Mapping[str, Any], place: int, rank: int, scale: float, about: Mapping[str, Any]
    ) -> Skill:
        """Skill number ``place`` of a network's layers (``lrx.nn.skills.layers``), by its averages."""
        tensors: dict[str, Any] = {}
        for key, layer in layers.items():
            tensors[f"{key}.A"] = layer.mean_A[place].detach().cpu().clone()
            tensors[f"{key}.B"] = layer.mean_B[place].detach().cpu().clone()
        return cls(name, tensors, rank, scale, about)

    def write(self, library: str | Path | None) -> Path:
        """Store it in the folder ``library``, in the place of an earlier one of this name; the JSON's path."""
        from safetensors.torch import save

        folder = _folder(library)
        data = save(dict(self.tensors))
        size = sum(tensor.numel() for tensor in self.tensors.values())
        known = {"rank": self.rank, "scale": self.scale, "parameters": size, "sha256": hashlib.sha256(data).hexdigest()}
        write_atomic(folder / f"{self.name}.safetensors", data)
        return write_atomic(folder / f"{self.name}.json", json.dumps({**self.about, **known}, indent=1))

    def put(self, layers: Mapping[str, Any], place: int, rank: int, scale: float) -> None:
        """Make it skill number ``place`` of a network's layers. Raises ``UserError`` where it does not fit them."""
        if (self.rank, self.scale) != (rank, scale):
            raise UserError(
                f"method.skills: {self.name!r} has rank {self.rank} and scale {self.scale:g}, this run {rank} and "
                f"{scale:g}; set method.rank and method.scale to the skill's"
            )
        for key, layer in layers.items():
            for factor, mean in (("A", layer.mean_A), ("B", layer.mean_B)):
                found = self.tensors.get(f"{key}.{factor}")
                here = tuple(mean.shape[1:])
                if found is None or tuple(found.shape) != here:
                    there = "lacks it" if found is None else f"has {tuple(found.shape)}"
                    raise UserError(
                        f"method.skills: {self.name!r} is no skill of this policy: {key}.{factor} is {here} here, and "
                        f"the skill {there}; it comes from task {self.about.get('task', 'unknown')}"
                    )
                mean[place].copy_(found)
        if extra := set(self.tensors) - {f"{key}.{factor}" for key in layers for factor in "AB"}:
            raise UserError(f"method.skills: {self.name!r} is no skill of this policy, which has no {sorted(extra)[0]}")


def check_name(name: str) -> None:
    """Raise ``UserError`` for what cannot be a skill's name."""
    if not _NAME.fullmatch(name):
        raise UserError(f"method.save={name!r}: a skill's name has letters, digits, '_', '-' and '.' only")


def names(library: str | Path | None) -> list[str]:
    """Of the stored skills, sorted."""
    return sorted(path.stem for path in _folder(library).glob("*.json"))


def about(name: str, library: str | Path | None) -> dict[str, Any]:
    """What the JSON of a stored skill says. Raises ``UserError`` for a name that is not there or a broken file."""
    path = _folder(library) / f"{name}.json"
    known = names(library)
    if name not in known:
        nearest = did_you_mean(name, known) if known else "none is stored there; method.save=NAME stores one"
        raise UserError(f"no skill is called {name!r} in {path.parent}; {nearest}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["rank"], found["scale"], found["sha256"], found["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete it, or store the skill again") from None
    return dict(found)


def load(wanted: Sequence[str], library: str | Path | None) -> list[Skill]:
    """The skills called ``wanted``, in this order. Raises ``UserError`` as ``about`` does."""
    found = []
    for name in wanted:
        known = about(name, library)
        path = _folder(library) / f"{name}.safetensors"
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != known["sha256"]:
            raise UserError(f"{path} is damaged or gone; store the skill again")
        from safetensors.torch import load as read

        found.append(Skill(name, read(data), int(known["rank"]), float(known["scale"]), known))
    return found


def digests(wanted: Sequence[str], library: str | Path | None) -> dict[str, str]:
    """Name -> SHA-256 of a stored skill's tensors: what a run that uses it is identified by."""
    return {name: str(about(name, library)["sha256"]) for name in wanted}


def _folder(library: str | Path | None) -> Path:
    if library is None:
        raise UserError("method.library is null: give the folder of the stored skills")
    return Path(library)


def show(root: Path, console: Console) -> None:
    """A line for each skill stored below ``root``; one that cannot be read is named."""
    from rich.table import Table

    from lrx.desk import plain

    library = root / FOLDER
    if not (known := names(library)):
        console.print(plain(f"no skill is stored in {library}; python run.py method=psec method.save=NAME stores one"))
        return
    columns = ("name", "task", "kind", "rank", "scale", "parameters", "run")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, header_style="dim", no_wrap=column == "name")
    for name in known:
        try:
            found: dict[str, Any] = {"name": name, **about(name, library)}
        except UserError as error:
            console.print(plain(f"skipped: {error}"))
            continue
        found["task"] = found.get("part", found.get("task", ""))
        table.add_row(*(plain(found.get(column, "")) for column in columns))
    console.print(table)
