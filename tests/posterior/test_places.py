"""Where dropout is added, and where the model's own is left on."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertForSequenceClassification,
    FlaubertConfig,
    FlaubertForSequenceClassification,
    GPTJConfig,
    GPTJForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from baal_hf import MCDropout
from baal_hf.posterior import network as networks
from baal_hf.posterior.places import stacked_layers
from tests.posterior.laws import drawn, llama, tokens

Pair = namedtuple("Pair", ["hidden", "state"])


class Named(nn.Module):
    """Returns a named tuple."""

    def forward(self, x: tuple[Tensor, object]) -> Pair:
        return Pair(x[0], x[0].clone())


SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 99}


def bert(**settings: object) -> PreTrainedModel:
    """A random BERT whose own dropout is 0.1 everywhere."""
    return BertForSequenceClassification(BertConfig(initializer_range=0.3, **SMALL, **settings)).eval()


def sites(model: nn.Module, posterior: MCDropout, monkeypatch: pytest.MonkeyPatch, **inputs: Tensor) -> list[str]:
    """Names of all masks that one pass was given."""
    given: list[str] = []
    with monkeypatch.context() as patches:
        for name in ("feature_mask", "attention_mask"):
            original = getattr(networks, name)

            def noted(key: str, *rest: object, original: Callable[..., Tensor] = original) -> Tensor:
                given.append(key.removeprefix("0/0/"))
                return original(key, *rest)

            patches.setattr(networks, name, noted)
        drawn(model, posterior, 0, **inputs)
    return given


def test_residual_is_each_sublayer_before_its_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """In BERT, as in Llama, the outputs of attention and feed-forward are dropped, and nothing else."""
    given = sites(bert(), MCDropout(p=0.2), monkeypatch, **tokens([5]))
    parts = [f"bert.encoder.layer.{i}.{part}+residual/1" for i in range(3) for part in ("attention.output", "output")]
    assert given == parts
    given = sites(llama(), MCDropout(p=0.2, where="residual"), monkeypatch, **tokens([5]))
    assert given == [f"model.layers.{i}+residual/{n}" for i in range(2) for n in (1, 2)]


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (GPTJForSequenceClassification(GPTJConfig(n_embd=16, n_layer=2, n_head=2, rotary_dim=4, vocab_size=99)), None),
        (MixtralForSequenceClassification(MixtralConfig(**SMALL, num_local_experts=2, num_key_value_heads=1)), None),
        (FlaubertForSequenceClassification(FlaubertConfig(emb_dim=16, n_layers=2, n_heads=2, n_words=99)), None),
        (
            ViTForImageClassification(ViTConfig(**SMALL, image_size=32)),
            {"pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
        ),
    ],
    ids=lambda part: type(part).__name__,
)
def test_two_residual_branches_a_layer(
    model: PreTrainedModel, inputs: dict[str, Tensor] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parallel branches, mixtures of experts, layers kept in lists side by side and images have theirs too."""
    model.eval().config.pad_token_id = 0
    given = sites(model, MCDropout(p=0.2), monkeypatch, **(inputs or {"input_ids": tokens([5])["input_ids"]}))
    assert len(given) == 2 * len(stacked_layers(model))


def test_sums_outside_of_layers_are_no_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """In BART the embeddings of encoder and decoder are sums too, and are left alone, whatever the batch size."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    model = BartModel(BartConfig(**sizes, decoder_attention_heads=2, vocab_size=99)).eval()
    branches = ["encoder.layers.0+residual"] * 2 + ["decoder.layers.0+residual"] * 3
    for rows in (1, 3):
        given = sites(model, MCDropout(p=0.2), monkeypatch, input_ids=tokens([5] * rows)["input_ids"])
        assert [name.split("/")[0] for name in given] == branches


def test_swin_has_its_branches_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a hierarchical model are the blocks of its stages, and both branches of each are dropped."""
    config = SwinConfig(image_size=32, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4, drop_path_rate=0.1)
    model = SwinForImageClassification(config).eval()
    assert len(stacked_layers(model)) == 4
    posterior, images = MCDropout(p=0.2), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert len(sites(model, posterior, monkeypatch, pixel_values=images)) == 8


def test_a_sum_in_place_keeps_the_residual() -> None:
    """A layer that adds to its output in place is dropped in place."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            y.add_(x)
            return y

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    network, x = Stack(), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = network(x)
        with MCDropout(p=1e-9).draw(network, 0):
            torch.testing.assert_close(network(x), plain)
        with MCDropout(p=0.5).draw(network, 0):
            assert not torch.allclose(network(x), plain)


def test_patterns_reach_named_tuples() -> None:
    """The first part of a module's output is dropped, and the rest stays what it was."""
    network = nn.Sequential(nn.LSTM(3, 40), Named())
    with torch.no_grad(), MCDropout(p=0.5, where="1").draw(network, 0):
        came = network(torch.ones(2, 3))
    assert type(came) is Pair and (came.hidden == 0).sum() > 20 and (came.state != 0).all()


def test_added_dropout_replaces_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `p` given, BERT's own dropout is off, and `where` says what is on instead."""
    model, inputs = bert(), tokens([5])
    attention = sites(model, MCDropout(p=0.2, where="attention"), monkeypatch, **inputs)
    assert attention == [f"bert.encoder.layer.{i}.attention.self/1" for i in range(3)]
    head = sites(model, MCDropout(p=0.2, where="head"), monkeypatch, **inputs)
    assert head == ["bert.pooler.dense+head/1", "classifier+head/1"]
    last = sites(model, MCDropout(p=0.2, where="last:1"), monkeypatch, **inputs)
    branches = [f"bert.encoder.layer.2.{part}+residual/1" for part in ("attention.output", "output")]
    assert last == [*branches, *head]
    named = sites(model, MCDropout(p=0.2, where="bert.encoder.layer.[01].output.dense"), monkeypatch, **inputs)
    assert named == [f"bert.encoder.layer.{i}.output.dense+output/1" for i in range(2)]


def test_where_limits_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `p`, `where` leaves on the part of the model's own dropout that it names."""
    model, inputs = bert(), tokens([5])
    everywhere = sites(model, MCDropout(), monkeypatch, **inputs)
    assert len(everywhere) == 11
    of_attention = [name for name in everywhere if "attention.self" in name]
    assert sites(model, MCDropout(where="attention"), monkeypatch, **inputs) == of_attention
    of_layers = [name for name in everywhere if "encoder" in name and name not in of_attention]
    assert sites(model, MCDropout(where="residual"), monkeypatch, **inputs) == of_layers
    assert sites(model, MCDropout(where="head"), monkeypatch, **inputs) == ["dropout/1"]
    assert sites(model, MCDropout(where="last:2"), monkeypatch, **inputs) == everywhere[4:]
    assert sites(model, MCDropout(where="last:3"), monkeypatch, **inputs) == everywhere[1:]
    assert sites(model, MCDropout(where="bert.encoder.layer.0"), monkeypatch, **inputs) == everywhere[1:4]


def test_limited_draws_have_the_masks_of_whole_ones() -> None:
    """A site's mask is the same whatever else drops out: the head alone gives the whole draw's masks there."""
    model, inputs = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.3), tokens([5])
    whole, head = drawn(model, MCDropout(), 0, **inputs), drawn(model, MCDropout(where="head"), 0, **inputs)
    assert torch.equal(whole, head)


def test_attention_eager_and_sdpa_are_one_network() -> None:
    """Inserted attention dropout does not depend on the implementation of attention."""
    model, posterior = llama(), MCDropout(p=0.4, where="attention")
    outputs = []
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        outputs.append(drawn(model, posterior, 0, **tokens([5, 8])))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
    assert not torch.allclose(outputs[0], drawn(model, posterior, 1, **tokens([5, 8])), atol=1e-3)


def test_multi_head_attention_takes_an_added_rate() -> None:
    """torch's own attention, whose rate is 0, drops out where it is asked to."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = layer(x)
        with MCDropout(p=0.5, where="attention").draw(layer, 0):
            assert not torch.allclose(layer(x), plain, atol=1e-3)


def test_patterns_work_on_any_module() -> None:
    """A module without layers has dropout where a pattern says."""
    network = nn.Sequential(nn.Linear(3, 50), nn.Identity())
    with torch.no_grad(), MCDropout(p=0.5, where="0").draw(network, 0):
        assert 10 < (network(torch.ones(1, 3)) == 0).sum() < 40


def test_state_dict_keys_stay() -> None:
    """Inserting changes no weight's name, inside the draw either."""
    model = llama()
    names = list(model.state_dict())
    with MCDropout(p=0.1).draw(model, 0):
        assert list(model.state_dict()) == names
        model(**tokens([3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.0}, r"rate p in \[0, 1\), got 1.0"),
        ({"p": -0.1}, r"rate p in \[0, 1\), got -0.1"),
        ({"where": "last:0"}, "got 'last:0'"),
        ({"where": "last:two"}, "got 'last:two'"),
        ({"where": ""}, "got ''"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    """Rates outside [0, 1) and places that no model can have are refused at once."""
    with pytest.raises(ValueError, match=message):
        MCDropout(**settings)  # type: ignore[arg-type]


def test_unknown_places_are_answered_with_those_there_are() -> None:
    """A name that the model does not have is refused with a list of names, too many layers with their number."""
    with pytest.raises(ValueError, match=r'"last:1" to "last:2".*got \'residul\'.*model\.layers\.\*\.mlp'):
        drawn(llama(), MCDropout(p=0.1, where="residul"), 0, **tokens([3]))
    with pytest.raises(ValueError, match="of which LlamaForSequenceClassification has 2"):
        drawn(llama(), MCDropout(p=0.1, where="last:3"), 0, **tokens([3]))
    with pytest.raises(ValueError, match="of which Sequential has 0"):
        drawn(nn.Sequential(nn.Linear(2, 2)), MCDropout(p=0.1), 0)
    with pytest.raises(ValueError, match=r"where='head': every draw(.|\n)*attention_dropout +0 +no: p = 0"):
        drawn(llama(), MCDropout(where="head"), 0, **tokens([3]))
