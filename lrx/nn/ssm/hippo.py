"""HiPPO-LegS and the diagonal initialisations of S4, S4D and S5, in float64.

"Efficiently Modeling Long Sequences with Structured State Spaces", Gu et al., ICLR 2022, arXiv 2111.00396 (S4);
"On the Parameterization and Initialization of Diagonal State Space Models", Gu et al. 2022, arXiv 2206.11893 (S4D).

For N states, n, k = 0..N-1:

    (1)  A_nk = -sqrt((2n+1)(2k+1)) for n > k, -(n+1) for n = k, 0 for n < k;  B_n = sqrt(2n+1)
    (2)  P_n = sqrt(n + 1/2):  A + P P^T + I/2 is skew-symmetric, so A = V Lambda V* - P P^T with Re Lambda = -1/2

Real systems have eigenvalues in conjugate pairs. What is kept are the M modes with negative imaginary part, and a
system is the sum of 2 Re(...) over them: M = N/2, and N must be even (an odd N has one real eigenvalue).

The eigenvectors of (2) have free phases. Here the first row of V is real and positive, as the rule ``clamp`` of the
official code depends on it: that code, from its version 4 on, cuts Im(V* B) to [-2, 2], which changes the kernel by a
quarter and more. ``clamp`` None is exact HiPPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrx.errors import UserError

Real = NDArray[np.floating[Any]]
Complex = NDArray[np.complexfloating[Any, Any]]
INITS = ("legs", "lin", "inv", "real", "random")


@dataclass(frozen=True)
class Modes:
    """M modes of a system of N states: ``A`` (M,), ``B`` (M,); ``V`` (N, M): eigenvectors, where there are any.

    ``inverse`` (M, N): the rows of V^-1 that belong to the modes. A mode with a real eigenvalue is half in ``B`` and
    ``inverse``, because a system counts every mode twice. ``P`` (M,): the rank-one part of (2), else zeros.
    """

    A: Complex
    B: Complex
    P: Complex
    V: Complex | None = None
    inverse: Complex | None = None


def check_state(states: int, key: str = "model.state") -> None:
    """Raise ``UserError`` unless ``states`` is even and positive."""
    if states < 2 or states % 2:
        raise UserError(f"{key}={states}: the states come in conjugate pairs, so their number is even and at least 2")


def legs(states: int) -> tuple[Real, Real]:
    """Eq. (1): A (N, N) and B (N,)."""
    n = np.arange(states, dtype=np.float64)
    roots = np.sqrt(2 * n + 1)
    return -np.tril(np.outer(roots, roots), -1) - np.diag(n + 1), roots


def rank_one(states: int) -> Real:
    """P (N,) of eq. (2)."""
    return np.sqrt(np.arange(states) + 0.5)


def nplr(states: int, clamp: float | None = None) -> Modes:
    """Eq. (2): the modes of the normal part A + P P^T with B and P in its basis, ordered by falling frequency."""
    check_state(states)
    A, B = legs(states)
    P = rank_one(states)
    normal = A + np.outer(P, P)
    skew = (normal - normal.T) / 2
    frequencies, V = np.linalg.eigh(-1j * skew)  # Hermitian: stable, and V is unitary; ascending
    half = states // 2
    frequencies, V = frequencies[:half], V[:, :half]
    V = V * (np.abs(V[0]) / V[0])  # the gauge: a real, positive first row
    inverse = V.conj().T
    transformed = inverse @ B
    if clamp is not None:
        transformed = transformed.real + 1j * np.clip(transformed.imag, -clamp, clamp)
    return Modes(-0.5 + 1j * frequencies, transformed, inverse @ P, V, inverse)


def diagonal(init: str, states: int, rng: np.random.Generator, clamp: float | None = None) -> Modes:
    """The initialisations of S4D, with M = N/2 modes.

    ``legs``: eq. (2) without its rank-one part. ``lin``: Im A = -pi n. ``inv``: Im A = -(N/pi) (N/(2n+1) - 1).
    ``real``: A = -(n+1). ``random``: Im A = -exp(g), g standard normal. Re A = -1/2 in all others, and B = 1 but for
    ``legs``, whose B is V* B (the theory of S4D halves it, the official code does not).
    """
    check_state(states)
    if init == "legs":
        found = nplr(states, clamp)
        return Modes(found.A, found.B, np.zeros_like(found.P), found.V, found.inverse)
    n = np.arange(states // 2, dtype=np.float64)
    parts: dict[str, Complex] = {
        "lin": -0.5 - 1j * np.pi * n,
        "inv": -0.5 - 1j * states / np.pi * (states / (2 * n + 1) - 1),
        "real": -(n + 1) + 0j,
        "random": -0.5 - 1j * np.exp(rng.standard_normal(len(n))),
    }
    A = parts[init]
    return Modes(A, np.ones_like(A), np.zeros_like(A))
