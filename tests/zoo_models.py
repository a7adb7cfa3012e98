"""Every architecture of stock sequence classification, tiny: `make_zoo_model(folder, "bloom")`."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_labels": 1,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
}
LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "head_dim": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
LINEAR_ATTENTION = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
# What an architecture needs beside SIZES and EXPERTS.
SPECIAL = {
    "albert": {"embedding_size": 32},
    "axk1": LATENT_ATTENTION,
    "axk2": LATENT_ATTENTION,
    "bart": ENCODER_DECODER,
    "bigbird_pegasus": ENCODER_DECODER,
    "canine": {"num_hash_buckets": 64, "num_hash_functions": 8},
    "ctrl": {"dff": 64},
    "deepseek_v2": LATENT_ATTENTION,
    "deepseek_v3": LATENT_ATTENTION,
    "distilbert": {"hidden_dim": 64},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": None, "d_head": 8, "d_inner": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
    "layoutlm": {"max_2d_position_embeddings": 64},
    "layoutlmv3": {
        "input_size": 32,
        "coordinate_size": 5,
        "shape_size": 6,
        "max_2d_position_embeddings": 64,
    },
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4, "max_2d_position_embeddings": 64},
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "mbart": ENCODER_DECODER,
    "minicpm3": LATENT_ATTENTION,
    "mistral4": LATENT_ATTENTION | {"head_dim": 16},
    "mobilebert": {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "mt5": T5,
    "mvp": ENCODER_DECODER,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "plbart": {**ENCODER_DECODER, "d_model": 48, "hidden_size": 48, "num_attention_heads": 12},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "modernbert-decoder": {"layer_types": ["full_attention", "sliding_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"], **LINEAR_ATTENTION},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 32,
        **LINEAR_ATTENTION,
    },
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "feed_forward_size": 64,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "squeezebert": {"embedding_size": 32},
    "xlm": {"emb_dim": 32, "n_heads": 4, "n_layers": 2},
    "xlnet": {
        **{"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "d_head": 8},
        "max_position_embeddings": None,
    },
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "head_dim": None,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "num_key_value_heads": 4,
        "head_dim": None,
        "mamba_d_state": 8,
        "chunk_size": 16,
    },
    "qwen2_moe": {"shared_expert_intermediate_size": 32},
    "t5": T5,
    "umt5": T5,
}
WITHOUT_HEAD_DIM = ("falcon", "bloom", "mpt")


# Architectures whose config holds those of its parts.
TEXT_AND_VISION = ("gemma3", "modernvbert", "qwen3_5", "ultravbert")
VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "depth": 1},
    **{"num_attention_heads": 2, "num_heads": 2, "image_size": 28, "patch_size": 14},
    **{"out_hidden_size": 32, "num_position_embeddings": 4},
}


def zoo_config(model_type: str, tokenizer: PreTrainedTokenizerFast, **options):
    """Make the config of a tiny model, with the tokenizer's ids."""
    settings = {
        **SIZES,
        **EXPERTS,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "head_dim": 8,
        **SPECIAL.get(model_type, {}),
        **options,
    }
    if model_type in WITHOUT_HEAD_DIM:
        del settings["head_dim"]
    settings = {key: value for key, value in settings.items() if value is not None}
    if model_type in TEXT_AND_VISION:
        settings |= SPECIAL.get(f"{model_type}_text", {})
        parts = {"text_config": settings, "vision_config": VISION, "num_labels": 1}
        return AutoConfig.for_model(model_type, **parts)
    if model_type == "t5gemma":
        return AutoConfig.for_model(model_type, **settings, encoder=settings, decoder=settings)
    if model_type == "t5gemma2":
        encoder = {"text_config": settings, "vision_config": VISION}
        return AutoConfig.for_model(model_type, **settings, encoder=encoder, decoder=settings)
    return AutoConfig.for_model(model_type, **settings)


def make_zoo_model(folder: Path, model_type: str, tokenizer: PreTrainedTokenizerFast, **options):
    """Save a tiny reward model with random weights and its tokenizer. Returns the folder."""
    model = AutoModelForSequenceClassification.from_config(
        zoo_config(model_type, tokenizer, **options)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


NAMES = list(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
# LayoutLMv2 needs detectron2; Perceiver's position table alone has 270 million numbers.
NOT_RUN_BY_STOCK = ("layoutlmv2", "perceiver")
