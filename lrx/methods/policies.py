"""What methods for policies share."""

from __future__ import annotations

from lrx.errors import UserError
from lrx.models.base import Backbone
from lrx.models.diffusion_policy import PolicyBackbone
from lrx.nn.policy_net import NoisePredictor


def policy_of(backbone: Backbone, method: str) -> NoisePredictor:
    """The network of a policy. Raises ``UserError`` for another model."""
    if not isinstance(backbone, PolicyBackbone):
        raise UserError(
            f"method={method} is for policies, and this model is none; give task=d4rl and model=diffusion_policy"
        )
    return backbone.net
