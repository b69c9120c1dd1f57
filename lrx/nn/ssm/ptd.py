"""Perturb-then-diagonalise (PTD): HiPPO-LegS made diagonal by a small change that keeps its transfer function.

"Robustifying State-space Models for Long Sequences via Approximate Diagonalization", Yu et al., ICLR 2024, arXiv
2310.01698 (S4-PTD, S5-PTD).

    (1)  min_E  kappa(V) + gamma ||E||  with  A_H + E = V Lambda V^-1
    (2)  start with Lambda, B = V^-1 B_H, C = C_0 V

The paper gives neither the variables nor the solver nor gamma. Here (a reconstruction): E is real and dense, and

    (3)  J(E) = log kappa_2(V) + gamma ||E||_F / ||A_H||_F,  V with columns of length 1

is minimised by L-BFGS with strong Wolfe line search from E = 0.1 P P^T; for more than 32 states gamma is lowered to its
value in stages, each starting from the last. Sizes of E: 0.07 of ||A_H|| at gamma 10, 0.03 at 30, 0.008 at 100. J is
flat between minimisers with two real eigenvalues and with none. Two real ones are two modes where a conjugate pair is
one, so other starts (0.2, 0.03, 0.05 times P P^T) are tried for a stable minimiser without them: a system then has as
many parameters as S4D's. Where no start leads to one, the first stable minimiser is taken, with N/2 + 1 modes.

    (4)  E = t P P^T, 0 < t <= 1

is the closed form (``share`` t), a departure: no solver, Re Lambda <= -1/2 for every t and N, and t = 1 is S4D.
Solutions are kept in the cache, by size and gamma.
"""

from __future__ import annotations

import numpy as np
import torch

from lrx.data.store import Arrays, stored
from lrx.errors import UserError
from lrx.nn.ssm.hippo import Modes, Real, check_state, legs, rank_one

STAGES = (100.0, 60.0, 30.0, 20.0, 15.0)
STAGED_ABOVE = 32
STARTS = (0.1, 0.2, 0.03, 0.05)
RECIPE = 1  # raise it when the same size and gamma give another E
ITERATIONS = 200


def perturbed(states: int, gamma: float, share: float | None = None) -> Modes:
    """Eq. (2) for A_H + E: modes with negative imaginary part, and real ones once with half of B.

    ``share``: t of eq. (4) instead of the solution of eq. (3). Raises ``UserError`` where A_H + E is not stable.
    """
    check_state(states)
    A, B = legs(states)
    E = closed_form(states, share) if share is not None else perturbation(states, gamma)
    eigenvalues, V = (np.asarray(x, dtype=np.complex128) for x in np.linalg.eig(A + E))
    if not eigenvalues.real.max() < 0:
        raise UserError(
            f"model.gamma={gamma:g}: with {states} states the perturbed matrix is not stable; "
            "a greater gamma or model.share=0.1 is"
        )
    order = np.argsort(eigenvalues.imag, kind="stable")
    kept = order[eigenvalues.imag[order] <= 0]
    inverse = np.asarray(np.linalg.inv(V)[kept], dtype=np.complex128)
    inverse[eigenvalues.imag[kept] == 0] /= 2  # a system takes 2 Re(...) of every mode
    return Modes(eigenvalues[kept], inverse @ B, np.zeros(len(kept), complex), V[:, kept], inverse)


def closed_form(states: int, share: float) -> Real:
    """Eq. (4): E (N, N)."""
    if not 0 < share <= 1:
        raise UserError(f"model.share={share}: the share of the rank-one part that is removed lies in (0, 1]")
    P = rank_one(states)
    return share * np.outer(P, P)


def perturbation(states: int, gamma: float) -> Real:
    """The minimiser E (N, N) of eq. (3), computed once per size and gamma and read from the cache afterwards."""
    if not gamma > 0:
        raise UserError(f"model.gamma={gamma}: the weight of the perturbation's size must be positive")
    key = ("ptd", RECIPE, states, float(gamma))
    return np.array(stored("ptd", key, lambda: _solve(states, gamma))["E"])


def _solve(states: int, gamma: float) -> Arrays:
    stages = [*(stage for stage in STAGES if stage > gamma and states > STAGED_ABOVE), gamma]
    A, _ = legs(states)
    found: list[Real] = []
    with torch.device("cpu"), torch.enable_grad():
        for start in STARTS:
            E = _minimise(A, closed_form(states, start), stages)
            eigenvalues = np.linalg.eigvals(A + E)
            if eigenvalues.real.max() < 0:
                if eigenvalues.imag.all():
                    return {"E": E}
                found.append(E)
    return {"E": found[0] if found else E}


def _minimise(matrix: Real, start: Real, gammas: list[float]) -> Real:
    """L-BFGS on eq. (3) over E / ||A_H||_F, for one gamma after the other."""
    A = torch.from_numpy(matrix)
    size = torch.linalg.matrix_norm(A)
    X = (torch.from_numpy(start) / size).requires_grad_()
    for gamma in gammas:
        optimizer = torch.optim.LBFGS([X], max_iter=ITERATIONS, history_size=50, line_search_fn="strong_wolfe")

        def closure(optimizer: torch.optim.Optimizer = optimizer, gamma: float = gamma) -> torch.Tensor:
            optimizer.zero_grad()
            values = torch.linalg.svdvals(torch.linalg.eig(A + X * size).eigenvectors)
            objective = torch.log(values[0] / values[-1]) + gamma * torch.linalg.matrix_norm(X)
            objective.backward()
            return objective

        optimizer.step(closure)  # type: ignore[arg-type]
    return (X.detach() * size).numpy()
