"""Leaving lrx: a trained adapter in PEFT's format, or the merged model as plain weights."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors.torch import save_file, save_model

from lrx.errors import UserError
from lrx.methods.base import Method
from lrx.models.base import Backbone
from lrx.nn.lowrank import LowRankConv2d, lowrank_layers


def to_peft(method: Method, backbone: Backbone, out_dir: str | Path, base_model_name: str | None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, which ``peft.PeftModel.from_pretrained`` reads.

    The task head is stored through ``modules_to_save``. ``base_model_name``: the pretrained model that peft puts below
    the adapter, a hub name or a folder (None: unsaid). An anchored layer, W + s (B A - B0 A0), is written as a plain
    LoRA of twice its rank. Raises ``UserError`` for methods that are no plain LoRA.
    """
    from peft import LoraConfig

    if backbone.rewritten:
        raise UserError("PEFT does not find this model's layers under its own names; export the merged weights instead")
    layers = dict(lowrank_layers(backbone.net))
    if method.peft_form != "lora" or not layers:
        instead = "export the merged weights instead" if method.mergeable else "nor can it be merged into plain weights"
        raise UserError(f"method={method.name} does not end in a plain LoRA adapter; {instead}")
    for name, layer in layers.items():
        if isinstance(layer, LowRankConv2d) and (set(layer.base.dilation) != {1} or layer.base.padding_mode != "zeros"):
            raise UserError(
                f"layer {name!r}: PEFT's LoRA knows no dilated or circular convolution; export merged weights"
            )
    factors = {name: layer.change() for name, layer in layers.items()}
    shapes = {(len(factors[name][1]), layer.scaling) for name, layer in layers.items()}
    if len(shapes) > 1:
        raise UserError(f"layers of different rank or scaling cannot be exported as one LoRA: {sorted(shapes)}")
    ((rank, scaling),) = shapes
    alpha = scaling * rank
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,  # type: ignore[arg-type]
        target_modules=sorted(layers),
        modules_to_save=list(backbone.head) or None,
        base_model_name_or_path=base_model_name,
        inference_mode=True,
    )
    tensors = {}
    for name, layer in layers.items():
        B, A = (factor.detach() for factor in factors[name])
        if isinstance(layer, LowRankConv2d):
            A, B = A.view(-1, *layer.weight.shape[1:]), B[:, :, None, None]
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.contiguous()
    for name, tensor in {**dict(backbone.net.named_parameters()), **backbone.statistics()}.items():
        if backbone.in_head(name):
            tensors[f"base_model.model.{name}"] = tensor.detach().contiguous()
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def to_merged(method: Method, backbone: Backbone, out_dir: str | Path) -> None:
    """Write the network with the update folded in, as safetensors; ``backbone`` itself is not changed.

    A transformers model is written with ``save_pretrained`` (config and tokenizer beside it), so that
    ``from_pretrained`` reads it; any other network as ``model.safetensors``. Needs memory for a second copy of the
    network. Raises ``UserError`` for methods that cannot be merged.
    """
    if not method.mergeable:
        raise UserError(f"method={method.name} cannot be merged into plain weights")
    tokenizer, backbone.tokenizer = backbone.tokenizer, None
    try:
        merged = copy.deepcopy(backbone)
    finally:
        backbone.tokenizer = tokenizer
    method.merge(merged)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    net = merged.stock()
    save = getattr(net, "save_pretrained", None)
    if callable(save):
        save(str(folder))
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(str(folder))
    else:
        save_model(net, str(folder / "model.safetensors"))
