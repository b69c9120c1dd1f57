"""The residual blocks around a system, and a Transformer's, over sequences x (batch, L, H).

``mask`` (batch, L) bool: steps that are no padding; None: all are. Padding never reaches another step, so an example's
result does not depend on the batch that it is in: norms take their statistics of real steps only, and systems that read
backwards read zeros there. (A departure: the official codes mask in the pooling alone.)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.nn.ssm.systems import State, System


class Norm(nn.Module):
    """Layer normalisation, or batch normalisation over all real steps of a batch."""

    def __init__(self, kind: str, width: int, momentum: float) -> None:
        super().__init__()
        self.norm: nn.Module = nn.LayerNorm(width) if kind == "layer" else nn.BatchNorm1d(width, momentum=momentum)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x)
        if mask is None:
            return self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        normed = self.norm(x[mask])
        return torch.zeros_like(x, dtype=normed.dtype).index_put((mask,), normed)


class TiedDropout(nn.Module):
    """Dropout of whole channels: the same for all steps of a sequence."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p):
            return x
        return x * F.dropout(torch.ones_like(x[:, :1]), self.p)


class Mixer(nn.Module):
    """What follows a system: GELU and a gate that mixes the channels.

    ``glu``: W GELU(y) of width 2H, its first half times the sigmoid of its second (S4, and S5's ``full_glu``).
    ``half_glu1``: x sigmoid(W x) with x = GELU(y). ``half_glu2``: y sigmoid(W GELU(y)). ``before``: dropout before
    GELU too, as S4 has it. ``approximate``: GELU's form in S5's code.
    """

    def __init__(self, gate: str, width: int, dropout: float, *, before: bool, approximate: bool) -> None:
        super().__init__()
        self.gate, self.before, self.form = gate, before, "tanh" if approximate else "none"
        self.dropout = TiedDropout(dropout)
        self.output = nn.Linear(width, 2 * width if gate == "glu" else width)

    def forward(self, y: Tensor) -> Tensor:
        if self.before:
            y = self.dropout(y)
        x = self.dropout(F.gelu(y, approximate=self.form))
        mixed = self.output(x)
        if self.gate == "glu":
            return F.glu(mixed)
        return (x if self.gate == "half_glu1" else y) * torch.sigmoid(mixed)


class SystemBlock(nn.Module):
    """x + dropout(mixer(system(norm(x)))) with ``prenorm``, else norm(x + dropout(mixer(system(x))))."""

    def __init__(self, system: System, mixer: Mixer, norm: Norm, *, prenorm: bool, dropout: float) -> None:
        super().__init__()
        self.system, self.mixer, self.norm, self.prenorm = system, mixer, norm, prenorm
        self.dropout = TiedDropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        u = self.norm(x, mask) if self.prenorm else x
        if mask is not None and self.system.bidirectional:
            u = u * mask.unsqueeze(-1)
        x = x + self.dropout(self.mixer(self.system(u)))
        return x if self.prenorm else self.norm(x, mask)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x (batch, H) -> (batch, H), and the state after it."""
        y, state = self.system.step(self.norm(x) if self.prenorm else x, state)
        x = x + self.mixer(y)
        return (x if self.prenorm else self.norm(x)), state


class AttentionBlock(nn.Module):
    """The block of a Transformer: self-attention over all real steps (before them only, if ``causal``), then an MLP."""

    def __init__(
        self, width: int, heads: int, mlp: int, norms: tuple[Norm, Norm], *, prenorm: bool, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.prenorm, self.causal = heads, prenorm, causal
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.norm1, self.norm2 = norms
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for norm, part in ((self.norm1, self._attend), (self.norm2, self._think)):
            if self.prenorm:
                x = x + self.dropout(part(norm(x, mask), mask))
            else:
                x = norm(x + self.dropout(part(x, mask)), mask)
        return x

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = None if mask is None else mask[:, None, None, :]
        if self.causal and seen is not None:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mixed = F.scaled_dot_product_attention(q, k, v, seen, is_causal=self.causal and seen is None)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))

    def _think(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(x)))


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Positions (length, width) of "Attention Is All You Need": sines in the first half, cosines in the second."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=like.device) * (-math.log(10_000.0) / max(half - 1, 1)))
    angles = torch.arange(length, device=like.device).unsqueeze(-1) * rates
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)[:, :width].to(like.dtype)
