"""Tokenizers made in a moment, for tests that are about their marks and templates and about nothing that they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXTS = [
    "What is the capital of France? The capital of France is Paris.",
    "Assistant: user system question answer",
] * 9


def tiny_tokenizer(
    *,
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos: str | None = "<|im_end|>",
    pad: str | None = None,
    template: str | None = CHATML,
    texts: Sequence[str] = _TEXTS,
    **named: str,
) -> Any:
    """Bytes and the commonest merges of `texts`, with marks as wanted."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if "cls_token" in named:
        marks = {name: made.token_to_id(named[name]) for name in ("cls_token", "sep_token")}
        made.post_processor = processors.TemplateProcessing(
            single=f"{named['cls_token']} $A {named['sep_token']}",
            special_tokens=[(named[name], number) for name, number in marks.items()],
        )
    named |= {name: token for name, token in (("eos_token", eos), ("pad_token", pad)) if token is not None}
    fast: Any = transformers.PreTrainedTokenizerFast
    found = fast(tokenizer_object=made, clean_up_tokenization_spaces=False, **named)
    found.chat_template = template
    return found


def encoder_tokenizer() -> Any:
    """One that puts marks at both ends of a text."""
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return tiny_tokenizer(special=("[PAD]", *marks.values()), eos=None, pad="[PAD]", template=None, **marks)


def two_part_tokenizer(*, begins: bool) -> Any:
    """One that ends each text with a mark, as T5's does; and begins it with another one, as BART's does."""
    marks = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    made = tiny_tokenizer(special=("<pad>", *marks.values()), eos="</s>", pad="<pad>", template=None, **marks)
    if not begins:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", made.eos_token_id)]
        )
    return made
