"""MC dropout's contract: a draw is a fixed function, every dropout fires, and the model is left as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    XGLMConfig,
    XGLMForCausalLM,
    set_seed,
)

from baal_hf import MCDropout, dropout_report
from baal_hf.posterior import answers
from baal_hf.posterior import network as networks


def batch(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Token ids padded on the right; a row depends on its place alone."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1000, 20000, (length,), generator=torch.Generator().manual_seed(seed + row))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def drawn(model: nn.Module, posterior: MCDropout, t: int, **inputs: Tensor) -> Tensor:
    """Logits of one draw."""
    with torch.inference_mode(), posterior.draw(model, t):
        return model(**inputs).logits


def snapshot(model: nn.Module) -> list[object]:
    """All that a draw could leave changed."""
    tensors = [(name, value.clone()) for name, value in model.state_dict().items()]
    return [
        [(name, value.tolist()) for name, value in tensors if value.numel() < 2000],
        [(name, float(value.double().sum())) for name, value in tensors],
        [(name, part.training, set(vars(part))) for name, part in model.named_modules()],
        [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()],
        [part.forward.__qualname__ for part in model.modules()],
        len(nn.modules.module._global_forward_hooks),
        len(nn.modules.module._global_forward_pre_hooks),
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_do_not_see_each_other(model: PreTrainedModel, attention: str) -> None:
    """For a fixed draw a row's output is the same alone, in any batch, in any order and under any padding."""
    model.set_attn_implementation(attention)
    posterior = MCDropout()
    inputs = batch([3, 70, 5, 9])
    together = drawn(model, posterior, 4, **inputs)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = drawn(model, posterior, 4, **{name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)
    for row, length in enumerate([3, 70, 5, 9]):
        alone = drawn(model, posterior, 4, **{name: value[row : row + 1, :length] for name, value in inputs.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_left_padding_changes_nothing() -> None:
    """Hidden states of a row are the same when its padding stands on the left, as far as the model allows."""
    set_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3,
    )  # fmt: skip
    network = AutoModelForSequenceClassification.from_config(config).bert.eval()
    right = batch([4, 9])
    left = {name: torch.stack([value[0].roll(5), value[1]]) for name, value in right.items()}
    positions = torch.stack([(torch.arange(9) - 5).clamp(min=0), torch.arange(9)])
    with torch.inference_mode(), MCDropout().draw(network, 0):
        expected = network(**right).last_hidden_state[0, :4]
        came = network(**left, position_ids=positions).last_hidden_state[0, 5:]
    torch.testing.assert_close(came, expected, rtol=0, atol=1e-5)


def test_eager_and_sdpa_are_the_same_network(model: PreTrainedModel) -> None:
    """A draw does not depend on the attention implementation."""
    inputs = batch([6, 11])
    model.set_attn_implementation("eager")
    eager = drawn(model, MCDropout(seed=3), 1, **inputs)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(drawn(model, MCDropout(seed=3), 1, **inputs), eager, rtol=0, atol=1e-5)


def test_draws_repeat_and_differ(model: PreTrainedModel) -> None:
    """The same seed and t give the same network, for another object as after a restart; others differ."""
    inputs = batch([6, 6])
    first = drawn(model, MCDropout(seed=1), 0, **inputs)
    assert torch.equal(drawn(model, MCDropout(seed=1), 0, **inputs), first)
    assert not torch.allclose(drawn(model, MCDropout(seed=1), 1, **inputs), first)
    assert not torch.allclose(drawn(model, MCDropout(seed=2), 0, **inputs), first)


@pytest.mark.parametrize("masks", ["shared", "fresh"])
@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"])
def test_each_rate_fires_alone(rate: str, masks: str) -> None:
    """Each dropout rate of the configuration alone makes outputs vary, about as much as training mode does."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0, rate: 0.4}
    set_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=0.3, **rates
    )
    network = AutoModelForSequenceClassification.from_config(config).eval()
    inputs = batch([9, 9])
    posterior = MCDropout(masks=masks)  # type: ignore[arg-type]
    spread = torch.stack([drawn(network, posterior, t, **inputs) for t in range(100)]).std(0).mean()
    with torch.no_grad():
        network.train()
        training = torch.stack([network(**inputs).logits for _ in range(100)]).std(0).mean()
        network.eval()
        assert torch.equal(network(**inputs).logits, network(**inputs).logits)
    assert 0.4 < spread / training < 2.5


@pytest.mark.parametrize("masks", ["shared", "fresh"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout(0.3), (4, 7, 500)),
        (nn.Dropout(0.3, inplace=True), (4, 7, 500)),
        (nn.Dropout1d(0.3), (4, 500, 7)),
        (nn.Dropout2d(0.3), (4, 500, 3, 3)),
        (nn.Dropout3d(0.3), (4, 500, 2, 2, 2)),
        (nn.Dropout(0.3), (4, 60, 9, 9)),
    ],
)
def test_keep_rate_and_scale(layer: nn.Module, shape: tuple[int, ...], masks: str) -> None:
    """Units are kept with probability 1 − p within binomial error and scaled by 1/(1 − p)."""
    posterior = MCDropout(masks=masks)  # type: ignore[arg-type]
    kept = []
    for t in range(40):
        with posterior.draw(layer, t):
            output = layer(torch.ones(shape))
        scale = output[output > 0]
        torch.testing.assert_close(scale, torch.full_like(scale, 1 / 0.7), rtol=1e-5, atol=0)
        kept.append((output > 0).float().mean())
        if masks == "shared":
            assert torch.equal(output[0], output[3])
    assert abs(torch.stack(kept).mean() - 0.7) < 0.02


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)])
def test_alpha_dropout_keeps_mean_and_variance(layer: nn.Module) -> None:
    """Alpha dropout leaves standard normal units with mean 0 and variance 1 (Klambauer et al., 2017)."""
    x = torch.randn(64, 4000, 2, generator=torch.Generator().manual_seed(0))
    with MCDropout(masks="fresh").draw(layer, 0):
        output = layer(x)
    assert abs(output.mean()) < 0.02
    assert abs(output.var() - 1) < 0.05


@pytest.mark.parametrize("weights", [True, False])
def test_multi_head_attention_fires(weights: bool) -> None:
    """torch's own attention varies between draws, whether it returns its weights or not, and not between rows."""
    attention = nn.MultiheadAttention(16, 4, dropout=0.4, batch_first=True).eval()
    x = torch.randn(1, 5, 16).expand(3, 5, 16)
    outputs = []
    for t in range(2):
        with torch.inference_mode(), MCDropout().draw(attention, t):
            outputs.append(attention(x, x, x, need_weights=weights)[0])
    assert not torch.allclose(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0][0], outputs[0][2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_without_noise_is_torchs(mask: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all weights kept the drawn attention equals torch's own, masks, causality, scale and groups included."""
    if causal and mask != "none":
        pytest.skip("torch allows one of the two")
    keep_all = lambda key, heads, queries, keys, p, device: torch.ones(heads, queries, keys)  # noqa: E731
    monkeypatch.setattr(networks, "attention_mask", keep_all)
    monkeypatch.setattr(answers, "_TILE_CPU", 200)
    query, key, value = torch.randn(5, 4, 6, 8), torch.randn(5, 2, 9, 8), torch.randn(5, 2, 9, 8)
    allowed = torch.rand(5, 1, 6, 9) > 0.3
    allowed[..., 0] = True
    masks = {"none": None, "bool": allowed, "float": torch.randn(5, 1, 6, 9)}
    arguments = {"attn_mask": masks[mask], "is_causal": causal, "scale": 0.4, "enable_gqa": True}
    expected = F.scaled_dot_product_attention(query, key, value, **arguments)
    network = Calling(lambda: F.scaled_dot_product_attention(query, key, value, dropout_p=0.5, **arguments))
    with MCDropout().draw(network, 0):
        torch.testing.assert_close(network(), expected)


class Calling(nn.Module):
    """A module whose forward pass is a function."""

    def __init__(self, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self) -> Tensor:
        return self.function()


def test_other_noise_stays_off() -> None:
    """Batch norm statistics, and noise that a training flag switches on, stay as in evaluation."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = x + torch.randn_like(x)
            return self.dropout(self.norm(x))

    network = Noisy()
    before = snapshot(network)
    x = torch.randn(8, 3)
    with MCDropout().draw(network, 0):
        first, second = network(x), network(x)
    assert torch.equal(first, second)
    assert snapshot(network) == before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_model_is_left_as_it_was(model: PreTrainedModel, training: bool, fails: bool) -> None:
    """After the block, also after an exception in a forward pass, nothing about the model has changed."""
    model.train(training)
    model.bert.encoder.layer[0].train(not training)
    before = snapshot(model)
    inputs = batch([4])
    if fails:
        inputs["input_ids"] = inputs["input_ids"] + 10**6
        with pytest.raises(IndexError), MCDropout().draw(model, 0):
            model(**inputs)
    else:
        drawn(model, MCDropout(), 0, **inputs)
    assert snapshot(model) == before
    drawn(model, MCDropout(), 0, **batch([4]))  # and another draw can be opened


def test_expert_routing_does_not_shift_masks() -> None:
    """A row's output does not depend on which experts the other rows are sent to."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            chosen = (x[:, 0] * 3).long()
            y = torch.zeros_like(x)
            for i in chosen.unique().tolist():
                y[chosen == i] = self.experts[i](x[chosen == i])
            return y

    network, x = Mixture(), torch.rand(9, 4)
    x[:, 0] = torch.arange(9) / 9
    with torch.inference_mode(), MCDropout().draw(network, 0):
        together, alone = network(x), network(x[8:])
    torch.testing.assert_close(alone[0], together[8])


def test_reused_module_has_a_mask_for_each_use() -> None:
    """A module that runs twice in a pass is two sites, and the second pass finds the first pass's masks."""
    layer = nn.Dropout(0.5)
    network = Calling(lambda: torch.stack([layer(torch.ones(1, 200)), layer(torch.ones(1, 200))]))
    network.add_module("layer", layer)
    with MCDropout().draw(network, 0):
        first, second = network(), network()
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, second)


def test_autocast_and_gradients(model: PreTrainedModel) -> None:
    """A draw works under autocast, near its float32 self, and lets gradients through."""
    inputs = batch([6, 9])
    exact = drawn(model, MCDropout(), 0, **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = drawn(model, MCDropout(), 0, **inputs)
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.03)
    with MCDropout().draw(model, 0):
        model(**inputs).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.classifier.parameters())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_adapters_drop_out(model: PreTrainedModel) -> None:
    """The dropout of a LoRA adapter fires, also where the model has no other."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    settings = LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.4, init_lora_weights=False)
    adapted = get_peft_model(model, settings).eval()
    first, second = (drawn(adapted, MCDropout(), t, **batch([6])) for t in range(2))
    assert not torch.allclose(first, second)
    assert {site.kind for site in dropout_report(adapted).sites if site.fires} == {"Dropout"}


def test_no_dropout_is_an_error() -> None:
    """A model in which nothing became random raises and says what to do."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    with pytest.raises(ValueError, match="no active dropout in Sequential"), MCDropout().draw(network, 0):
        network(torch.ones(1, 2))


def test_unknown_masks() -> None:
    """Masks are shared or fresh."""
    with pytest.raises(ValueError, match="got 'own'"):
        MCDropout(masks="own")  # type: ignore[arg-type]


def test_threads_do_not_disturb_each_other() -> None:
    """A pass of another model in another thread during a draw is neither random nor counted."""
    drawn_model, other = nn.Sequential(nn.Dropout(0.5)), nn.Sequential(nn.Dropout(0.5)).eval()
    outputs: list[Tensor] = []
    with MCDropout().draw(drawn_model, 0):
        thread = threading.Thread(target=lambda: outputs.append(other(torch.ones(100))))
        thread.start()
        thread.join()
        assert drawn_model(torch.ones(1, 100)).unique().tolist() == [0.0, 2.0]
    assert torch.equal(outputs[0], torch.ones(100))


def large(network: nn.Module) -> nn.Module:
    """The model with weights so large that a mask on the wrong place shows in the output."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return network.eval()


def test_windowed_attention_does_not_see_the_padding() -> None:
    """Longformer keeps its weights as [B, L, H, window]: a row is the same whatever the length of the batch."""
    config = LongformerConfig(
        vocab_size=20000, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        attention_window=4, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    network = large(LongformerForSequenceClassification(config))
    inputs = batch([5, 23])
    together = drawn(network, MCDropout(), 0, **inputs)
    alone = drawn(network, MCDropout(), 0, **{name: value[:1, :5] for name, value in inputs.items()})
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-4)


def test_merged_heads_do_not_see_left_padding() -> None:
    """XGLM keeps its weights as [B·H, L, S]: heads have masks of their own, and left padding shifts none of them."""
    config = XGLMConfig(
        vocab_size=20000, d_model=16, ffn_dim=32, num_layers=2, attention_heads=4, max_position_embeddings=64,
        attention_dropout=0.4, dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip
    network = large(XGLMForCausalLM(config))
    ids = batch([6])["input_ids"]
    padded = {
        "input_ids": F.pad(ids, (3, 0)).repeat(2, 1),
        "attention_mask": F.pad(torch.ones_like(ids), (3, 0)).repeat(2, 1),
        "position_ids": F.pad(torch.arange(6)[None], (3, 0)).repeat(2, 1),
    }
    alone = drawn(network, MCDropout(), 0, input_ids=ids, position_ids=torch.arange(6)[None])
    for row in drawn(network, MCDropout(), 0, **padded):
        torch.testing.assert_close(row[3:], alone[0], rtol=0, atol=1e-4)
    with torch.inference_mode():
        deterministic = network(input_ids=ids).logits
    assert not torch.allclose(alone, deterministic, atol=1e-2)


GENERATORS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            attention_dropout=0.4,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=99, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8, dropout_rate=0.4,
            decoder_start_token_id=0,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", GENERATORS)
def test_generating_is_one_network(kind: str) -> None:
    """Scores of generated tokens are the same with a cache of keys and without, and under padding on the left."""
    network = large(GENERATORS[kind]())
    ids = torch.tensor([[5, 6, 7, 8]])
    padded = F.pad(ids, (3, 0))
    settings = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    scores = []
    for given, cached in ((ids, True), (ids, False), (padded, True)):
        mask = (given > 0).long()
        with MCDropout().draw(network, 0):
            came = network.generate(
                given, attention_mask=mask, use_cache=cached, pad_token_id=0, eos_token_id=None, **settings
            )
        scores.append(torch.stack(came.scores))
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores[2], scores[0], rtol=0, atol=1e-4)


def test_keys_for_all_rows() -> None:
    """Attention whose keys stand for all rows gives an answer for each row."""
    query, key = torch.randn(3, 8, 600, 4), torch.randn(1, 8, 600, 4)
    network = Calling(lambda: F.scaled_dot_product_attention(query, key, key, dropout_p=0.1))
    with MCDropout().draw(network, 0):
        assert network().shape == query.shape
    network.function = lambda: F.scaled_dot_product_attention(query[:0], query[:0], query[:0], dropout_p=0.1)
    with MCDropout().draw(network, 0):
        assert network().shape == (0, 8, 600, 4)


def test_other_ways_to_call_dropout() -> None:
    """Keyword arguments, in-place alpha dropout and tensors without storage are answered too."""
    x = torch.ones(4, 100)

    def run() -> Tensor:
        alpha = torch.zeros(4, 100)
        F.alpha_dropout(alpha, 0.5, True, inplace=True)
        assert (alpha != 0).any()
        torch.softmax(x, -1).to_sparse().to(torch.float64)
        return torch.dropout(x, p=0.5, train=False)

    with MCDropout().draw(network := Calling(run), 0):
        assert 0 < (network() == 0).sum() < 400


def test_one_number_a_row_shares_one_coin() -> None:
    """Dropout on a vector with a number for each row treats rows alike, in any order."""
    layer, x = nn.Dropout(0.5), torch.rand(6)
    for t in range(8):
        with MCDropout().draw(layer, t):
            torch.testing.assert_close(layer(x).flip(0), layer(x.flip(0)))


@pytest.mark.parametrize("masks", ["shared", "fresh"])
def test_all_dropped(masks: str) -> None:
    """p = 1 gives zeros, as in torch."""
    layer = nn.Dropout(1.0)
    with MCDropout(masks=masks).draw(layer, 0):  # type: ignore[arg-type]
        assert layer(torch.ones(2, 5)).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [True, False])
def test_dropout_between_recurrent_layers(kind: type[nn.RNNBase], packed: bool) -> None:
    """torch's recurrent networks drop out between layers: without rate they are torch's own, rows do not disturb."""
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    given = pack_padded_sequence(x, [5, 4, 2]) if packed else x
    network = kind(4, 6, num_layers=3, bidirectional=True, dropout=0.5).eval()

    def outputs(posterior: MCDropout | None, inputs: object = given) -> list[Tensor]:
        with torch.no_grad(), posterior.draw(network, 0) if posterior else nullcontext():
            came, states = network(inputs)
        came = pad_packed_sequence(came)[0] if packed else came
        return [came, *(states if isinstance(states, tuple) else (states,))]

    plain, drawn_once = outputs(None), outputs(MCDropout())
    assert not torch.allclose(plain[0], drawn_once[0], atol=1e-3)
    assert torch.equal(outputs(MCDropout())[0], drawn_once[0])
    alone = outputs(MCDropout(), pack_padded_sequence(x[:, :1], [5]) if packed else x[:, :1])
    torch.testing.assert_close(alone[0][:, 0], drawn_once[0][:, 0])
    network.dropout = 1e-9  # coins that all fall on the kept side
    for expected, came in zip(plain, outputs(MCDropout()), strict=True):
        torch.testing.assert_close(came, expected)


def test_statistics_of_a_linear_layer() -> None:
    """Over 2,000 draws the mean of a layer behind dropout is its plain output, and draws are uncorrelated."""
    network = nn.Sequential(nn.Dropout(0.3), nn.Linear(40, 4))
    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = network.eval()(x)
        outputs = []
        for t in range(2000):
            with MCDropout().draw(network, t):
                outputs.append(network(x)[0])
    draws = torch.stack(outputs)  # [T, 4]
    assert ((draws.mean(0) - plain[0]).abs() < 4 * draws.std(0) / 2000**0.5).all()
    noise = draws - draws.mean(0)
    correlation = (noise[1:] * noise[:-1]).mean(0) / noise.var(0)
    assert correlation.abs().max() < 4 / 2000**0.5


def test_keep_rate_at_every_site(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every site of a transformer coins are kept at 1 − p within four binomial errors."""
    kept: dict[str, list[float]] = {}
    for name in ("feature_mask", "attention_mask"):
        original = getattr(networks, name)

        def noted(key: str, *rest: Any, original: Callable[..., Tensor] = original) -> Tensor:
            mask = original(key, *rest)
            coins = mask[..., 0, :] if mask.ndim == 3 else mask  # one query sees other distances with other coins
            kept.setdefault(key.split("/", 2)[2], []).extend((coins > 0).flatten().tolist())
            return mask

        monkeypatch.setattr(networks, name, noted)
    for t in range(60):
        drawn(model, MCDropout(), t, **batch([30]))
    assert len(kept) == 8
    for coins in kept.values():
        assert abs(sum(coins) / len(coins) - 0.9) < 4 * (0.09 / len(coins)) ** 0.5


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")  # a draw's hooks leave out what is no part
def test_compiled_models_draw_the_same(model: PreTrainedModel) -> None:
    """A wrapper around the model changes no site's name, and so no mask."""
    compiled = torch.compile(model, backend="eager")
    inputs = batch([6, 9])
    with torch.inference_mode():
        plain, expected = compiled(**inputs).logits, drawn(model, MCDropout(), 0, **inputs)
        for network in (model, compiled):
            with MCDropout().draw(compiled, 0):
                torch.testing.assert_close(network(**inputs).logits, expected)
        torch.testing.assert_close(compiled(**inputs).logits, plain)


def test_attention_of_one_row_alone() -> None:
    """Attention takes [L, E] too."""
    query = torch.randn(4, 8)
    network = Calling(lambda: F.scaled_dot_product_attention(query, query, query, dropout_p=0.5))
    with MCDropout().draw(network, 0):
        assert network().shape == (4, 8)
