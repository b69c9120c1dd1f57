"""A tokenizer that needs no file."""

from __future__ import annotations

from typing import Any


def bytes_tokenizer() -> Any:
    """A token for each byte of the text in UTF-8, an end token and a padding token: 258 in all, nothing to download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>", pad_token="<|pad|>")


def tokenizer_from(text: str) -> Any:
    """The tokenizer in the text of a ``tokenizer.json`` whose first special token ends a text and pads."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    end = next(token["content"] for token in json.loads(text)["added_tokens"] if token["special"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), eos_token=end, pad_token=end)
