"""How far the transfer functions of diagonal systems lie from HiPPO-LegS, frequency by frequency, in float64.

"Robustifying State-space Models for Long Sequences via Approximate Diagonalization", Yu et al., arXiv 2310.01698.

    (1)  gap(w) = || (i w - A_H)^-1 b - (i w - A)^-1 (f b) ||,  b = B_H / ||B_H||

is the largest difference over all outputs C of length 1. For S4D, A = A_H + P P^T and f = 1/2: the gap does not vanish
with N, it tends to 2/pi at the top eigenfrequency of A. For PTD, A = A_H + E and f = 1: it falls in proportion to E.
``python -m lrx.nn.ssm.transfer FILE`` draws both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lrx.errors import UserError
from lrx.nn.ssm.hippo import Real, legs, nplr
from lrx.nn.ssm.ptd import closed_form, perturbation


def full(states: int, share: float) -> Real:
    """A_H + share P P^T (N, N): S4D's matrix at 1, the closed form of PTD below."""
    return legs(states)[0] + closed_form(states, share)


def spike(states: int) -> float:
    """The top eigenfrequency of S4D's matrix, N^2/pi - 0.52, in radians per unit of time; dt times it in a step."""
    return float(-nplr(states).A.imag.min())


def gap(states: int, A: Real, factor: float, frequencies: Real) -> Real:
    """Eq. (1) at each of ``frequencies`` (k,) -> (k,)."""
    exact, B = legs(states)
    b = B / np.linalg.norm(B)
    s = 1j * frequencies[:, None, None] * np.eye(states)
    right = np.broadcast_to(b[:, None], (len(frequencies), states, 1))
    return np.linalg.norm(np.linalg.solve(s - exact, right) - factor * np.linalg.solve(s - A, right), axis=(1, 2))


def plot(path: Path, states: int = 32, gamma: float = 10.0) -> None:
    """Draw the gaps of S4D and of PTD over frequency into ``path`` (.png or .svg)."""
    from matplotlib.figure import Figure

    top = spike(states)
    grid = np.union1d(np.geomspace(0.1, 10 * top, 1500), np.linspace(max(top - 5, 0.1), top + 5, 201))
    curves = {
        "S4D": gap(states, full(states, 1.0), 0.5, grid),
        f"PTD, gamma {gamma:g}": gap(states, legs(states)[0] + perturbation(states, gamma), 1.0, grid),
        "PTD, 0.1 P P^T": gap(states, full(states, 0.1), 1.0, grid),
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, values in curves.items():
        axes.loglog(grid, values, label=label, linewidth=1)
    axes.axvline(top, color="0.7", linewidth=0.8, zorder=0)
    axes.set_xlabel("frequency (radians per unit of time)")
    axes.set_ylabel("distance from HiPPO-LegS")
    axes.set_title(f"Transfer functions of {states} states")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(words: list[str] | None = None) -> None:
    """The command line: a file to draw into, the number of states, the weight gamma."""
    parser = argparse.ArgumentParser(prog="python -m lrx.nn.ssm.transfer", description=plot.__doc__)
    parser.add_argument("path", type=Path, help="the picture, .png or .svg")
    parser.add_argument("--states", type=int, default=32)
    parser.add_argument("--gamma", type=float, default=10.0)
    given = parser.parse_args(words)
    try:
        plot(given.path, given.states, given.gamma)
    except (UserError, OSError) as error:
        parser.error(str(error))
    print(f"wrote {given.path}")


if __name__ == "__main__":
    main()
