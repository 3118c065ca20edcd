"""What makes a family's configuration tiny: sizes by field name, and what single families need besides."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, int] = {
    **dict.fromkeys(
        (
            "d_embed", "d_model", "dim", "emb_dim", "embedding_size", "hidden_size", "lru_width", "model_dim", "n_embd",
            "word_embed_proj_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "decoder_layers", "encoder_layers", "n_layer", "n_layers", "num_decoder_layers", "num_encoder_layers",
            "num_hidden_layers", "num_layers",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "decoder_attention_heads", "encoder_attention_heads", "n_head", "n_heads", "num_attention_heads",
            "num_decoder_attention_heads", "num_encoder_attention_heads", "num_heads",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "d_ff", "d_inner", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "hidden_dim", "intermediate_size",
            "n_inner", "decoder_intermediate_size", "encoder_intermediate_size",
        ),
        36,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings", "max_seq_len", "max_source_positions", "max_target_positions", "n_ctx",
            "n_positions",
        ),
        64,
    ),
    **dict.fromkeys(("n_words", "vocab_size", "vocab_size_per_layer_input"), 99),
    **dict.fromkeys(("attention_window", "n_routed_experts", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(
        ("d_head", "d_kv", "head_dim", "hidden_size_per_layer_input", "kv_lora_rank", "q_lora_rank", "v_head_dim"), 8
    ),
    **dict.fromkeys(("block_size", "qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "sliding_window"), 16),
    **dict.fromkeys(("first_k_dense_replace", "n_group", "n_shared_experts", "num_hidden_groups", "topk_group"), 1),
    **dict.fromkeys(("num_experts_per_tok", "num_key_value_heads", "type_vocab_size"), 2),
    "image_size": 64,
    "use_cache": False,
    "patch_size": 8,
    "projection_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip

LAYERS = ["sliding_attention", "full_attention"]
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 4},
    "axk2": {"head_dim": 4, "num_key_value_heads": 4},
    "bailing_hybrid": {"num_expert_group": 1, "num_experts": 4, "num_experts_per_token": 2},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1]},
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "num_groups": 4},
    "bros": {"hidden_size": 64},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "blt_global_transformer": {"num_key_value_heads": 4},
    "blt_local_decoder": {"hidden_size_global": 32, "num_key_value_heads": 4},
    "blt_local_encoder": {"hidden_size_global": 32, "num_key_value_heads": 4},
    "blt_patcher": {"num_key_value_heads": 4},
    "cohere_compass_text": {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in LAYERS}},
    "convnext": {"hidden_sizes": [16, 32, 32, 64]},
    "convnextv2": {"hidden_sizes": [16, 32, 32, 64]},
    "cvt": {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}, "ffn_config": {"ffn_hidden_size": 36}},
    "deepseek_v3": {"head_dim": 4},
    "deepseek_v32": {"head_dim": 4, "num_key_value_heads": 4},
    "dinat": {"mlp_ratio": 2.0},
    "donut-swin": {"embed_dim": 16, "num_heads": [1, 2, 4, 8], "num_layers": 4, "patch_size": 4, "window_size": 2},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_audio_encoder": {
        "adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8, "num_key_value_heads": 4,
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 32, "adapter_out_dim": 32, "per_layer_config": {},
    },
    "efficientnet": {"hidden_dim": 320, "width_coefficient": 0.25, "depth_coefficient": 0.3},
    "encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_chunk_size": 8, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_d_state": 8},
    "focalnet": {"embed_dim": 16, "hidden_sizes": [16, 32, 64, 128]},
    "fsmt": {"src_vocab_size": 99, "tgt_vocab_size": 99},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": LAYERS * 2},
    "glm_moe_dsa": {"head_dim": 4, "num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "layer_types": ["mamba", "attention"]},
    "hgnet_v2": {
        "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 16], "stage_mid_channels": [8] * 4,
        "stage_out_channels": [16] * 4, "hidden_sizes": [16] * 4, "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "hiera": {"embed_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_experts": 16, "linear_num_heads": 2, "linear_head_dim": 8},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": 32},
    "levit": {
        "patch_size": 16, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 2], "key_dim": [8, 8, 8],
        "down_ops": [["Subsample", 8, 2, 2, 2, 2], ["Subsample", 8, 4, 2, 2, 2]],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "longcat_flash": {
        "head_dim": 4, "ffn_hidden_size": 36, "expert_ffn_hidden_size": 36, "zero_expert_num": 2, "moe_topk": 2,
        "num_key_value_heads": 4,
    },
    "luke": {"entity_vocab_size": 99, "entity_emb_size": 8},
    "mamba2": {"num_heads": 8},
    "mobilevit": {"patch_size": 2},
    "mobilevitv2": {"patch_size": 2, "base_attn_unit_dims": [16, 32, 32], "width_multiplier": 0.5},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron_h": {"chunk_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8},
    "nemotron3_5_transcribe_word_timestamp": {"blank_token_id": 98},
    "nemotron3_diarization": {"head_config": {"audio_hidden_size": 32}},
    "perceiver": {
        "num_latents": 16, "d_latents": 32, "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "poolformer": {"hidden_sizes": [16] * 4},
    "pvt": {"hidden_sizes": [16, 16, 20, 32]},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "num_key_value_heads": 2},
    "reformer": {
        "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [2, 4], "attention_head_size": 8, "is_decoder": True,
        "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2,
        "hash_seed": 0,
    },
    "regnet": {"hidden_sizes": [16] * 4, "embedding_size": 16, "groups_width": 8},
    "roc_bert": {"pronunciation_vocab_size": 99, "shape_vocab_size": 99},
    "shieldgemma2": {"mm_tokens_per_image": 4, "image_token_index": 9, "yes_token_index": 5, "no_token_index": 6},
    "swin": {"embed_dim": 16, "num_heads": [1, 2, 4, 8], "num_layers": 4, "patch_size": 4, "window_size": 2},
    "swinv2": {"embed_dim": 16, "num_heads": [1, 2, 4, 8], "num_layers": 4, "patch_size": 4, "window_size": 2},
    "t5": {"decoder_start_token_id": 0},
    "textnet": {"image_size": [64, 64], "hidden_sizes": [16] * 5, "stem_out_channels": 16},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2},
    "xmod": {"default_language": "en_XX"},
    "youtu": {"head_dim": 4},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# Families that no configuration makes small enough, or that need what is not there.
UNBUILT: dict[str, str] = {
    "dinat": "needs the package natten",
    "gemma3n": "its vision tower needs the package timm",
    "gemma4_assistant": "drafts for a larger model, on whose keys and values it runs",
    "gemma4_unified_assistant": "drafts for a larger model, on whose keys and values it runs",
    "layoutlmv2": "needs the package detectron2",
    "timm_wrapper": "needs the package timm",
}

# Rates that a family has and does not take.
REFUSED: dict[tuple[str, str], str] = {
    ("diffllama", "attention_dropout"): "differential attention has no dropout, and its configuration says so",
}

# Where padding still moves the mask.
SHIFTED: dict[tuple[str, str], str] = {
    (
        "token classification",
        "squeezebert",
    ): "keeps hidden states as [B, d, L]: masks of features are of places",
    (
        "token classification",
        "t5gemma2",
    ): "in its decoder's keys padding, which no mask hides, stands before the encoder's",
}
