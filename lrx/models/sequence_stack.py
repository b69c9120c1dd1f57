"""Stacks of state-space layers over long sequences (S4, S4D, S5, S4-PTD, S5-PTD), and the Transformer beside them.

Encoder (an embedding, or a linear map of real values), ``depth`` residual blocks, the mean over the true length, a
linear decoder. For pairs of sequences both are encoded by the same stack, and [x1, x2, x1-x2, x1*x2] goes through an
MLP of one hidden layer, as in S4's decoder for retrieval. All weights are new.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.nn.ssm import initial
from lrx.nn.ssm.block import AttentionBlock, Mixer, Norm, SystemBlock, sinusoids
from lrx.nn.ssm.systems import State, System

GROUPS = ("A", "B", "dt")
ATTENTION = {
    "query": r"query", "key": r"key", "value": r"value", "output": r"blocks\.\d+\.output",
    "mlp_in": r"mlp_in", "mlp_out": r"mlp_out",
}  # fmt: skip


class SequenceStack(Model):
    """A stack to be trained from scratch.

    ``layer``: ``s4`` (diagonal plus rank one), ``s4d`` (diagonal), ``s5`` (one system for all channels) or
    ``transformer``. ``init``: ``legs``, ``ptd``, of s4d ``lin``, ``inv``, ``real``, ``random`` too. ``width``: channels
    H. ``state``: real states N of a channel, of s5 of the layer; an even number. ``copies``: independent copies of
    (A, B) among the channels (s4, s4d). ``blocks``: HiPPO matrices on the diagonal of s5. ``bidirectional``: read both
    ways. ``discretization``: ``bilinear`` or ``zoh``; of s4 bilinear. ``dt_min``, ``dt_max``: range of the first steps.
    ``clamp``: the largest |Im B| of init=legs (null: exact HiPPO; 2 in the official code since v4). ``c_init``:
    how s5 draws C. ``gamma``: weight of the perturbation's size in init=ptd; ``share``: its closed form instead.
    ``clip_eigs``: cut Re A of s5 at -1e-4. ``gate``, ``norm``, ``norm_momentum``, ``prenorm``, ``dropout``: of the
    blocks. ``slow``: which of A, B, dt train at ``slow_lr`` at most (0: not at all), ``undecayed``: which have no
    weight decay; null: all three. ``fixed``: which do not train; null: none. ``heads``, ``mlp``: of the Transformer,
    ``mlp`` its hidden width. ``pool``: the ``mean`` over the steps, or the ``last`` one.
    ``weights``: there are only ``random`` ones.
    """

    name: ClassVar[str] = "sequence_stack"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        layer: Literal["s4", "s4d", "s5", "transformer"],
        init: Literal["legs", "lin", "inv", "real", "random", "ptd"] = "legs",
        depth: int = 4,
        width: int = 64,
        state: int = 64,
        copies: int = 1,
        blocks: int = 1,
        bidirectional: bool = True,
        discretization: Literal["zoh", "bilinear"] = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        clamp: float | None = None,
        c_init: Literal["lecun", "trunc", "complex_normal"] = "lecun",
        clip_eigs: bool = True,
        gamma: float = 10.0,
        share: float | None = None,
        gate: Literal["glu", "half_glu1", "half_glu2"] = "glu",
        norm: Literal["layer", "batch"] = "layer",
        norm_momentum: float = 0.1,
        prenorm: bool = True,
        dropout: float = 0.0,
        slow: list[str] | None = None,
        undecayed: list[str] | None = None,
        fixed: list[str] | None = None,
        slow_lr: float = 0.001,
        heads: int = 4,
        mlp: int = 128,
        pool: Literal["mean", "last"] = "mean",
        weights: Literal["random"] = "random",
    ) -> None:
        for key, value in {"depth": depth, "width": width, "heads": heads, "mlp": mlp}.items():
            if value < 1:
                raise UserError(f"model.{key}={value}: must be at least 1")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: a dropout probability lies in [0, 1)")
        if not 0 < norm_momentum <= 1:
            raise UserError(f"model.norm_momentum={norm_momentum}: the share of a new batch lies in (0, 1]")
        if not slow_lr >= 0:
            raise UserError(f"model.slow_lr={slow_lr}: a learning rate must not be negative")
        self.slow = _groups("slow", slow)
        self.undecayed = _groups("undecayed", undecayed)
        self.fixed = _groups("fixed", fixed or [])
        self.layer, self.depth, self.width, self.slow_lr, self.pool = layer, depth, width, slow_lr, pool
        self.gate, self.norm, self.momentum, self.prenorm, self.dropout = gate, norm, norm_momentum, prenorm, dropout
        self.heads, self.mlp, self.bidirectional, self.weights = heads, mlp, bidirectional, weights
        self.start: initial.Start | None = None
        if layer == "transformer":
            if width % heads:
                raise UserError(f"model.heads={heads}: must divide the width {width}")
            return
        self.start = initial.Start(
            layer=layer,
            init=init,
            width=width,
            state=state,
            copies=copies,
            blocks=blocks,
            bidirectional=bidirectional,
            discretization=discretization,
            dt_min=dt_min,
            dt_max=dt_max,
            clamp=clamp,
            c_init=c_init,
            clip_eigs=clip_eigs,
            gamma=gamma,
            share=share,
        )
        initial.check(self.start)

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """Raises ``UserError`` for a task that gives no sequences or asks for no scores."""
        if inputs.kind != "sequence":
            raise UserError(f"model: this one reads long sequences, this task gives {inputs.kind}; choose another")
        if outputs.kind == "text":
            raise UserError("model: a sequence classifier writes no text, which this task asks for; choose another")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rng = np.random.default_rng(seed)
            blocks = [self._block(inputs.max_length, rng) for _ in range(self.depth)]
            # S5 ends without a norm.
            last = self._norm() if self.prenorm and self.layer != "s5" else None
            net = Stack(inputs, outputs.size, self.width, blocks, last, self.pool)
        roles = ATTENTION if self.start is None else {"output": r"mixer\.output"}
        backbone = SequenceBackbone(net, head=["decoder"], roles=roles, reads="sequence")
        backbone.rates = self._rates(net)
        return backbone

    def _norm(self) -> Norm:
        return Norm(self.norm, self.width, self.momentum)

    def _block(self, length: int, rng: np.random.Generator) -> nn.Module:
        shared: dict[str, Any] = {"prenorm": self.prenorm, "dropout": self.dropout}
        if self.start is None:
            norms, causal = (self._norm(), self._norm()), not self.bidirectional
            return AttentionBlock(self.width, self.heads, self.mlp, norms, causal=causal, **shared)
        s5 = self.layer == "s5"
        mixer = Mixer(self.gate, self.width, self.dropout, before=not s5, approximate=s5)
        return SystemBlock(initial.system(self.start, length, rng), mixer, self._norm(), **shared)

    def _rates(self, net: nn.Module) -> dict[str, dict[str, float]]:
        rates: dict[str, dict[str, float]] = {}
        for prefix, module in net.named_modules():
            if isinstance(module, System):
                own = dict(module.named_parameters())
                for group in GROUPS:
                    rate = {"lr": self.slow_lr} if group in self.slow else {}
                    rate |= {"lr": 0.0} if group in self.fixed else {}
                    rate |= {"weight_decay": 0.0} if group in self.undecayed else {}
                    rates |= {f"{prefix}.{name}": rate for name in module.groups[group] if name in own and rate}
        return rates


class Stack(nn.Module):
    """``forward(x, lengths)``: ids (batch, L) or values (batch, L, features), true lengths (batch,) -> (batch, size).

    With ``pairs``, ``forward(x, lengths, x_b, lengths_b)``. A stack that reads forwards only has a recurrent form too:
    ``start(batch)`` and ``step(x, state)``, at one cost for every step, in evaluation mode.
    """

    def __init__(
        self, inputs: Inputs, size: int, width: int, blocks: list[nn.Module], last: Norm | None, pool: str
    ) -> None:
        super().__init__()
        self.encoder: nn.Module = (
            nn.Embedding(inputs.vocabulary, width) if inputs.vocabulary else nn.Linear(inputs.features, width)
        )
        self.blocks, self.last, self.pool, self.pairs = nn.ModuleList(blocks), last, pool, inputs.pairs
        if inputs.pairs:
            self.decoder: nn.Module = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, size))
        else:
            self.decoder = nn.Linear(width, size)

    def forward(self, x: Tensor, lengths: Tensor, x_b: Tensor | None = None, lengths_b: Tensor | None = None) -> Tensor:
        if not self.pairs:
            return self.decoder(self._encode(x, lengths))
        assert x_b is not None
        assert lengths_b is not None
        longest = max(x.shape[1], x_b.shape[1])  # together, so that a batch norm sees both
        x, x_b = (F.pad(one, (0, 0) * (one.ndim - 2) + (0, longest - one.shape[1])) for one in (x, x_b))
        first, second = self._encode(torch.cat([x, x_b]), torch.cat([lengths, lengths_b])).chunk(2)
        return self.decoder(torch.cat([first, second, first - second, first * second], dim=-1))

    def _encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        """-> (batch, H): the mean over the true length, or the last step of it."""
        length = x.shape[1]
        shortest = int(lengths.min()) if len(lengths) else 1
        if length < 1 or shortest < 1:
            raise UserError("task: a sequence of length 0 has nothing to be classified by")
        steps = torch.arange(length, device=x.device)
        mask = None if shortest == length else steps < lengths.unsqueeze(-1)
        x = self.encoder(x)
        if isinstance(self.blocks[0], AttentionBlock):
            x = x + sinusoids(length, x.shape[-1], x)
        for block in self.blocks:
            x = block(x, mask)
        if self.last is not None:
            x = self.last(x, mask)
        if self.pool == "last":
            return x[torch.arange(len(x), device=x.device), lengths - 1]
        total = (x if mask is None else x * mask.unsqueeze(-1)).sum(1)
        return total / lengths.unsqueeze(-1).to(total.dtype)

    def start(self, batch: int) -> list[State]:
        """The state before the first step. Raises ``UserError`` for a stack that has no recurrent form."""
        blocks = [block for block in self.blocks if isinstance(block, SystemBlock)]
        if len(blocks) < len(self.blocks):
            raise UserError("model.layer=transformer: has no recurrent form; s4, s4d and s5 have one")
        if any(block.system.bidirectional for block in blocks):
            raise UserError("model.bidirectional=true: a layer that reads the future has no recurrent form")
        if self.pairs:
            raise UserError("task: a pair of sequences has no recurrent form")
        pooled = {"sum": torch.zeros(()), "count": torch.zeros((), dtype=torch.int64)}
        return [*[block.system.start(batch) for block in blocks], pooled]

    @torch.no_grad()
    def step(self, x: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Ids (batch,) or values (batch, features) of the next step -> scores (batch, size) of the sequence so far.

        With pool=last and as many classes as ids these are the scores of the next id, to generate with.
        """
        x, after = self.encoder(x), []
        for block, own in zip(self.blocks, state[:-1], strict=True):
            x, own = cast(SystemBlock, block).step(x, own)
            after.append(own)
        if self.last is not None:
            x = self.last(x)
        total, count = state[-1]["sum"].to(x) + x, state[-1]["count"] + 1
        pooled = x if self.pool == "last" else total / count.to(x)
        return self.decoder(pooled), [*after, {"sum": total, "count": count}]


class SequenceBackbone(Backbone):
    """``forward``: (batch, size) float32 scores of ``input_ids`` or ``values`` with ``lengths``, and their ``_b``."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        key = "input_ids" if "input_ids" in batch else "values"
        given = [batch[key], batch["lengths"]]
        if self.net.pairs:
            given += [batch[f"{key}_b"], batch["lengths_b"]]
        return self.net(*given).float()


def _groups(key: str, given: list[str] | None) -> tuple[str, ...]:
    chosen = GROUPS if given is None else tuple(given)
    if unknown := set(chosen) - set(GROUPS):
        raise UserError(f"model.{key}: {sorted(unknown)[0]!r} is not one of {', '.join(GROUPS)}")
    return chosen
