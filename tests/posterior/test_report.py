"""The report of a model's dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    SEWDConfig,
    SEWDForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
)

from baal_hf import DropoutSite, MCDropout, dropout_report
from tests.posterior.laws import llama, tokens

BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 99}


class Own(nn.Module):
    """Dropout of all kinds that torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.3
        self.drop_prob = 0.2
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.4)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1)
        self.layer = nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_prob, self.training)


def test_every_kind_is_found() -> None:
    """Modules, rates that a forward pass reads, torch's attention and LSTM are sites with their rates."""
    assert dropout_report(Own()).sites == (
        DropoutSite("", "drop_prob", 0.2, True),
        DropoutSite("lstm", "LSTM between layers", 0.4, True),
        DropoutSite("attention", "MultiheadAttention", 0.1, True),
        DropoutSite("layer", "Dropout2d", 0.5, True),
    )


def test_why_not() -> None:
    """Sites at rate 0 and noise that stays off are listed with their reason."""
    report = dropout_report(BartForSequenceClassification(BartConfig(**BART, attention_dropout=0.0)))
    by_place = {(site.where, site.kind): site for site in report.sites}
    assert by_place["model.encoder", "layerdrop"].why_not.startswith("skips whole layers")
    assert by_place["model.encoder.layers.0.self_attn", "dropout"].why_not == "p = 0"
    assert by_place["model.decoder.layers.1", "dropout"].fires
    swin = SwinForImageClassification(SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2]))
    assert any(site.why_not.startswith("skips whole branches") for site in dropout_report(swin).sites)


def test_table_has_a_line_for_layers_of_one_kind() -> None:
    """Printed, the sites of all layers are one line with their number."""
    text = str(dropout_report(llama()))
    assert text.splitlines()[0] == "Dropout of LlamaForSequenceClassification:"
    assert text.splitlines()[1].split() == ["where", "kind", "p", "fires", "sites"]
    assert text.splitlines()[2].split("  ")[0] == "model.layers.*.self_attn"
    assert text.splitlines()[2].split()[-6:] == ["0", "no:", "p", "=", "0", "2"]
    assert str(dropout_report(nn.Linear(1, 1))) == "Linear has no dropout at all."
    assert not dropout_report(nn.Linear(1, 1)).fires


def test_a_kernel_with_its_own_masks_is_refused() -> None:
    """Attention that drops out inside a kernel does not fire, and a draw of it is an error; at rate 0 it is none."""
    model = llama(attention_dropout=0.1)
    model.config._attn_implementation = "flash_attention_2"
    site = dropout_report(model).sites[0]
    assert not site.fires and "flash_attention_2" in site.why_not
    advice = r'kernel \'flash_attention_2\'(.|\n)*set_attn_implementation\("sdpa"\)'
    with pytest.raises(ValueError, match=advice), MCDropout().draw(model, 0):
        pass
    still = llama()
    still.config._attn_implementation = "flash_attention_2"
    with MCDropout(p=0.1).draw(still, 0):
        pass
    with pytest.raises(ValueError, match="kernel"), MCDropout(p=0.1, where="attention").draw(still, 0):
        pass


def test_a_models_own_dropout_class_draws_like_torchs() -> None:
    """SEW-D drops out by a function of its own: its coins are the draw's, the same for every row and every time."""
    config = SEWDConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_stride=(5, 2), conv_kernel=(10, 3), squeeze_factor=1, num_conv_pos_embeddings=4, feat_proj_dropout=0.0,
        num_conv_pos_embedding_groups=2, hidden_dropout=0.0, attention_dropout=0.3, activation_dropout=0.0,
        final_dropout=0.0, max_position_embeddings=64, position_buckets=16, classifier_proj_size=8,
    )  # fmt: skip
    model = SEWDForSequenceClassification(config).eval()
    assert any("StableDropout" in site.kind and site.fires for site in dropout_report(model).sites)
    audio = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    outputs = []
    for t in (0, 0, 1):
        with torch.no_grad(), MCDropout().draw(model, t):
            outputs.append(model(audio).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[0][0], outputs[0][1])


def test_the_error_of_no_dropout_quotes_the_report() -> None:
    """A draw in which nothing fired says what there is, and how to have some."""
    quoted = r"MCDropout\(p=0.1\)(.|\n)*Dropout of Llama(.|\n)*attention_dropout +0"
    with pytest.raises(ValueError, match=quoted), MCDropout().draw(model := llama(), 0):
        model(**tokens([3]))
