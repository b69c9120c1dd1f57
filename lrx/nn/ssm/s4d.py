"""S4D: the kernel and the recurrence of a diagonal system.

"On the Parameterization and Initialization of Diagonal State Space Models", Gu et al. 2022, arXiv 2206.11893.

    (1)  K_l = 2 Re sum_m C_m Bbar_m z_m^l,  Bbar = b B,  l < L

with z and b of ``vandermonde.discretise``; the recurrence is x_k = z x_{k-1} + Bbar u_k, y_k = 2 Re(C x_k).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrx.nn.ssm.vandermonde import discretise, power_sums


def diagonal_kernel(
    A: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, method: str, dtype: torch.dtype
) -> Tensor:
    """Eq. (1): K (c, H, length) real. ``A``, ``B`` complex128 (H, M) or (1, M), ``C`` complex (c, H, M), ``dt`` (H, 1).

    ``method``: ``zoh`` or ``bilinear``.
    """
    log_z, b = discretise(A, dt, method)
    return power_sums((C * (B * b)).transpose(0, 1), log_z, length, dtype).transpose(0, 1)
