"""The polar factor U V^T of a matrix with thin SVD U S V^T: exact, by odd polynomials, or through a random sketch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Solver = Literal["svd", "cubic", "quintic", "empirical", "polar_express"]
Sketch = Literal["gaussian", "kaczmarz"]
Shape = Literal["kj", "kimi", "dion", "none"]

# X <- a X + b (X X^T) X + c (X X^T)^2 X. "Theoretical" in the official code are cubic and quintic, which converge to
# U V^T; the standard Muon coefficients do not, they bring singular values quickly to somewhere around 1.
COEFFICIENTS = {"cubic": (1.5, -0.5, 0.0), "quintic": (2.0, -1.5, 0.5), "empirical": (3.4445, -4.7750, 2.0315)}
# Polar Express (Amsel et al. 2025, arXiv 2505.16932) as in airbench94_muon.py of the official code.
_EXPRESS = [
    (8.287212018145622, -23.595886519098816, 17.30038731253092),
    (4.1070591115422, -2.9478499167379084, 0.5448431082926599),
    (3.9486908534822938, -2.908902115962947, 0.5518191394370131),
    (3.3184196573706033, -2.4884880243148757, 0.5100489401237204),
    (2.3006520199548173, -1.66890398457475, 0.4188073119525673),
    (1.8913014077874022, -1.2679958271945955, 0.37680408948525257),
    (1.8750014808698077, -1.2500016454327014, 0.37500016456381774),
    (1.8749999980503391, -1.2499999961006782, 0.3749999980503392),
    (1.875, -1.25, 0.375),
]
_SAFETY = 1.01


def coefficients(solver: Solver, steps: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of each of ``steps`` iterations; Polar Express repeats its last polynomial beyond the ninth."""
    if solver != "polar_express":
        return [COEFFICIENTS[solver]] * steps
    safe = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _EXPRESS[:-1]]
    return [*safe, *[_EXPRESS[-1]] * steps][:steps]


def polar(M: Tensor, solver: Solver, steps: int, *, half: bool = False) -> Tensor:
    """About ``U V^T`` for matrices M (N, m, n) in float32 or float64; 0 for 0, NaN for a matrix that is not finite.

    ``svd``: exact (``steps`` is not used). Otherwise ``steps`` iterations from ``M / (||M||_F + 1e-7)``, on the
    transposed matrix where it is tall, so that the smaller Gram matrix is formed. ``half``: iterate in bfloat16, as the
    official codes do on a GPU. The result has the type of M, which is not written to.
    """
    if solver == "svd":
        return _exact(M)
    tall = M.shape[-2] > M.shape[-1]
    X = M.mT if tall else M
    norm = torch.linalg.matrix_norm(X, keepdim=True)
    X = X / (norm * (_SAFETY if solver == "polar_express" else 1.0) + 1e-7)
    X = X.bfloat16() if half else X
    for a, b, c in coefficients(solver, steps):
        gram = X @ X.mT
        mixed = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        X = torch.baddbmm(X, mixed, X, beta=a)
    return (X.mT if tall else X).to(M.dtype)


def _exact(M: Tensor) -> Tensor:
    finite = M.isfinite().flatten(1).all(1)[:, None, None]
    U, S, Vh = torch.linalg.svd(torch.where(finite, M, torch.zeros_like(M)), full_matrices=False)
    # Directions of no size have no polar factor: LAPACK's arbitrary ones are left out.
    size = max(M.shape[-2:]) * torch.finfo(M.dtype).eps * S[:, :1]
    kept = (size < S).to(M.dtype)
    return torch.where(finite, (U * kept.unsqueeze(-2)) @ Vh, torch.nan)


def sketched_polar(
    M: Tensor,
    solver: Solver,
    steps: int,
    *,
    columns: int,
    power_steps: int,
    sketch: Sketch,
    generator: torch.Generator,
    half: bool = False,
) -> Tensor:
    """``Q polar(Q^T M)``, Q (N, m, l) an orthonormal basis of a random sketch of the column space of M (N, m, n).

    ``columns``: l, at most m. ``power_steps``: h, the sketch is (M M^T)^h M Omega. ``gaussian``: Omega standard normal;
    ``kaczmarz``: l columns of M, drawn with probabilities in proportion to their squared norms, with replacement.
    Random numbers are drawn on the CPU. With l >= rank M the Gaussian sketch gives ``polar(M)``.
    """
    Y = _gaussian(M, columns, generator) if sketch == "gaussian" else _kaczmarz(M, columns, generator)
    for _ in range(power_steps):
        Y = M @ (M.mT @ Y)
    Q = torch.linalg.qr(Y).Q
    return Q @ polar(Q.mT @ M, solver, steps, half=half)


def _gaussian(M: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    count, _, n = M.shape
    draw = torch.randn(count, n, columns, generator=generator, dtype=torch.float32)
    return M @ draw.to(M.device, M.dtype)


def _kaczmarz(M: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    weights = M.square().sum(-2)
    total = weights.sum(-1, keepdim=True)
    # A zero matrix is sampled uniformly, and so is one that is not finite: its products are NaN all the same.
    proper = (total > 0) & total.isfinite()
    p = torch.where(proper, weights / total, torch.full_like(weights, 1 / weights.shape[-1]))
    chosen = torch.multinomial(p.cpu(), columns, replacement=True, generator=generator).to(M.device)
    scale = (columns * p.gather(-1, chosen)).rsqrt()
    return M.gather(-1, chosen.unsqueeze(-2).expand(-1, M.shape[-2], -1)) * scale.unsqueeze(-2)


def shape_factor(m: int, n: int, convention: Shape) -> float:
    """The factor by which a step of an (m, n) matrix along its polar factor is scaled.

    ``kj``: sqrt(max(1, m/n)), standard Muon. ``kimi``: 0.2 sqrt(max(m, n)), the size of an AdamW step. ``dion``:
    sqrt(m/n). ``none``: 1.
    """
    if convention == "kj":
        return max(1.0, m / n) ** 0.5
    if convention == "kimi":
        return 0.2 * max(m, n) ** 0.5
    return (m / n) ** 0.5 if convention == "dion" else 1.0
