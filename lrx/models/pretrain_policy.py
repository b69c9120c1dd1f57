"""Skill 0 of PSEC: a diffusion policy trained by noise regression on a broad data set, once, and kept in the cache.

The recipe: every transition of the data set, observations as they are, AdamW at 1e-3 with weight decay 1e-4, batches of
256, cosine to 0 over ``pretrain_steps``; the weights at the end. They lie in ``<cache>/policies/<digest>`` by the
content of the data and everything that decides what is made.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lrx.data.store import stored
from lrx.errors import UserError
from lrx.models.base import Inputs, Outputs
from lrx.seeds import derive

if TYPE_CHECKING:
    from lrx.data.d4rl_files import Transitions
    from lrx.models.diffusion_policy import DiffusionPolicy, PolicyBackbone

VERSION = 1  # of the recipe; raise it when it would make other weights
LR, DECAY, BATCH, SEED = 1e-3, 1e-4, 256, 0


def made(model: DiffusionPolicy, pretrain: str, inputs: Inputs, outputs: Outputs) -> PolicyBackbone:
    """The policy with its weights, trained now unless they are in the cache.

    Raises ``UserError`` for a data set that there is not, or one of another environment than the task's.
    """
    data = data_of(pretrain, model.pretrain_source)
    sizes = data.observations.shape[1], data.actions.shape[1]
    if sizes != (inputs.features, outputs.size):
        raise UserError(
            f"model.pretrain={pretrain}: its states and actions have sizes {sizes[0]} and {sizes[1]}, the task's "
            f"{inputs.features} and {outputs.size}; name a data set of the task's environment"
        )
    content = hashlib.sha256(b"".join(np.ascontiguousarray(a).data for a in (data.observations, data.actions)))
    shape = (model.width, model.blocks, model.steps, model.dropout)
    key = (VERSION, content.hexdigest(), shape, model.pretrain_steps, LR, DECAY, BATCH, SEED)
    found = stored("policies", key, lambda: train(model, data, pretrain))
    policy = model.fresh(*sizes, SEED)
    policy.net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in found.items()})
    return policy


def data_of(pretrain: str, source: str) -> Transitions:
    """The transitions of ``<environment>/<data set>``."""
    from lrx.data import d4rl

    env, _, dataset = pretrain.partition("/")
    task: dict[str, Any] = {"env": env, "dataset": dataset, "source": source}
    try:
        d4rl.check(task)
    except UserError as error:
        raise UserError(f"model.pretrain={pretrain}: wanted <environment>/<data set>; {error}") from None
    return d4rl.load(task)


def train(model: DiffusionPolicy, data: Transitions, name: str) -> dict[str, np.ndarray]:
    """The weights by name after the recipe; a function of its arguments alone."""
    print(f"pretraining a policy on {name}, {len(data)} transitions, {model.pretrain_steps} steps, once", flush=True)
    policy = model.fresh(data.observations.shape[1], data.actions.shape[1], SEED).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, model.pretrain_steps)
    states, actions = torch.from_numpy(np.array(data.observations)), torch.from_numpy(np.array(data.actions))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(derive(SEED, "pretraining"))
        for _ in range(model.pretrain_steps):
            index = torch.randint(len(data), (BATCH,))
            loss = policy.loss({"observations": states[index], "actions": actions[index].clamp(-1, 1)})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return {key: value.numpy() for key, value in policy.net.state_dict().items()}
