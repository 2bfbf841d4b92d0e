"""Tiny random models of many architectures, as a hub would hold them: a base without a head for encoders, a whole
language model for decoders, each with a tokenizer of its own. Made from configurations, in a tenth of a second each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.trainer.tiny_tokenizer import encoder_tokenizer, tiny_tokenizer, two_part_tokenizer

_SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = {**_SIZE, "num_key_value_heads": 2}
_LAYERS = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
_POSITIONS = {"max_position_embeddings": 128}
_SPREAD = 0.1
"""Of the weights. With the 0.02 of real models, tiny ones hardly look at anything: what is wrong would not show."""

NO_POOLER = "bert-no-pooler"
NO_MARKS = "llama-no-marks"
"""Neither its tokenizer nor its configuration names a token for padding or for ends."""
Configure = Callable[[Any], Any]
"""The configuration that goes with a tokenizer."""


def decoder_tokenizer() -> Any:
    """One with a chat template, and a token for padding."""
    return tiny_tokenizer(special=("<|pad|>", "<|im_start|>", "<|im_end|>"), pad="<|pad|>")


def _decoder(name: str, **settings: Any) -> Configure:
    def make(tokenizer: Any) -> Any:
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        return getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **{**ends, **settings})

    return make


def _encoder(name: str, **settings: Any) -> Configure:
    def make(tokenizer: Any) -> Any:
        return getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **{"pad_token_id": 0, **settings})

    return make


DECODERS: Mapping[str, Configure] = {
    "llama": _decoder("Llama", **_GROUPED, **_POSITIONS),
    NO_MARKS: _decoder("Llama", **_GROUPED, **_POSITIONS),
    "mistral-window": _decoder("Mistral", **_GROUPED, **_POSITIONS, sliding_window=12),
    "qwen2": _decoder("Qwen2", **_GROUPED, **_POSITIONS, tie_word_embeddings=True),
    "qwen3": _decoder("Qwen3", **_GROUPED, **_POSITIONS, head_dim=8),
    "gemma2": _decoder("Gemma2", **_GROUPED, **_POSITIONS, head_dim=8, sliding_window=12),
    "gemma3_text": _decoder("Gemma3Text", **_GROUPED, **_POSITIONS, head_dim=8, sliding_window=12),
    "phi3": _decoder("Phi3", **_GROUPED, **_POSITIONS),
    "olmo2": _decoder("Olmo2", **_GROUPED, **_POSITIONS),
    "smollm3": _decoder("SmolLM3", **_GROUPED, **_POSITIONS),
    "granite": _decoder("Granite", **_GROUPED, **_POSITIONS),
    "cohere": _decoder("Cohere", **_GROUPED, **_POSITIONS),
    "gpt2": _decoder("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt_neo": _decoder(
        "GPTNeo",
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=12,
        **_POSITIONS,
    ),
    "gpt_neox": _decoder("GPTNeoX", **_SIZE, **_POSITIONS),
    "gptj": _decoder("GPTJ", n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128),
    "opt": _decoder(
        "OPT",
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        **_POSITIONS,
    ),
    "bloom": _decoder("Bloom", hidden_size=32, n_layer=2, n_head=4),
    "falcon": _decoder("Falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_POSITIONS),
    "mpt": _decoder("Mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=128),
    "stablelm": _decoder("StableLm", **_GROUPED, **_POSITIONS),
    "starcoder2": _decoder("Starcoder2", **_GROUPED, **_POSITIONS, sliding_window=None),
    "mixtral": _decoder(
        "Mixtral", **_GROUPED, **_POSITIONS, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    "qwen3_moe": _decoder(
        "Qwen3Moe", **_GROUPED, **_POSITIONS, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
    "gpt_oss": _decoder(
        "GptOss", **_GROUPED, **_POSITIONS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=12
    ),
    "deepseek_v3": _decoder(
        "DeepseekV3",
        **_SIZE,
        num_key_value_heads=4,
        **_POSITIONS,
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        qk_nope_head_dim=4,
        first_k_dense_replace=1,
    ),
    "mamba": _decoder("Mamba", hidden_size=32, num_hidden_layers=2, state_size=4),
    "mamba2": _decoder(
        "Mamba2", hidden_size=32, num_hidden_layers=2, state_size=4, num_heads=8, head_dim=8, n_groups=1, chunk_size=16
    ),
    "rwkv": _decoder("Rwkv", hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=128),
    "jamba": _decoder(
        "Jamba",
        **_GROUPED,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        use_mamba_kernels=False,
        **_POSITIONS,
    ),
    "falcon_h1": _decoder(
        "FalconH1",
        **_GROUPED,
        **_POSITIONS,
        head_dim=8,
        mamba_d_state=8,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_ssm=32,
        mamba_chunk_size=16,
    ),
    "qwen3_next": _decoder(
        "Qwen3Next",
        **_GROUPED,
        **_POSITIONS,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        layer_types=["linear_attention", "full_attention"],
    ),
    "recurrent_gemma": _decoder(
        "RecurrentGemma",
        **_GROUPED,
        head_dim=8,
        lru_width=32,
        attention_window_size=12,
        block_types=["recurrent", "attention"],
    ),
    "xlnet": _decoder("XLNet", d_model=32, n_layer=2, n_head=4, d_inner=48),
}
"""Language models."""

ENCODERS: Mapping[str, Configure] = {
    "bert": _encoder("Bert", **_SIZE, **_POSITIONS),
    NO_POOLER: _encoder("Bert", **_SIZE, **_POSITIONS),
    "distilbert": _encoder("DistilBert", dim=32, hidden_dim=48, n_layers=2, n_heads=4, **_POSITIONS),
    "roberta": _encoder("Roberta", **_SIZE, **_POSITIONS),
    "xlm-roberta": _encoder("XLMRoberta", **_SIZE, **_POSITIONS),
    "electra": _encoder("Electra", **_SIZE, embedding_size=16, **_POSITIONS),
    "deberta-v2": _encoder(
        "DebertaV2", **_SIZE, **_POSITIONS, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16
    ),
    "deberta": _encoder("Deberta", **_SIZE, **_POSITIONS, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": _encoder(
        "ModernBert",
        **_SIZE,
        **_POSITIONS,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=12,
    ),
    "albert": _encoder("Albert", **_SIZE, embedding_size=16, **_POSITIONS),
    "mpnet": _encoder("MPNet", **_SIZE, **_POSITIONS),
    "camembert": _encoder("Camembert", **_SIZE, **_POSITIONS),
    "convbert": _encoder("ConvBert", **_SIZE, embedding_size=16, head_ratio=2, **_POSITIONS),
    "canine": lambda tokenizer: transformers.CanineConfig(**_SIZE, **_POSITIONS, num_hash_buckets=64),
}
"""Encoders without the head that a classifier needs."""

_TWO_PARTS = {
    "d_model": 32,
    **{f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in _LAYERS.items()},
}
_RELATIVE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}


def _two_parts(name: str, **settings: Any) -> Configure:
    def make(tokenizer: Any) -> Any:
        marks = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
        found = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **{**marks, **settings})
        found.decoder_start_token_id = tokenizer.eos_token_id if name == "M2M100" else 0
        return found

    return make


TWO_PARTS: Mapping[str, Configure] = {
    "t5": _two_parts("T5", **_RELATIVE, tie_word_embeddings=True),
    "t5-v1.1": _two_parts("T5", **_RELATIVE, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": _two_parts("MT5", **_RELATIVE),
    "umt5": _two_parts("UMT5", **_RELATIVE),
    "longt5": _two_parts("LongT5", **_RELATIVE, local_radius=3),
    "bart": _two_parts("Bart", **_TWO_PARTS, **_POSITIONS),
    "mbart": _two_parts("MBart", **_TWO_PARTS, **_POSITIONS),
    "pegasus": _two_parts("Pegasus", **_TWO_PARTS, **_POSITIONS),
    "marian": _two_parts("Marian", **_TWO_PARTS, **_POSITIONS),
    "m2m_100": _two_parts("M2M100", **_TWO_PARTS, **_POSITIONS),
    "led": _two_parts(
        "LED",
        **_TWO_PARTS,
        attention_window=8,
        max_encoder_position_embeddings=128,
        max_decoder_position_embeddings=128,
    ),
}
"""Models that read with one part and write with another."""


def tokenizer_of(name: str) -> Any:
    """The tokenizer that goes with a model."""
    if name == "canine":
        return transformers.CanineTokenizer()
    if name == NO_MARKS:
        return tiny_tokenizer(eos=None)
    if name in TWO_PARTS:
        return two_part_tokenizer(begins=not name.endswith(("t5", "t5-v1.1")))
    return decoder_tokenizer() if name in DECODERS else encoder_tokenizer()


def configuration(name: str, tokenizer: Any) -> Any:
    """The model's configuration."""
    config = {**DECODERS, **ENCODERS, **TWO_PARTS}[name](tokenizer)
    if hasattr(config, "initializer_range"):
        config.initializer_range = _SPREAD
    return config


def make(name: str, *, to: Path) -> Path:
    """The model's folder."""
    torch.manual_seed(0)
    loader: Any = transformers.AutoModelForCausalLM if name in DECODERS else transformers.AutoModel
    loader = transformers.AutoModelForSeq2SeqLM if name in TWO_PARTS else loader
    tokenizer = tokenizer_of(name)
    config = configuration(name, tokenizer)
    model = loader.from_config(config, **({"add_pooling_layer": False} if name == NO_POOLER else {}))
    model.save_pretrained(str(to))
    tokenizer.save_pretrained(str(to))
    (to / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return to
