"""Causal language models from Hugging Face transformers: GPT-2, Llama, Mistral, Qwen2 and Gemma 2.

``AutoModelForCausalLM`` with the weights' own tied or untied output layer; there is no task head, so that what a method
trains is its adapter alone. GPT-2's layers are rewritten as ``nn.Linear`` (``lrx/models/gpt2.py``), the others stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrx.errors import UserError, did_you_mean
from lrx.models import gpt2
from lrx.models.base import Backbone, Decoding, Inputs, Model, Outputs
from lrx.models.sequence_classifier import ROLES as CLASSIFIER_ROLES
from lrx.models.sequence_classifier import load_tokenizer
from lrx.models.tokenizers import bytes_tokenizer
from lrx.models.weights import check_options, explained, load, resolve

if TYPE_CHECKING:
    from lrx.models.stopping import StopTexts

# Roles of linear layers by architecture (`model_type`): patterns for the end of their names, for target_modules.
ROLES = {"gpt2": gpt2.ROLES, **dict.fromkeys(("llama", "mistral", "qwen2", "gemma2"), CLASSIFIER_ROLES["llama"])}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CausalLM(Model):
    """A network that continues a prompt.

    ``weights``: ``package``, ``local`` or ``hub`` (pretrained, at ``path``, of the hub at ``revision``), or ``random``:
    the architecture in ``config`` with seeded random weights, for smoke runs. ``tokenizer``: where it lies when not at
    ``path`` (``package:<package/folder>``), or ``bytes``: a token for each byte. ``attention``: transformers' attention
    implementation. ``dropout``: probability of the network's own dropout; None leaves it as the architecture has it.
    ``dtype``: of the pretrained weights in memory; adapter factors are float32 all the same.
    ``gradient_checkpointing``: the decoder layers are computed again in the backward pass instead of being kept.
    """

    name: ClassVar[str] = "causal_lm"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        weights: Literal["package", "local", "hub", "random"],
        path: str | None = None,
        revision: str | None = None,
        tokenizer: str | None = None,
        attention: str = "sdpa",
        dropout: float | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        gradient_checkpointing: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        if weights == "random":
            if config is None or tokenizer is None:
                raise UserError("model.weights=random needs model.config and model.tokenizer")
        elif path is None:
            raise UserError(f"model.weights={weights} needs model.path")
        if dropout is not None and not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: a probability lies in [0, 1)")
        if dtype not in DTYPES:
            raise UserError(f"model.dtype={dtype!r} is not one of {', '.join(DTYPES)}; {did_you_mean(dtype, DTYPES)}")
        self.weights, self.path, self.revision = weights, path, revision
        self.tokenizer, self.attention, self.dropout = tokenizer, attention, dropout
        self.dtype, self.gradient_checkpointing, self.config = dtype, gradient_checkpointing, config

    def build(self, inputs: Inputs, outputs: Outputs, seed: int) -> Backbone:
        self.check_task(inputs, outputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net, tokenizer = self._random() if self.weights == "random" else self._pretrained()
        return prepared(net, tokenizer, dropout=self.dropout, gradient_checkpointing=self.gradient_checkpointing)

    @staticmethod
    def check_task(inputs: Inputs, outputs: Outputs) -> None:
        """Raise ``UserError`` for a task that does not ask for a text's continuation."""
        if inputs.kind != "text" or outputs.kind != "text":
            asked = "reads images" if inputs.kind == "image" else f"asks for {outputs.kind}"
            raise UserError(f"model: a causal language model continues texts, and this task {asked}; choose another")

    def _random(self) -> tuple[Any, Any]:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

        tokenizer = self._tokenizer(str(self.tokenizer), True)
        ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        options = {"vocab_size": len(tokenizer), **ids} | dict(self.config or {})
        kind = options.get("model_type")
        if kind not in ROLES:
            raise UserError(f"model.config.model_type={kind!r}: not known here; {did_you_mean(str(kind), ROLES)}")
        check_options(CONFIG_MAPPING[kind], options)
        with explained("model.config"):
            config = AutoConfig.for_model(**options)
            net = AutoModelForCausalLM.from_config(config, attn_implementation=self.attention)
        return net.to(DTYPES[self.dtype]), tokenizer

    def _pretrained(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM

        path, heads = str(self.path), dict.fromkeys(ROLES, ())
        where, local = resolve(self.weights, path, self.revision)
        net = load(
            AutoModelForCausalLM, self.weights, path, self.revision, heads,
            dtype=DTYPES[self.dtype], attn_implementation=self.attention,
        )  # fmt: skip
        return net, self._tokenizer(self.tokenizer or where, local)

    def _tokenizer(self, where: str, local: bool) -> Any:
        return bytes_tokenizer() if where == "bytes" else load_tokenizer(where, self.revision, local)


def prepared(
    net: Any, tokenizer: Any, *, dropout: float | None = None, gradient_checkpointing: bool = False
) -> CausalBackbone:
    """``net`` of transformers, ready to be adapted and with a tokenizer that has an end token."""
    kind = net.config.model_type
    if kind == "gpt2":
        gpt2.unfuse(net)
    if dropout is not None:
        set_dropout(net, dropout)
    if gradient_checkpointing:
        # The reentrant kind gives no gradients when the embeddings are frozen.
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if tokenizer.eos_token is None:  # BERT's: texts end with a separator
        tokenizer.eos_token = tokenizer.sep_token
    backbone = CausalBackbone(net, head=(), roles=ROLES[kind], tokenizer=tokenizer, reads="causal")
    if kind == "gpt2":
        backbone.rewritten, backbone.positions = True, net.config.n_positions
    return backbone


def set_dropout(net: nn.Module, probability: float) -> None:
    """Give every dropout of ``net`` this probability, that of attention included."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):  # GPT-2's attention reads its probability from such a layer
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", probability)  # noqa: B010 - PyTorch's types know tensors only


class CausalBackbone(Backbone):
    """A decoder with its output layer. ``forward``: (batch, length, vocabulary) scores of the next token in float32."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self._scores(self._hidden(batch))

    def token_losses(self, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
        """Cross-entropy (k,) in float32 of the k positions of ``labels`` (batch, length) that are not -100.

        Position t is predicted from the positions before it; a label at position 0 has none before it and counts as
        -100. Row-major order. Only these positions pass through the output layer.
        """
        targets = batch["labels"][:, 1:]
        labelled = targets != -100
        scores = self._scores(self._hidden(batch)[:, :-1][labelled])
        return F.cross_entropy(scores, targets[labelled], reduction="none", label_smoothing=smoothing)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean of ``token_losses``."""
        return self.token_losses(batch).mean()

    @torch.no_grad()
    def generate(self, batch: dict[str, Tensor], decoding: Decoding, use_cache: bool = True) -> Tensor:
        """The new tokens (batch, at most ``decoding.max_new_tokens``), int64; padding behind the end of a row.

        ``batch``: ``input_ids`` and ``attention_mask`` (batch, length), padded on the left. A row ends with one of the
        model's end tokens or with a text of ``decoding.stop``, both of which are kept. ``use_cache=False`` computes
        every prefix anew. The generation settings that came with the weights (sampling, temperature) play no part, and
        dropout is off; the modules' modes are restored.
        """
        from lrx.models.stopping import StopTexts

        ids, mask = batch["input_ids"], batch["attention_mask"]
        stop = StopTexts(self.tokenizer, decoding.stop, ids.shape[1]) if decoding.stop else None
        with self._generating():
            if decoding.beams > 1 or not use_cache:
                made = self._continue(ids, mask, decoding, [stop] if stop else [], use_cache)
                return made.sequences[:, ids.shape[1] :]
            return self._greedy(ids, mask, decoding, stop)

    def _greedy(self, ids: Tensor, mask: Tensor, decoding: Decoding, stop: StopTexts | None) -> Tensor:
        """Tokens as one call of transformers gives them, but rows that have ended are not computed any further."""
        from lrx.models.stopping import Sparse

        prompt = ids.shape[1]
        written = ids.new_full((len(ids), decoding.max_new_tokens), self.tokenizer.pad_token_id)
        rows, cache, length = torch.arange(len(ids), device=ids.device), None, 0
        while len(rows) and length < decoding.max_new_tokens:
            sparse = Sparse(self.end_tokens(), stop, ids)
            left = dataclasses.replace(decoding, max_new_tokens=decoding.max_new_tokens - length)
            made = self._continue(ids, mask, left, [sparse], True, cache, prompt)
            length = made.sequences.shape[1] - prompt
            written[rows, :length] = made.sequences[:, prompt:]
            going = (~sparse.ended).nonzero().squeeze(1)
            rows, ids, cache = rows[going], made.sequences[going], made.past_key_values
            mask = F.pad(mask[going], (0, ids.shape[1] - mask.shape[1]), value=1)
            cache.batch_select_indices(going)
        return written[:, :length]

    def _continue(
        self,
        ids: Tensor,
        mask: Tensor,
        decoding: Decoding,
        criteria: list[Any],
        use_cache: bool,
        cache: Any = None,
        prompt: int | None = None,
    ) -> Any:
        """One call of transformers' ``generate``, from ``cache`` on where there is one.

        ``prompt``: tokens of ``ids`` that are none of the answer; None: all.
        """
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        from lrx.models.stopping import NoRepeat

        once = [NoRepeat(decoding.no_repeat_ngram, prompt or ids.shape[1])] if decoding.no_repeat_ngram else []
        settings = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            num_beams=decoding.beams,
            length_penalty=decoding.length_penalty,
            repetition_penalty=decoding.repetition_penalty,
            use_cache=use_cache,
            return_dict_in_generate=True,
        )
        return self.net.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList(criteria),
            logits_processor=LogitsProcessorList(once),
            **({} if cache is None else {"past_key_values": cache}),
        )

    def end_tokens(self) -> list[int]:
        """Tokens that end a text: the tokenizer's, and those that the weights' own generation settings name."""
        own = self.net.generation_config.eos_token_id
        return sorted({self.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])})

    def stock(self) -> nn.Module:
        return gpt2.fuse(self.net) if self.rewritten else self.net

    @contextmanager
    def _generating(self) -> Iterator[None]:
        """Evaluation mode, and transformers' plain generation settings in place of the weights' own."""
        from transformers import GenerationConfig

        modes = {module: module.training for module in self.modules()}
        own = self.net.generation_config
        plain = GenerationConfig(eos_token_id=self.end_tokens(), pad_token_id=self.tokenizer.pad_token_id)
        self.eval()
        self.net.generation_config = plain  # what a call leaves open is taken from here
        try:
            yield
        finally:
            self.net.generation_config = own
            for module, mode in modes.items():
                module.training = mode

    def _hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """The last layer's output (batch, length, width)."""
        mask, positions = batch.get("attention_mask"), None
        if mask is not None:
            if mask[:, 0].all():
                mask = None  # padded on the right: no token looks to its right, and attention is faster unmasked
            else:
                positions = (mask.cumsum(1) - 1).clamp(min=0)
        decoder = self.net.base_model
        return decoder(
            input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state

    def _scores(self, hidden: Tensor) -> Tensor:
        """Scores (..., vocabulary) in float32 of hidden states (..., width)."""
        scores = self.net.get_output_embeddings()(hidden)
        if cap := getattr(self.net.config, "final_logit_softcapping", None):  # Gemma 2
            scores = torch.tanh(scores / cap) * cap
        return scores.float()
