"""Whether a model's weights can be had: looked at before torch is imported, so that a wrong start takes a second.

What is found here is only looked at; ``lrx.models.weights`` finds it again and reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrx.data import hub, pretraining, vision_weights
from lrx.models import smollm2


def check(model: Mapping[str, Any]) -> None:
    """Look for the weights of a configuration's ``model`` section; no torch, at most about 3 s (a hub that is silent).

    Raises ``UserError`` as the model itself would later.
    """
    source, path = model.get("weights"), model.get("path")
    if not path:
        return
    if source == "hub":
        if not hub.has_model(path, model.get("revision")) and (problem := hub.unreachable()):
            raise hub.no_weights(path, problem)
    elif source == "made":
        pretraining.made(path)
    elif source == "package" and path == smollm2.NAME:
        smollm2.check()
    elif source == "package" and path in vision_weights.PACKAGES:
        vision_weights.check(path)
