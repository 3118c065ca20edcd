"""Which modules hide a dropout behind their training flag."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch.nn.functional as F
from torch import nn
from transformers.models.bart.modeling_bart import BartAttention, BartEncoder
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.swin.modeling_swin import SwinDropPath

from baal_hf.posterior.switches import gates_dropout


class _Branch(nn.Module):
    def forward(self, x: Any) -> Any:
        if self.training and self.p > 0:
            x = F.dropout(x, self.p)
        return x


class _Product(nn.Module):
    def forward(self, x: Any) -> Any:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.attention_dropout * self.training)


class _Sets(nn.Module):
    def forward(self, x: Any) -> Any:
        p = 0.0
        if self.training:
            p = self.rate
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


class _ReturnsEarly(nn.Module):
    def forward(self, x: Any) -> Any:
        if not self.training:
            return x
        return F.dropout(x, 0.1, True)


class LockedDropout(nn.Module):
    def forward(self, x: Any) -> Any:
        if not self.training or self.p == 0:
            return x
        return x * x.new_empty(x.shape[-1]).bernoulli_(1 - self.p)


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


class _Decorated(nn.Module):
    @_wrapped
    def forward(self, x: Any) -> Any:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.p if self.training else 0.0)


class _PathNoise(nn.Module):
    def forward(self, x: Any) -> Any:
        if not self.training:
            return x
        return x * x.new_empty(len(x)).bernoulli_(0.5)


class _PassesOn(nn.Module):
    def forward(self, x: Any) -> Any:
        return F.dropout(x, 0.1, training=self.training)


class _Inherits(_Branch):
    pass


OWN = [_Branch, _Inherits, _Product, _Sets, _ReturnsEarly, LockedDropout, _Decorated]


@pytest.mark.parametrize("kind", [BertSelfAttention, BartAttention, GPT2Attention, LlamaAttention, *OWN])
def test_gates_are_found(kind: type[nn.Module]) -> None:
    """Attention modules that choose their rate by the flag are switched on."""
    assert gates_dropout(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *(BertLayer, BartEncoder, MixtralSparseMoeBlock, SwinDropPath),
        *(_PathNoise, _PassesOn, nn.Dropout, nn.BatchNorm1d),
    ],
)
def test_everything_else_stays_in_evaluation(kind: type[nn.Module]) -> None:
    """LayerDrop, router noise, stochastic depth, checkpointing and batch norm keep their flag off."""
    assert not gates_dropout(kind)


def test_without_source_the_names_decide() -> None:
    """A class whose source cannot be read is judged by the names that its code uses."""
    scope: dict[str, Any] = {"nn": nn, "F": F}
    exec(
        "class Gate(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.dropout if self.training else 0.0)\n"
        "class Plain(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x + 1 if self.training else x\n",
        scope,
    )
    assert gates_dropout(scope["Gate"])
    assert not gates_dropout(scope["Plain"])
