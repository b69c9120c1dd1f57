"""The low-rank lens: what training does to each adapted matrix, as spectra, ranks and subspace angles over time."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lrx.callbacks.costs import Costs
from lrx.errors import UserError
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.modules.supervised import Supervised
from lrx.nn import spectrum
from lrx.nn.lowrank import LowRank, Pair, matrix
from lrx.nn.targets import KEYWORDS, find_targets, is_grouped
from lrx.schema import Settings

T = TypeVar("T")
DIRECT = ["query", "value"]  # what is looked at by default where a method trains the matrices themselves


@dataclass(frozen=True)
class Looking:
    """A matrix under the lens. ``update``: singular values and left vectors of dW; ``weight``: W0 + dW (m, n)."""

    name: str
    shape: tuple[int, int]
    update: Callable[[], tuple[Tensor, Tensor]]
    weight: Callable[[], Tensor]


class Lens(pl.Callback):
    """Appends a JSON line per recorded step and matrix to ``path``: at the start, every ``every`` steps, at the end.

    A line: ``step``; ``name``, ``shape`` of the matrix; ``weight``: the largest ``top`` singular values of W0 + dW, at
    the first and last recorded step and every ``weight_every`` steps, else empty; ``update``: those of dW;
    ``effective_rank``, ``stable_rank`` of dW; ``angles_start``, ``angles_previous``: principal angles (radians,
    ascending) between the span of the first r left singular vectors of dW now and at the first, or the previous,
    recorded step; ``seconds`` that the line took. r is ``rank``, or less where dW has a lower numerical rank. While dW
    is zero (before the first step where B = 0) its ranks are 0 and it spans nothing: no angles, and the first step
    with an update becomes the start. A matrix that is not finite any more leaves no line.

    dW of a low-rank pair is s B A, taken apart through its factors (``lrx.nn.spectrum``). Everything else (full
    fine-tuning, tuners of peft) is compared with a copy of the effective matrices at the start, m n elements each;
    an effective matrix is the layer's response to unit vectors. ``target_modules``: which matrices; None for all pairs
    of a low-rank method and all layers of a tuner, and for ``query`` and ``value`` where the whole network is trained.

    Training is not touched: no random numbers are drawn, and the time is taken off ``costs``. Peak memory includes it.
    """

    def __init__(
        self,
        path: Path,
        costs: Costs,
        *,
        every: int,
        weight_every: int | None,
        top: int,
        rank: int,
        target_modules: str | list[str] | None,
    ) -> None:
        self.path, self.costs = path, costs
        self.every, self.weight_every, self.top, self.rank = every, weight_every, top, rank
        self.target_modules = target_modules
        self.recorded_step = -1
        self.first: dict[str, Tensor] = {}  # matrix -> left basis (m, r) at the first recorded step with an update
        self.previous: dict[str, Tensor] = {}
        self.recordings, self.seconds = 0, 0.0
        self._matrices: list[Looking] = []
        self._resumed = False

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Find the matrices; a resumed run has not yet loaded its checkpoint, so these are the initial weights."""
        assert isinstance(module, Supervised)
        if trainer.is_global_zero:
            self._matrices = look_at(module.method, module.backbone, self.target_modules)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Drop lines after the checkpoint that this run resumes from; a run that begins is recorded first."""
        if not trainer.is_global_zero:
            return
        kept = []
        if self._resumed and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= trainer.global_step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill cut short
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(kept), encoding="utf-8")
        if not self._resumed:
            self._record(trainer.global_step, weight=True)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        assert isinstance(module, Supervised)
        if not trainer.is_global_zero or step == self.recorded_step:
            return
        last = step == module.schedule.steps or trainer.should_stop
        weight = last or (self.weight_every is not None and step % self.weight_every == 0)
        if weight or step % self.every == 0:
            self._record(step, weight=weight)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.recordings:
            print(f"lens: {self.recordings} recordings of {len(self._matrices)} matrices, "
                  f"{self.seconds / self.recordings:.2f} s each: {self.path}", flush=True)  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.recorded_step, "first": dict(self.first), "previous": dict(self.previous)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = True
        self.recorded_step = state_dict["step"]
        self.first, self.previous = dict(state_dict["first"]), dict(state_dict["previous"])

    @torch.no_grad()
    def _record(self, step: int, *, weight: bool) -> None:
        begun = time.perf_counter()
        found = (self._line(step, matrix, weight) for matrix in self._matrices)
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in found if line is not None]
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
        self.recorded_step = step
        spent = time.perf_counter() - begun
        self.recordings, self.seconds = self.recordings + 1, self.seconds + spent
        self.costs.leave_out(spent)

    def _line(self, step: int, matrix: Looking, weight: bool) -> dict[str, Any] | None:
        begun = time.perf_counter()
        try:
            values, left = matrix.update()
        except torch.linalg.LinAlgError:  # NaN or infinite: the run is about to be recorded as diverged
            return None
        if not values.isfinite().all():
            return None
        basis = left[:, : min(self.rank, spectrum.numerical_rank(values, *matrix.shape))].contiguous()
        angles = {}
        for key, store in (("angles_start", self.first), ("angles_previous", self.previous)):
            earlier = store.get(matrix.name)
            angles[key] = [] if earlier is None else spectrum.principal_angles(earlier, basis).tolist()
        if basis.shape[1]:
            self.first.setdefault(matrix.name, basis)
            self.previous[matrix.name] = basis
        else:
            self.previous.pop(matrix.name, None)
        return {
            "step": step,
            "name": matrix.name,
            "shape": list(matrix.shape),
            "weight": spectrum.singular_values(matrix.weight())[: self.top].tolist() if weight else [],
            "update": values[: self.top].tolist(),
            "effective_rank": spectrum.effective_rank(values),
            "stable_rank": spectrum.stable_rank(values),
            **angles,
            "seconds": round(time.perf_counter() - begun, 4),
        }


def lens_of(settings: Settings, folder: Path, costs: Costs) -> list[pl.Callback]:
    """The lens that ``callbacks.lens`` asks for, writing ``folder/lens.jsonl``; none where it is null."""
    choice = settings.callbacks.lens
    if choice is None:
        return []
    if settings.trainer.strategy.startswith("fsdp"):
        raise UserError("callbacks=lens: trainer=fsdp leaves no process a whole matrix to look at; use ddp, or no lens")
    return [Lens(folder / "lens.jsonl", costs, **choice.model_dump())]


def look_at(method: Method, backbone: Backbone, target_modules: str | list[str] | None) -> list[Looking]:
    """The adapted matrices of ``backbone`` in registration order, as they are now.

    Raises ``UserError`` when ``target_modules`` selects none of them, or the method adapts none at all.
    """
    if pairs := method.pairs(backbone):
        chosen = _selected({pair.name: pair for pair in pairs}, backbone, target_modules)
        found = [_absorbing(pair) if method.moves_base else _factored(pair) for pair in chosen.values()]
    elif layers := tuned_layers(backbone):
        found = [_compared(*item) for item in _selected(layers, backbone, target_modules).items()]
    else:
        layers = {name: layer for name, layer in backbone.net.named_modules() if is_matrix(layer)}
        own = {
            name: layer for name, layer in layers.items() if layer.weight.requires_grad and not backbone.in_head(name)
        }
        usual = DIRECT if set(DIRECT) <= set(backbone.roles) else "all"
        found = [_compared(*item) for item in _selected(own, backbone, target_modules or usual).items()]
    if not found:
        wish = "" if target_modules is None else f" among callbacks.lens.target_modules={target_modules}"
        raise UserError(f"callbacks=lens: method={method.name} changes no matrix of this model{wish}; leave it out")
    return found


def _selected(layers: dict[str, T], backbone: Backbone, target_modules: str | list[str] | None) -> dict[str, T]:
    """Those of ``layers`` that ``target_modules`` selects."""
    if target_modules is None:
        return layers
    if isinstance(target_modules, str) and target_modules in KEYWORDS:
        kept = KEYWORDS[target_modules]
        return {name: layer for name, layer in layers.items() if isinstance(inner(backbone, name), kept)}
    kinds = (nn.Module,)  # an adapted layer may be of any class
    try:
        rule: dict[str, Any] = {"roles": backbone.roles, "head": backbone.head, "kinds": kinds, "grouped": True}
        names = find_targets(backbone.net, target_modules, **rule)
    except UserError as error:
        raise UserError(str(error).replace("method.target_modules", "callbacks.lens.target_modules")) from None
    return {name: layer for name, layer in layers.items() if name in names}


def tuned_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """Layers of peft, and low-rank ones whose method has no pairs, around a linear one or a convolution."""
    return {
        name: module
        for name, module in backbone.net.named_modules()
        if not backbone.in_head(name)
        and (isinstance(module, LowRank) or isinstance(getattr(module, "base_layer", None), nn.Linear | nn.Conv2d))
    }


def is_matrix(layer: nn.Module) -> bool:
    """Whether a layer's weight is one matrix: a linear layer, or a convolution in one group."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and not is_grouped(layer))


def inner(backbone: Backbone, name: str) -> nn.Module:
    """The layer of that name, or the one that an adapter wraps there."""
    layer = backbone.net.get_submodule(name)
    return getattr(layer, "base_layer", None) or getattr(layer, "base", None) or layer


def _factored(pair: Pair) -> Looking:
    m, n = pair.weight.shape
    return Looking(pair.name, (m, n), lambda: spectrum.factored_svd(*pair.change(), pair.scaling), lambda: _whole(pair))


def _absorbing(pair: Pair) -> Looking:
    """A pair whose W takes in parts of the update: compared with what the whole was at the start."""
    m, n = pair.weight.shape
    start = _whole(pair)
    return Looking(pair.name, (m, n), lambda: spectrum.dense_svd(_whole(pair) - start), lambda: _whole(pair))


def _whole(pair: Pair) -> Tensor:
    """The effective matrix (m, n) on the CPU in float64."""
    B, A = (factor.detach().cpu().double() for factor in pair.change())
    return pair.weight.detach().cpu().double() + pair.scaling * (B @ A)


def _compared(name: str, layer: nn.Module) -> Looking:
    start = response(layer)
    m, n = start.shape
    return Looking(name, (m, n), lambda: spectrum.dense_svd(response(layer) - start), lambda: response(layer))


@torch.no_grad()
def response(layer: nn.Module) -> Tensor:
    """The (m, n) matrix by which a linear-like layer acts, adapters included and dropout off, as a copy on the CPU."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return matrix(layer).detach().to("cpu", copy=True)
    if isinstance(layer, LowRank):
        return matrix(copy.deepcopy(layer).merged()).detach().cpu()
    base: Any = getattr(layer, "base_layer", layer)
    if isinstance(base, nn.Conv2d):  # unit vectors would have to be laid under the kernel, whatever the padding
        folded: Any = copy.deepcopy(layer).eval()
        folded.merge()
        return matrix(folded.get_base_layer()).detach().to("cpu", copy=True)
    modes = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        with torch.autocast(base.weight.device.type, enabled=False):
            unit = torch.eye(base.in_features, dtype=base.weight.dtype, device=base.weight.device)
            nothing = torch.zeros_like(unit[:1])
            return (layer(unit) - layer(nothing)).mT.contiguous().cpu()
    finally:
        for module, mode in modes:
            module.training = mode
