"""Tiny random models of every family that transformers can build, for the tests of completeness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from tests.posterior.family_settings import OVERRIDES, SIZES

TASKS: dict[str, Mapping[str, Any]] = {
    "sequence classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "seq2seq LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "image classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "causal LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
# Noise in training that is no dropout: it is off, so that training varies by the dropout alone.
_OTHER_NOISE = ("layerdrop", "layer_drop", "drop_path", "drop_connect_rate", "moe_token_dropout", "jitter")


def tiny(kind: type[PreTrainedConfig], **settings: Any) -> PreTrainedConfig:
    """The family's configuration at a size that runs in milliseconds."""
    usual = kind()
    fields = usual.to_dict()
    small: dict[str, Any] = {
        name: size for name, size in SIZES.items() if name in fields and not isinstance(fields[name], dict | list)
    }
    if isinstance(fields.get("layer_types"), list):  # one layer of each type, two at least
        types = list(dict.fromkeys(fields["layer_types"]))
        small["layer_types"] = types * 2 if len(types) == 1 else types
        small["num_hidden_layers"] = len(small["layer_types"])
    if isinstance(fields.get("depths"), list):
        small["depths"] = [1 for _ in fields["depths"]]
    parts = {name: getattr(usual, name) for name in kind.sub_configs if fields.get(name) is not None}
    special = OVERRIDES.get(kind.model_type, {})
    whole = {name: {**tiny(type(part)).to_dict(), **special.get(name, {})} for name, part in parts.items()}
    return kind(**{**small, **special, **whole, **settings})


def dropout_rates(config: PreTrainedConfig) -> list[str]:
    """Names of all dropout rates in the configuration; LayerDrop and stochastic depth are none."""
    return [name for name in _noises(config) if not any(other in name for other in _OTHER_NOISE)]


def _noises(config: PreTrainedConfig, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.to_dict().items():
        if name in config.sub_configs and getattr(config, name, None) is not None:
            names += _noises(getattr(config, name), f"{prefix}{name}.")
        elif ("drop" in name or "jitter" in name) and not isinstance(value, bool):
            names.append(prefix + name)
    return names


def set_rate(config: PreTrainedConfig, name: str, rate: float) -> None:
    """Set a rate that may belong to a part of the configuration, or be one for each stage."""
    *parts, last = name.split(".")
    for part in parts:
        config = getattr(config, part)
    usual = getattr(config, last)
    # Past the check of types: MPT's rate is declared an integer.
    vars(config)[last] = [rate for _ in usual] if isinstance(usual, list | tuple) else rate


def configuration(task: str, family: str) -> PreTrainedConfig:
    """What the family's model for a task is built from, without noise."""
    config, kind = tiny(CONFIG_MAPPING[family], num_labels=3), model_class(task, family)
    if not isinstance(config, kind.config_class):  # the language model of a vision-language model alone
        parts = [getattr(config, part) for part in config.sub_configs]
        config = next((part for part in parts if isinstance(part, kind.config_class)), config)
    for name in _noises(config):
        set_rate(config, name, 0.0)
    return config


def model_class(task: str, family: str) -> Any:
    """The class that transformers has for a family and a task; the first, where there are several."""
    name = TASKS[task][family]
    return getattr(transformers, name if isinstance(name, str) else name[0])


def build(task: str, family: str, rates: Mapping[str, float]) -> nn.Module:
    """The family's model with random weights, without noise but for these rates."""
    config = configuration(task, family)
    for name, rate in rates.items():
        set_rate(config, name, rate)
    torch.manual_seed(0)
    model: nn.Module = model_class(task, family)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)  # so that noise is not lost in outputs near zero
        norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:  # statistics of these inputs, for the same reason
            norm.train().momentum = 1.0
        if norms:
            model(**inputs(task, model))
    return model.eval()


def inputs(task: str, model: nn.Module) -> dict[str, Tensor]:
    """Two rows of eight tokens that end as BART's family needs, or two images."""
    generator = torch.Generator().manual_seed(0)
    family = model.config.model_type
    if family == "siglip2":  # patches, and how many each way
        return {
            "pixel_values": torch.randn(2, 64, 192, generator=generator),
            "pixel_attention_mask": torch.ones(2, 64, dtype=torch.long),
            "spatial_shapes": torch.full((2, 2), 8),
        }
    if task == "image classification" and family != "imagegpt":
        config = getattr(model.config, "vision_config", model.config)
        size, channels = getattr(config, "image_size", 64), getattr(config, "num_channels", 3)
        height, width = (size, size) if isinstance(size, int) else size
        given = {"pixel_values": torch.randn(2, channels, height, width, generator=generator)}
        if family == "shieldgemma2":  # a question of four tokens for the image and four of text
            given["input_ids"] = torch.tensor([[9, 9, 9, 9, 11, 12, 13, 14]] * 2)
        return given
    ids = torch.randint(5, 90, (2, 8), generator=generator)
    ids[:, -1] = 2
    if family == "bros":
        boxes = torch.rand(2, 8, 4, generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones(2, 8, dtype=torch.long), "bbox": boxes}
    if family == "voxtral_realtime":
        sounds = torch.randn(2, model.config.audio_config.num_mel_bins, 64, generator=generator)
        return {"input_ids": ids, "input_features": sounds}
    given = {"input_ids": ids, "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    return {**given, "decoder_input_ids": ids} if model.config.is_encoder_decoder and task == "seq2seq LM" else given


def output(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """The model's logits."""
    came = model(**given)
    return came.logits if hasattr(came, "logits") else came[0]
