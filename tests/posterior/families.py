"""Tiny random models of every family that transformers can build, for the tests of completeness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

TASKS: dict[str, Mapping[str, Any]] = {
    "sequence classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}

SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "d_embed", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "num_layers", "num_decoder_layers"), 2
    ),
    **dict.fromkeys(
        ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "num_heads", "n_heads"),
        4,
    ),
    **dict.fromkeys(
        ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff", "ffn_dim", "hidden_dim"), 36
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_source_positions"), 64),
    **dict.fromkeys(("vocab_size", "n_words", "vocab_size_per_layer_input"), 99),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "attention_window"), 4),
    **dict.fromkeys(("d_kv", "head_dim", "d_head", "v_head_dim", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "block_size"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "sliding_window"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_hidden_groups"), 1),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "type_vocab_size", "n_layers", "mlp_ratio"), 2),
    "d_inner": 36,
    "max_target_positions": 64,
    "hidden_size_per_layer_input": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def tiny(kind: type[PreTrainedConfig], **settings: Any) -> PreTrainedConfig:
    """The family's configuration at a size that runs in milliseconds."""
    usual = kind()
    fields = usual.to_dict()
    small = {name: size for name, size in SIZES.items() if name in fields and not isinstance(fields[name], dict | list)}
    parts = {name: getattr(usual, name) for name in kind.sub_configs if fields.get(name) is not None}
    small |= {name: tiny(type(part)).to_dict() for name, part in parts.items()}
    return kind(**{**small, **settings})


def dropout_rates(config: PreTrainedConfig, prefix: str = "") -> list[str]:
    """Names of all dropout rates in the configuration; LayerDrop and stochastic depth are none."""
    names = []
    for name, value in config.to_dict().items():
        if isinstance(value, dict) and name in config.sub_configs:
            names += dropout_rates(getattr(config, name), f"{prefix}{name}.")
        elif "drop" in name and not any(other in name for other in ("layerdrop", "layer_drop", "drop_path")):
            names += [prefix + name] if isinstance(value, int | float) and not isinstance(value, bool) else []
    return names


def set_rate(config: PreTrainedConfig, name: str, rate: float) -> None:
    """Set a rate that may belong to a part of the configuration."""
    *parts, last = name.split(".")
    for part in parts:
        config = getattr(config, part)
    setattr(config, last, rate)


def build(task: str, family: str, rate: str | None = None) -> nn.Module:
    """The family's model with random weights, all rates 0 but this one, which is 0.4."""
    config = tiny(CONFIG_MAPPING[family], num_labels=3)
    for name in dropout_rates(config) if rate else []:
        set_rate(config, name, 0.4 if name == rate else 0.0)
    name = TASKS[task][family]
    torch.manual_seed(0)
    model = getattr(transformers, name if isinstance(name, str) else name[0])(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)  # so that noise is not lost in outputs near zero
    return model


def inputs() -> dict[str, Tensor]:
    """Two rows of eight tokens that end as BART's family needs."""
    ids = torch.randint(5, 90, (2, 8), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones(2, 8, dtype=torch.long)}
