"""GDNet: detail from the image, geometry from what of the depth features survives a low-rank projection.

"Decoupling Fine Detail and Global Geometry for Compressed Depth Map Super-Resolution", Zheng, Han and Shen, CVPR 2025,
arXiv 2411.03239. There is no official code, and the paper's own text was not at hand: the two branches and their two
modules are as in the abstract and as drawn for the single-frame network of the authors' follow-up (GGDNet).

Image branch (fine geometry detail encoder), detail tokens F_d (N_d, C) and context tokens F_c (N_c, C), N_c << N_d::

    N_SA times:  F_c <- F_c + softmax((F_c W_q)(F_c W_k)^T / sqrt(C)) (F_c W_v)
    N_CA times:  F_d <- F_d + softmax((F_d W_q)(F_c W_k)^T / sqrt(C)) (F_c W_v)

Depth branch (global geometry encoder), tokens F (N, C) of the low-resolution map, one for each of its pixels::

    M = MLP(F) (N, k),   M = Q R,   F_lr = Q (Q^T F):   rank(F_lr) <= k

Head: F_lr enlarged and F_d concatenated, convolutions, the depth by a sigmoid, in shares of the largest.

Reconstructed, not found anywhere: the convolutional encoders, their widths and strides (detail at half, context at an
eighth of the image's sides, averaged to at most ``context`` tokens a side), keys and values of the cross-attention from
the context, k, that the CVPR version takes QR, the MLP, the head and its sigmoid, no normalisation layers, no path of
the depth map around the projection. Departure: the derivative through QR is damped (``lrx.nn.low_rank_projection``).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Model, Outputs
from lrx.nn.low_rank_projection import project

BRANCHES = ("both", "image", "depth")
ROLES = {"query": r"query", "key": r"key", "value": r"value", "mlp_in": r"mlp\.0", "mlp_out": r"mlp\.2"}


class GDNet(Model):
    """A network to be trained from scratch.

    ``width``: channels C. ``rank``: k. ``self_attention``, ``cross_attention``: layers N_SA, N_CA. ``context``: tokens
    of a side of the context, at most. ``detail``: false takes the image's features as they are, without attention.
    ``low_rank``: false takes the depth's features as they are, without projection. ``branches``: ``image`` or ``depth``
    leaves the other one out, encoder and module. ``damping``: of the derivative through QR. ``weights``: there are only
    ``random`` ones.
    """

    name: ClassVar[str] = "gdnet"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        width: int = 32,
        rank: int = 8,
        self_attention: int = 1,
        cross_attention: int = 1,
        context: int = 8,
        detail: bool = True,
        low_rank: bool = True,
        branches: Literal["both", "image", "depth"] = "both",
        damping: float = 1e-3,
        weights: Literal["random"] = "random",
    ) -> None:
        for key, value, least in (
            ("width", width, 2),
            ("rank", rank, 1),
            ("self_attention", self_attention, 0),
            ("cross_attention", cross_attention, 0),
            ("context", context, 1),
            ("damping", damping, 0),
        ):
            if not value >= least:
                raise UserError(f"model.{key}={value}: must be at least {least}")
        self.width, self.rank, self.context, self.branches, self.damping = width, rank, context, branches, damping
        self.self_attention, self.cross_attention = self_attention, cross_attention
        self.detail, self.low_rank, self.weights = detail, low_rank, weights

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        """Raises ``UserError`` for a task of another kind, and for a rank above the number of depth tokens."""
        refuse(inputs, outputs)
        _, height, width = inputs.shape
        tokens = (height // inputs.factor) * (width // inputs.factor)
        rank = self.rank if self.low_rank and self.branches != "image" else 0
        if rank > tokens:
            raise UserError(f"model.rank={rank}: from 1 to {tokens}, the pixels of a low-resolution depth map here")
        image = depth = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.branches != "depth":
                layers = (self.self_attention, self.cross_attention) if self.detail else (0, 0)
                image = ImageBranch(self.width, *layers, self.context)
            if self.branches != "image":
                depth = DepthBranch(self.width, rank, self.damping)
            net = TwoBranches(self.width, image, depth, inputs.factor)
        roles = {role: pattern for role, pattern in ROLES.items() if _has(net, role)}
        return DepthBackbone(net, head=["last"], roles=roles, reads="depth")


def _has(net: TwoBranches, role: str) -> bool:
    if role.startswith("mlp"):
        return net.depth is not None and bool(net.depth.rank)
    return net.image is not None and bool(len(net.image.on_context) + len(net.image.on_detail))


class DepthBackbone(Backbone):
    """``forward``: depth (batch, 1, H, W) float32 of ``image`` and ``depth_low``. ``UserError``: odd sizes."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        image, low = batch["image"], batch["depth_low"]
        factor = self.net.factor
        if image.shape[-2:] != (low.shape[-2] * factor, low.shape[-1] * factor):
            sizes = " and ".join(" x ".join(map(str, each.shape[-2:])) for each in (image, low))
            raise UserError(f"task: image and low-resolution depth are {sizes} pixels, not {factor} to 1")
        return self.net(image, low).float()


class Attention(nn.Module):
    """x + softmax((x W_q)(y W_k)^T / sqrt(C)) (y W_v): x (batch, n, C), y (batch, m, C) -> (batch, n, C). One head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(self.query(x), self.key(y), self.value(y))

    def affinity(self, x: Tensor, y: Tensor) -> Tensor:
        """The weights (batch, n, m) of the sum, for looking at."""
        return (self.query(x) @ self.key(y).mT / x.shape[-1] ** 0.5).softmax(-1)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), (batch, C, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class ImageBranch(nn.Module):
    """Image (batch, 3, H, W) -> detail features (batch, C, H/2, W/2), rounded up."""

    def __init__(self, width: int, self_attention: int, cross_attention: int, context: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
        self.fine = Residual(width)
        self.context = context
        self.coarse = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(2 if cross_attention else 0)
        )
        self.on_context = nn.ModuleList(Attention(width) for _ in range(self_attention if cross_attention else 0))
        self.on_detail = nn.ModuleList(Attention(width) for _ in range(cross_attention))

    def forward(self, image: Tensor) -> Tensor:
        detail = self.fine(self.stem(image * 2 - 1))
        if not len(self.on_detail):
            return detail
        context = detail
        for layer in self.coarse:
            context = layer(torch.relu(context))
        height, width = (min(length, self.context) for length in context.shape[-2:])
        context = tokens(F.adaptive_avg_pool2d(context, (height, width)))
        for layer in self.on_context:
            context = layer(context, context)
        found = tokens(detail)
        for layer in self.on_detail:
            found = layer(found, context)
        return found.mT.reshape(detail.shape)


class DepthBranch(nn.Module):
    """Low-resolution depth (batch, 1, h, w) -> features (batch, C, h, w), of rank at most ``rank`` over their pixels.

    ``rank`` 0: without projection.
    """

    def __init__(self, width: int, rank: int, damping: float) -> None:
        super().__init__()
        self.rank, self.damping = rank, damping
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.Sequential(Residual(width), Residual(width))
        if rank:
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, rank))

    def forward(self, low: Tensor) -> Tensor:
        features = self.body(self.stem(low * 2 - 1))
        if not self.rank:
            return features
        flat = tokens(features)
        return project(flat, self.mlp(flat), self.damping).mT.reshape(features.shape)


class TwoBranches(nn.Module):
    """Image (batch, 3, H, W) and depth (batch, 1, H/factor, W/factor), both 0 to 1 -> depth (batch, 1, H, W)."""

    def __init__(self, width: int, image: ImageBranch | None, depth: DepthBranch | None, factor: int) -> None:
        super().__init__()
        self.image, self.depth, self.factor = image, depth, factor
        both = image is not None and depth is not None
        self.fuse = nn.Conv2d(2 * width if both else width, width, 3, padding=1)
        self.body = Residual(width)
        self.enlarge = nn.Conv2d(width, 4 * (width // 2), 3, padding=1)
        self.last = nn.Conv2d(width // 2, 1, 3, padding=1)

    def forward(self, image: Tensor, low: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        half = (-(-height // 2), -(-width // 2))
        features = []
        if self.image is not None:
            features.append(self.image(image))
        if self.depth is not None:
            features.append(F.interpolate(self.depth(low), size=half, mode="bilinear", align_corners=False))
        found = self.body(self.fuse(torch.cat(features, dim=1)))
        found = F.pixel_shuffle(self.enlarge(torch.relu(found)), 2)[..., :height, :width]
        return torch.sigmoid(self.last(torch.relu(found)))


def tokens(features: Tensor) -> Tensor:
    """(batch, C, h, w) -> (batch, h w, C)."""
    return features.flatten(2).mT


def refuse(inputs: Inputs, outputs: Outputs) -> None:
    """Raise ``UserError`` for a task that is no guided depth super-resolution."""
    if inputs.kind != "image_depth" or outputs.kind != "depth":
        raise UserError(
            f"model: this one enlarges depth maps; this task gives {inputs.kind} and asks for {outputs.kind} "
            "(task=depth_sr is such a task)"
        )
