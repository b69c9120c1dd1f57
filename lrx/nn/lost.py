"""The layer of LOST: a low-rank path and a dense path over a few input channels, both started from one SVD of a matrix.

For a weight W (m, n) with singular triplets (s_i, u_i, v_i), s descending: rank r, K channels, x (..., n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh, "relu2": lambda h: F.relu(h).square(), "none": None,
}  # fmt: skip


@dataclass(frozen=True)
class Spectrum:
    """The thin SVD W = U diag(s) V^T: U (m, q), s (q,), V^T (q, n), q = min(m, n), and W (m, n) itself.

    The signs of each pair (u_i, v_i) are fixed so that the entry of u_i that is largest in magnitude is positive: with
    an activation that is not odd, B act(A x) depends on them, and LAPACK leaves them open.
    """

    W: Tensor
    U: Tensor
    s: Tensor
    Vh: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor) -> Spectrum:
        """Computed in float32, float64 for a float64 weight. Raises ``torch.linalg.LinAlgError`` for NaN or inf."""
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        largest = U.gather(0, U.abs().argmax(0, keepdim=True))  # (1, q)
        sign = torch.where(largest < 0, -1.0, 1.0).to(W.dtype)
        return cls(W, U * sign, s, Vh * sign.mT)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """B0 = U_r S_r^(1/2) (m, r) and A0 = S_r^(1/2) V_r^T (r, n)."""
        root = self.s[:rank].sqrt()
        return self.U[:, :rank] * root, root[:, None] * self.Vh[:rank]

    def complement(self, rank: int, band: int | None, trailing: bool = False) -> Tensor:
        """W_comp (m, n): the sum of s_i u_i v_i^T over ``band`` triplets behind the first ``rank`` (None: all of them).

        ``trailing``: the ``band`` smallest triplets instead of those that follow the first ``rank``.
        """
        rest = len(self.s) - rank
        count = rest if band is None else min(band, rest)
        first = len(self.s) - count if trailing else rank
        kept = slice(first, first + count)
        return (self.U[:, kept] * self.s[kept]) @ self.Vh[kept]


def top_channels(scores: Tensor, count: int) -> Tensor:
    """Indices (count,) of the largest of ``scores`` (n,), ascending; of equal scores the first."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


@dataclass(frozen=True)
class Start:
    """What a layer starts from: A (r, n), B (m, r), and W_s (m, K) with its ``channels`` (K,), or neither."""

    A: Tensor
    B: Tensor
    sparse: Tensor | None = None
    channels: Tensor | None = None


class LostLinear(nn.Module):
    """``y = scaling (gamma B act(A x) + (1 - gamma) W_s x[channels])`` plus ``base(x)`` or the bias.

    ``keep``: fine-tuning form: the frozen layer stays as ``base``. Otherwise nothing of size (m, n) is stored and the
    layer's bias is taken over. Without a sparse path ``gamma`` plays no part. ``channels`` is a buffer (int64). A, B
    and W_s are at least float32. ``forward``: x (..., n) -> (..., m).
    """

    A: nn.Parameter
    B: nn.Parameter
    channels: Tensor | None

    def __init__(
        self, layer: nn.Linear, start: Start, *, gamma: float, activation: str, keep: bool, scaling: float = 1.0
    ) -> None:
        super().__init__()
        weight = layer.weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.gamma = gamma if start.sparse is not None else 1.0
        self.activation, self.scaling = activation, scaling
        self.dense_dtype = weight.dtype
        self.base = layer.requires_grad_(False) if keep else None
        self.bias: nn.Parameter | None = None if keep else layer.bias

        def trained(value: Tensor) -> nn.Parameter:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            return nn.Parameter(value.detach().to(weight.device, dtype, copy=True).contiguous())

        self.A, self.B = trained(start.A), trained(start.B)
        self.sparse = None if start.sparse is None else trained(start.sparse)
        self.register_buffer("channels", None if start.channels is None else start.channels.to(weight.device))

    @property
    def weight(self) -> Tensor:
        """The frozen matrix, or B where none is stored: for code that only asks for a weight's type or device."""
        return self.B if self.base is None else self.base.weight

    @property
    def rank(self) -> int:
        return len(self.A)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if self.base is None:  # these are the network's own matrices: under autocast like any dense layer's
            y = self._paths(x, self.bias)
            return y if torch.is_autocast_enabled(device) else y.to(x.dtype)
        y = self.base(x)
        with torch.autocast(device, enabled=False):
            return y + (self._paths(x, None) * self.scaling).to(y.dtype)

    def _paths(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.to(self.A.dtype)
        h = F.linear(x, self.A)  # (..., r)
        act = ACTIVATIONS[self.activation]
        h = h if act is None else act(h)
        y = F.linear(h * self.gamma, self.B, None if bias is None else bias.to(self.B.dtype))
        if self.sparse is None or self.channels is None:
            return y
        kept = x.index_select(-1, self.channels)  # (..., K): a gather, so that the product costs 2 m K, not 2 m n
        update = torch.addmm(
            y.reshape(-1, y.shape[-1]), kept.reshape(-1, kept.shape[-1]), self.sparse.t(), alpha=1 - self.gamma
        )
        return update.view_as(y)

    @torch.no_grad()
    def effective(self) -> Tensor:
        """Without an activation, what the paths do as one matrix: scaling (gamma B A + (1 - gamma) scatter(W_s))."""
        W = self.gamma * (self.B @ self.A)
        if self.sparse is not None and self.channels is not None:
            W.index_add_(1, self.channels, self.sparse, alpha=1 - self.gamma)
        return W * self.scaling

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with the same outputs. Raises ``ValueError`` where an activation leaves no such matrix."""
        if ACTIVATIONS[self.activation] is not None:
            raise ValueError(f"an activation ({self.activation}) between the factors leaves no single matrix")
        W = self.effective()
        if self.base is not None:
            self.base.weight.copy_(self.base.weight.to(W.dtype) + W)
            return self.base
        options: dict[str, Any] = {"device": "meta", "dtype": self.dense_dtype}
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, **options)
        plain.weight = nn.Parameter(W.to(self.dense_dtype))
        if self.bias is not None:
            plain.bias = self.bias
        return plain

    def extra_repr(self) -> str:
        kept = 0 if self.sparse is None else self.sparse.shape[1]
        return f"rank={self.rank}, channels={kept}, gamma={self.gamma:g}, activation={self.activation}"


def start_of(
    weight: Tensor,
    rank: int,
    channels: int,
    *,
    svd: bool,
    choice: Literal["l2", "l1", "random"],
    band: int | None,
    trailing: bool,
    from_complement: bool,
    generator: torch.Generator,
) -> Start:
    """The start of one layer from its ``weight`` (m, n); ``channels``: K, 0 for no sparse path.

    ``svd``: B0, A0 of the leading triplets, else both normal with std r^(-1/4) (m + n)^(-1/4) (CoLA). ``choice``: the
    channels with the largest column norms of W_comp (l2 or l1), or random ones. ``band``, ``trailing``: see
    ``Spectrum.complement``. ``from_complement``: W_s from W_comp instead of from W. Random numbers are drawn on the
    CPU, so that every device starts alike. Raises ``torch.linalg.LinAlgError`` for a weight that is not finite.
    """
    m, n = weight.shape
    scored = channels > 0 and choice != "random"
    spectrum = Spectrum.of(weight) if svd or scored or (channels > 0 and from_complement) else None
    if svd and spectrum is not None:
        B, A = spectrum.factors(rank)
    else:
        std = rank**-0.25 * (m + n) ** -0.25
        A, B = (torch.randn(shape, generator=generator) * std for shape in ((rank, n), (m, rank)))
    if not channels:
        return Start(A, B)
    source = weight.detach()
    if spectrum is not None and (scored or from_complement):
        complement = spectrum.complement(rank, band, trailing)
        source = complement if from_complement else source
    if scored:
        kept = top_channels(torch.linalg.vector_norm(complement, ord=1 if choice == "l1" else 2, dim=0), channels)
    else:
        kept = torch.randperm(n, generator=generator)[:channels].sort().values.to(weight.device)
    return Start(A, B, source[:, kept], kept)
