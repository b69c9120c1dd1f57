"""Fourier-mode noise for real-valued sequences: where a diagonal state-space model differs from HiPPO, and beside it.

Yu et al., ICLR 2024, arXiv 2310.01698 (section on robustness). A_perp = A_H + P P^T, the normal part of HiPPO-LegS with
N states that S4D starts from, has its fastest mode at s* = N^2/pi - 0.52; there the transfer functions differ most.
With a step ``dt`` shared by all channels the mode stands at omega = dt s* radians per step. The spike is about 1 wide
in s, so s* is computed and not N^2/pi. The control lies at 2/3 of it, about midway to the next mode (near s*/3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lrx.data.splits import rank
from lrx.errors import UserError

KEYS = ("omega", "states", "dt", "amplitude", "control")
CONTROL = 2 / 3


@functools.cache
def top_frequency(states: int) -> float:
    """s*: the largest imaginary part of the eigenvalues of A_perp (N, N).

    A_perp + I/2 is skew-symmetric with entries -+sqrt((n + 1/2)(k + 1/2)), n > k and n < k.
    """
    root = np.sqrt(np.arange(states) + 0.5)
    skew = np.triu(np.outer(root, root), 1)
    return float(np.linalg.eigvalsh(1j * (skew - skew.T)).max())


def frequencies(noise: Mapping[str, float]) -> dict[str, float]:
    """Radians per step of ``test_spike`` and ``test_control``. Raises ``UserError`` naming the key."""
    if unknown := [key for key in noise if key not in KEYS]:
        raise UserError(f"task.noise.{unknown[0]}: no such option; there are {', '.join(KEYS)}")
    if "omega" in noise:
        if "states" in noise or "dt" in noise:
            raise UserError("task.noise: give omega, or states and dt from which it follows, not both")
        omega = float(noise["omega"])
    elif "states" in noise and "dt" in noise:
        if noise["states"] != int(noise["states"]) or not 1 <= noise["states"] <= 1024:
            raise UserError(f"task.noise.states={noise['states']}: a whole number from 1 to 1024")
        omega = float(noise["dt"]) * top_frequency(int(noise["states"]))
    else:
        raise UserError("task.noise needs omega (radians per step), or states and dt from which it follows")
    control = float(noise.get("control", CONTROL * omega))
    for key, value in (("omega", omega), ("control", control)):
        if not 0 < value <= math.pi:
            raise UserError(
                f"task.noise: {key} is {value:.4g} radians per step, but must be above 0 and at most pi, beyond which "
                "samples cannot tell frequencies apart; a smaller dt or fewer states give less"
            )
    if not noise.get("amplitude", 0.1) >= 0:
        raise UserError(f"task.noise.amplitude={noise['amplitude']}: must be 0 or more")
    return {"test_spike": omega, "test_control": control}


def wave(positions: NDArray[np.int64], length: int, omega: float, amplitude: float) -> NDArray[np.float32]:
    """(n, length): amplitude sin(omega t + phase), the phase a function of the example's place alone."""
    phases = np.asarray([rank("phase", int(i)) / 2**64 * 2 * math.pi for i in positions])
    return (amplitude * np.sin(omega * np.arange(length) + phases[:, None])).astype(np.float32)
