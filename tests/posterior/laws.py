"""The laws of every posterior, and the models that they are tried on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel, set_seed

from baal_hf import Posterior


def llama(seed: int = 0, **settings: object) -> PreTrainedModel:
    """A random Llama with two layers and three classes, which ships without dropout."""
    set_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 24, "vocab_size": 99, "pad_token_id": 0, "num_labels": 3}
    return LlamaForSequenceClassification(LlamaConfig(initializer_range=0.3, **{**sizes, **settings})).eval()


def tokens(lengths: list[int]) -> dict[str, Tensor]:
    """Rows of token ids padded on the right; a row depends on its place alone."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 90, (length,), generator=torch.Generator().manual_seed(row))
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def drawn(model: nn.Module, posterior: Posterior, t: int, **inputs: Tensor) -> Tensor:
    """Logits of one draw; what the model returns first if it has none."""
    with torch.no_grad(), posterior.draw(model, t):
        came = model(**inputs)
        return came.logits if "logits" in came else came[0]


def state(model: nn.Module) -> dict[str, object]:
    """All that a draw could leave changed, tensors by identity, version and value."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: (id(value), value.data_ptr(), value.tolist()) for name, value in tensors.items()},
        "names": list(model.state_dict()),
        "flags": [(name, part.training) for name, part in model.named_modules()],
        "requires_grad": [weight.requires_grad for weight in model.parameters()],
        "attributes": [sorted(vars(part)) for part in model.modules()],
        "forward": [part.forward.__func__ for part in model.modules()],
        "classes": [type(part) for part in model.modules()],
        "hooks": [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()],
        "global hooks": [
            len(nn.modules.module._global_forward_hooks),
            len(nn.modules.module._global_forward_pre_hooks),
        ],
    }


def left_as_it_was(
    model: nn.Module, block: Callable[[], AbstractContextManager[object]], run: Callable[[], object]
) -> None:
    """Whether the block runs or fails, nothing about the model has changed after it."""
    model.train()
    next(model.children()).eval()
    before = state(model)
    with block():
        run()
    assert state(model) == before
    try:
        with block():
            run()
            raise KeyError
    except KeyError:
        pass
    assert state(model) == before
