"""Attention of a packed row, each of its examples by itself.

`transformers` keeps the examples of a row apart by a mask of all its tokens times all its tokens. Here a `Row` takes
the mask's place on its way through the model: layers hand it on as it is, and attention computes each example alone. A
model attends to the same tokens or is left as it was loaded, so there is nothing to switch on or off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune_trainer.tasks import packed_rows
from finetune_trainer.tasks.packed_rows import Lengths

log = logging.getLogger(__name__)
_NAME = "finetune_variable_length"
_CLOSE = 0.03
"""Of bf16 numbers of about 1, which have eight bits: what two ways to add them up may differ by."""


@dataclass(kw_only=True, eq=False)
class Row:
    """What attention is given in place of a mask. A model that does anything with it but hand it on (DeepSeek's and
    GLM's sparse attention) finds the mask itself, and attention gets what it makes of that.
    """

    lengths: Lengths
    seen: int | None
    """How far back each token sees; None: to its example's first."""
    longest: torch.Tensor | None
    """The mask of the longest example, where that is longer than what is seen; shape (1, 1, tokens, tokens). A shorter
    example's is its beginning."""
    make: Callable[[], torch.Tensor | None]
    """The mask of `transformers`."""

    @cached_property
    def whole(self) -> Any:
        """The mask."""
        return self.make()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __getitem__(self, where: Any) -> Any:
        return self.whole[where]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        given, named = tree_map(lambda each: each.whole if isinstance(each, cls) else each, (given, named or {}))
        return function(*given, **named)


def use(model: Any) -> bool:
    """Have a model attend to packed rows by example; other rows stay as they are. Returns whether it does.

    Not where an architecture does not ask for its attention by name (Falcon, GPT-J), or needs one of its own (Gemma 2's
    bounded scores, GPT-OSS's sinks).
    """
    if not model._supports_attention_backend or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)
    return True


def _mask(**asked: Any) -> Row | torch.Tensor | None:
    """Called once a pass for each kind of layer, as `sdpa_mask` is."""
    lengths, whole = packed_rows.lengths(), partial(sdpa_mask, **asked)
    known = (
        lengths is not None
        and asked["attention_mask"] is None
        and asked["batch_size"] == 1
        and asked["q_length"] == asked["kv_length"] == sum(lengths.each)
        and not asked["use_vmap"]  # a pattern of the model's own
        and "allow_is_bidirectional_skip" not in asked
    )
    if lengths is None or not known:
        return whole()
    seen, length, longest = asked.get("local_size"), max(lengths.each), None
    if seen is not None and length > seen:
        begin = lengths.places[lengths.each.index(length)].start
        part = {"q_length": length, "kv_length": length, "q_offset": begin, "kv_offset": begin}
        longest = sdpa_mask(**asked | part | {"allow_is_causal_skip": False})
    return Row(lengths=lengths, seen=seen, longest=longest, make=whole)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """`query`: (1, heads, tokens, width); returns (1, tokens, heads, width)."""
    row = attention_mask
    if not isinstance(row, Row):
        return sdpa_attention_forward(module, query, key, value, row, **options)
    if options.get("position_bias") is not None or not query.shape[2] == key.shape[2] == sum(row.lengths.each):
        return sdpa_attention_forward(module, query, key, value, row.whole, **options)
    plain = not options.get("dropout") and options.get("softcap") is None and len(query) == 1
    if query.is_cuda and row.longest is None and plain:
        typed = [_computed_in(each) for each in (query, key, value)]
        if _kernel_is_right(*((each.device, each.dtype, each.shape[1], each.shape[3]) for each in typed)):
            return _by_kernel(*typed, lengths=row.lengths, scale=options.get("scaling")), None
    options["is_causal"] = True
    answers = []
    for place, length in zip(row.lengths.places, row.lengths.each, strict=True):
        # None: all that comes before.
        mask = None if row.longest is None or length <= (row.seen or 0) else row.longest[..., :length, :length]
        ours, keys, values = (each[:, :, place] for each in (query, key, value))
        answers.append(sdpa_attention_forward(module, ours, keys, values, mask, **options)[0])
    return torch.cat(answers, dim=1), None


# -- one kernel for all examples, on GPUs -----------------------------------------------------------------------------


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, lengths: Lengths, scale: float | None
) -> torch.Tensor:
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))  # (tokens, heads, width)
    bounds, longest = lengths.boundaries, max(lengths.each)
    answer: Any = varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True
    )
    return answer.unsqueeze(0)  # type: ignore[no-any-return]


def _computed_in(tensor: torch.Tensor) -> torch.Tensor:
    """As autocast would have it, which does not know the kernel."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


@cache
def _kernel_is_right(*shapes: tuple[torch.device, torch.dtype, int, int]) -> bool:
    """Whether the kernel takes such queries, keys and values (device, type, heads, width), and gives what SDPA gives:
    tried once, on random numbers, forward and backward.
    """
    if any(dtype not in (torch.bfloat16, torch.float16) for _, dtype, _, _ in shapes):
        return False
    device = shapes[0][0]
    generator = torch.Generator(device).manual_seed(0)
    try:
        with torch.inference_mode(mode=False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            lengths = Lengths.of([150, 37]).to(device)
            given = [
                torch.randn(1, heads, 187, width, generator=generator, device=device, dtype=dtype)
                for _, dtype, heads, width in shapes
            ]
            ours = _with_gradients(partial(_by_kernel, lengths=lengths, scale=None), given)
            theirs = _with_gradients(partial(_one_by_one, lengths=lengths), given)
    except (RuntimeError, ValueError) as error:
        log.warning("packed examples are asked one by one, since the kernel takes no %s: %s", shapes, error)
        return False
    return all(
        float((one.float() - other.float()).abs().max()) <= _CLOSE * float(other.float().abs().max())
        for one, other in zip(ours, theirs, strict=True)
    )


def _with_gradients(ask: Callable[..., torch.Tensor], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [each.clone().requires_grad_() for each in given]
    answer = ask(*leaves)
    return [answer, *torch.autograd.grad(answer.float().square().sum(), leaves)]


def _one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, lengths: Lengths) -> torch.Tensor:
    parts = [
        scaled_dot_product_attention(query[:, :, at], key[:, :, at], value[:, :, at], is_causal=True, enable_gqa=True)
        for at in lengths.places
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)
