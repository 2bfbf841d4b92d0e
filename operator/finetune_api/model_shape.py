"""How large a model is, part by part: from its config.json and the headers of its weights, without loading it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

TensorShapes = Mapping[str, tuple[int, ...]]
"""By name, as a safetensors file writes them."""
_BLOCK = re.compile(r"\.\d+\.")
_LONGEST_HEADER = 100 << 20
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
_SECOND_LAYERS = ("num_decoder_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads")
_INNER = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim", "encoder_ffn_dim")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
PLAIN_OUTPUT = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3"})
"""Model types whose output layer is known to be a plain linear map of the decoder's last state."""
_EXPERT, _FEED_FORWARD = ".experts.", ("gate_proj", "up_proj", "down_proj")
_GATED = ("silu", "swish", "gelu_pytorch_tanh")


def shapes_in(stream: BinaryIO) -> dict[str, tuple[int, ...]]:
    """What a safetensors file holds, from its beginning alone. Raises ValueError for what does not begin as one does.

    The format: 8 bytes with the header's length, the header as JSON, the tensors.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= _LONGEST_HEADER:
        raise ValueError("it does not begin as a safetensors file does")
    try:
        header = json.loads(stream.read(length))
        return {name: tuple(map(int, each["shape"])) for name, each in header.items() if name != "__metadata__"}
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError("its header is not as that of a safetensors file") from error


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Numbers of parameters, and widths in elements per token."""

    parameters: int
    counted: bool
    """In the headers of its files; else estimated from config.json."""
    layers: int
    """Of both parts, where one reads and the other writes."""
    width: int
    attention_width: int
    """Of all queries; keys and values are repeated to it. A block of the part that writes looks at what was read as well:
    that is spread over all layers."""
    inner_width: float
    """Of a gated feed-forward part with as many parameters, those of experts that a token does not ask left out."""
    vocabulary: int
    outside: int
    """Parameters outside of the blocks: embeddings and output layer."""
    looked_up: int
    """Parameters that are looked up, and multiply nothing: the input embedding, unless it is the output layer too."""
    largest: int
    """Parameters of the largest tensor."""
    linears: tuple[tuple[str, int, int], ...]
    """Linear layers inside of the blocks: name and sizes."""
    architectures: tuple[str, ...]
    two_parts: bool
    """Whether one part reads and another writes."""
    plain_output: bool
    """Whether logits are made for a few tokens at a time."""

    @property
    def quantisable(self) -> int:
        """Parameters of linear layers; a mixture's experts and what chooses them are none once they are loaded."""
        return sum(one * other for name, one, other in self.linears if not (_EXPERT in name or name.endswith(".gate")))

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: TensorShapes | None = None) -> Self:
        """From config.json and, where they are at hand, the shapes of all its tensors.

        Raises ValueError where the configuration does not say how large the model is.
        """
        inner = config.get("text_config") if isinstance(config, Mapping) else None
        if not isinstance(config, Mapping) or not isinstance(inner, Mapping | None):
            raise ValueError("config.json holds something else than a configuration")
        text = {**config, **(inner or {})}
        width, layers, heads = (_number(text, names) for names in (_WIDTH, _LAYERS, _HEADS))
        vocabulary, tied = _number(text, ("vocab_size",)), _tied(text)
        attention = heads * _number(text, ("head_dim", "d_kv"), default=width // heads)
        keys = _number(text, ("num_key_value_heads",), default=heads) * attention // heads
        second = _number(text, _SECOND_LAYERS, default=layers) if text.get("is_encoder_decoder") else 0
        found = dict(
            tensors or _expected(text, width=width, layers=layers, second=second, attention=attention, keys=keys)
        )
        layers, crossing = layers + second, second / (layers + second)
        attention, keys = round(attention * (1 + crossing)), round(keys * (1 + crossing))
        if tied:
            found.pop("lm_head.weight", None)
        # What has four dimensions is no weight of a language model: GPT-2's files hold masks.
        sizes = {name: math.prod(shape) for name, shape in found.items() if len(shape) < 4}
        matrices = {name: found[name] for name in sizes if _BLOCK.search(name) and len(found[name]) > 1}
        forward = sum(sizes[name] for name in matrices if not name.endswith(".gate.weight")) / layers - 2 * width * (
            attention + keys
        )
        experts = _number(text, _EXPERTS, default=1)
        asked = _number(text, ("num_experts_per_tok",), default=experts)
        return cls(
            parameters=sum(sizes.values()),
            counted=bool(tensors),
            layers=layers,
            width=width,
            attention_width=attention,
            inner_width=max(0.0, forward * asked / experts) / (3 * width),
            vocabulary=vocabulary,
            outside=sum(size for name, size in sizes.items() if not _BLOCK.search(name)),
            looked_up=0 if tied else vocabulary * width,
            largest=max(sizes.values()),
            linears=tuple(
                (name.removesuffix(".weight"), *shape) for name, shape in matrices.items() if len(shape) == 2
            ),
            architectures=architectures_of(config.get("architectures")),
            two_parts=bool(config.get("is_encoder_decoder")),
            plain_output=config.get("model_type") in PLAIN_OUTPUT,
        )

    def layers_of(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """Sizes of the linear layers that get an adapter where `targets` names them: `all-linear`, or ends of names.

        Of a mixture PEFT adapts an expert's gate and its other factor as one, with twice the rank and each for the
        outputs of both, and then no feed-forward part that is none of a routed expert's. Of architectures whose
        experts it does not know it adapts none: they count all the same.
        """
        mixture = any(_EXPERT in name for name, _, _ in self.linears)
        return [
            (2 * one if _EXPERT in name and other == self.width != one else one, other)
            for name, one, other in self.linears
            if (targets == ["all-linear"] or any(f".{name}".endswith(f".{target}") for target in targets))
            and (_EXPERT in name or not mixture or not name.endswith(_FEED_FORWARD))
        ]

    def flops_per_token(self, *, trained: int) -> float:
        """FLOP of a training step, attention's quadratic part left out (Kaplan et al. 2020, appendix B): 4 for each
        weight that multiplies, 2 more for each that is trained.
        """
        multiplying = self.parameters - self.looked_up
        return 4.0 * multiplying + 2.0 * min(trained, multiplying)


def _tied(config: Mapping[str, Any]) -> bool:
    """Whether the output layer is the input embedding. transformers writes it only where it is not so."""
    return bool(config.get("tie_word_embeddings", True))


def _number(config: Mapping[str, Any], names: Sequence[str], *, default: int | None = None) -> int:
    found = next((config[name] for name in names if isinstance(config.get(name), int) and config[name] > 0), default)
    if found is None:
        raise ValueError(f"config.json has no {names[0]}")
    return int(found)


def _expected(
    config: Mapping[str, Any], *, width: int, layers: int, second: int, attention: int, keys: int
) -> dict[str, tuple[int, ...]]:
    """The tensors of a model that is built as most are; `second`: layers of a part that writes what another has read."""
    inner, experts = _number(config, _INNER, default=4 * width), _number(config, _EXPERTS, default=1)
    gated = (config.get("hidden_act") or config.get("activation_function")) in _GATED
    gated = gated or str(config.get("feed_forward_proj")).startswith("gated")
    found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (_number(config, ("vocab_size",)), width)}
    if not _tied(config):
        found["lm_head.weight"] = found["embed_tokens.weight"]
    sizes = _attention(config, width=width, attention=attention, keys=keys)

    def forward(of: str, inner: int) -> dict[str, tuple[int, ...]]:
        factors = {f"{of}gate_proj": (inner, width)} if gated else {}
        return {f"{of}up_proj": (inner, width), f"{of}down_proj": (width, inner), **factors}

    whole = forward("mlp.", _number(config, ("intermediate_size",), default=inner) if experts > 1 else inner)
    routed: dict[str, tuple[int, ...]] = {"mlp.gate": (experts, width)}
    for expert in range(experts):
        routed |= forward(f"mlp.experts.{expert}.", inner)
    shared = _number(config, ("shared_expert_intermediate_size",), default=0)
    if shared := shared or inner * _number(config, ("n_shared_experts",), default=0):
        routed |= forward("mlp.shared_experts.", shared)
    for number in range(layers):
        parts = sizes | (routed if experts > 1 and _is_mixture(config, layer=number) else whole)
        found |= {f"layers.{number}.{name}.weight": size for name, size in parts.items()}
    sizes |= {f"cross.{name}": size for name, size in sizes.items()} | whole
    return found | {f"decoder.{number}.{name}.weight": size for number in range(second) for name, size in sizes.items()}


def _attention(config: Mapping[str, Any], *, width: int, attention: int, keys: int) -> dict[str, tuple[int, ...]]:
    """Queries, keys, values and answers; compressed where there is a rank for that (DeepSeek-AI 2024, section 2.1)."""
    rank = _number(config, ("kv_lora_rank",), default=0)
    if not rank:
        return {
            "q_proj": (attention, width),
            "k_proj": (keys, width),
            "v_proj": (keys, width),
            "o_proj": (width, attention),
        }
    turned, plain, values = (
        _number(config, (name,)) for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    heads, queries = _number(config, _HEADS), _number(config, ("q_lora_rank",), default=0)
    asked = heads * (turned + plain)
    asking = {"q_a_proj": (queries, width), "q_b_proj": (asked, queries)} if queries else {"q_proj": (asked, width)}
    return {
        **asking,
        "kv_a_proj_with_mqa": (rank + turned, width),
        "kv_b_proj": (heads * (plain + values), rank),
        "o_proj": (width, heads * values),
    }


def _is_mixture(config: Mapping[str, Any], *, layer: int) -> bool:
    """Whether a layer of a mixture has experts: some have none in their first layers, or in others."""
    whole = config.get("mlp_only_layers") or ()
    each = _number(config, ("decoder_sparse_step",), default=1)
    first = _number(config, ("first_k_dense_replace",), default=0)
    return layer >= first and layer not in whole and (layer + 1) % each == 0


def architectures_of(named: object) -> tuple[str, ...]:
    """What a config.json says in `architectures`; () where that is no list, or names none."""
    return tuple(each for each in named if isinstance(each, str)) if isinstance(named, list) else ()
