"""DropConnect drops trained weights, and loses none of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from baal_hf import MCDropConnect
from tests.posterior.laws import drawn, llama, tokens

P = 0.3
LAYERS = {
    "Linear": (nn.Linear(6, 5), torch.randn(4, 6)),
    "Linear without bias": (nn.Linear(6, 5, bias=False), torch.randn(4, 6)),
    "Conv1D": (Conv1D(5, 6), torch.randn(4, 6)),
    "Conv1d": (nn.Conv1d(4, 6, 3, stride=2, groups=2, padding=1), torch.randn(2, 4, 9)),
    "Conv2d": (nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=2, bias=False), torch.randn(2, 4, 9, 9)),
    "Conv2d, circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), torch.randn(2, 2, 5, 5)),
    "LSTM": (nn.LSTM(6, 5, num_layers=2, bidirectional=True), torch.randn(7, 2, 6)),
    "GRU": (nn.GRU(6, 5, batch_first=True, bias=False), torch.randn(2, 7, 6)),
}


def output(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer returns first."""
    came = layer(x)
    return came[0] if isinstance(came, tuple) else came


@pytest.mark.parametrize("name", LAYERS)
def test_a_draw_is_the_layer_with_masked_weights(name: str) -> None:
    """Stride, groups, padding and missing biases are respected: the draw equals a copy whose weights are masked."""
    layer, x = LAYERS[name]
    posterior = MCDropConnect(name.split()[0].rstrip(","), P, seed=3)
    weights = posterior._masked(layer, 2)
    copy = {key: weights.get(id(weight), weight) for key, weight in layer.named_parameters()}
    for key, weight in layer.named_parameters():
        if key.startswith("weight"):
            zeros = copy[key] == 0
            torch.testing.assert_close(copy[key], torch.where(zeros, 0, weight / (1 - P)))
            assert 0 < zeros.sum() < zeros.numel()
        else:
            assert copy[key] is weight
    expected = torch.func.functional_call(layer, copy, (x,))
    expected = expected[0] if isinstance(expected, tuple) else expected
    with torch.no_grad(), posterior.draw(layer, 2):
        torch.testing.assert_close(output(layer, x), expected.detach())
    with torch.no_grad(), posterior.draw(layer, 3):
        assert not torch.allclose(output(layer, x), expected.detach())


def test_mean_over_draws_is_the_trained_layer() -> None:
    """The mean of 2,000 draws of a linear layer is its deterministic output, within its standard error."""
    layer, x = nn.Linear(50, 4), torch.randn(1, 50)
    with torch.no_grad():
        exact = layer(x)
        draws = []
        for t in range(2000):
            with MCDropConnect(weight_dropout=P).draw(layer, t):
                draws.append(layer(x))
    outputs = torch.stack(draws)
    error = outputs.std(0) / 2000**0.5
    assert ((outputs.mean(0) - exact).abs() < 4 * error).all()


def test_tied_weights_stay_tied() -> None:
    """A head that shares its weight with the embedding is masked, the embedding is not, and they are one afterwards."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=99)).eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    ids = tokens([5])["input_ids"]
    with torch.no_grad(), MCDropConnect(["Linear"]).draw(model, 0):
        hidden = model.transformer(ids).last_hidden_state
        logits = model(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(hidden, model.transformer(ids).last_hidden_state)
        assert not torch.allclose(logits, model(ids).logits)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_two_layers_that_share_a_weight_share_its_mask() -> None:
    """A draw is one network: the same weight is dropped wherever it is used."""
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    with torch.no_grad(), MCDropConnect().draw(nn.ModuleList([first, second]), 0):
        x = torch.eye(8)
        assert torch.equal(first(x), second(x))
        assert (first(x) == 0).any()


def test_multi_head_attention_and_packed_rows() -> None:
    """The output layer of torch's attention is a linear layer too, and packed sequences reach an LSTM."""
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(1, 4, 8)
    lstm, packed = nn.LSTM(3, 4), pack_padded_sequence(torch.randn(5, 2, 3), [5, 3])
    with torch.no_grad():
        plain, plain_rows = attention(x, x, x)[0], lstm(packed)[0].data
        with MCDropConnect().draw(attention, 0):
            assert not torch.allclose(attention(x, x, x)[0], plain)
        with MCDropConnect("LSTM").draw(lstm, 0):
            assert not torch.allclose(lstm(packed)[0].data, plain_rows)


def test_no_weight_is_touched_inside_the_draw() -> None:
    """The model's own parameters are the trained ones also while a draw is open."""
    model = llama()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with MCDropConnect().draw(model, 0):
        model(**tokens([4]))
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["Bilinear"]}, r"layers out of Linear.*got \['Bilinear'\]"),
        ({"layers": []}, "got none"),
        ({"weight_dropout": 0.0}, "between 0 and 1, got 0.0"),
        ({"weight_dropout": 1.0}, "between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    """Unknown layers, no layers, and rates that drop nothing or all are refused."""
    with pytest.raises(ValueError, match=message):
        MCDropConnect(**settings)  # type: ignore[arg-type]


def test_weights_that_are_never_met() -> None:
    """A layer that uses its weight in a way of its own is an error, not the same draw again and again."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t()

    message = r"cannot reach weight in Own.*\(t\): every draw would be the same"
    with pytest.raises(ValueError, match=message), MCDropConnect().draw(layer := Own(2, 2), 0):
        layer(torch.ones(1, 2))


def test_weights_of_which_some_are_never_met() -> None:
    """Beside layers whose weights are dropped, one that uses its weight in a way of its own is warned of."""

    class Standardised(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.conv1d(x, self.weight - self.weight.mean())

    model = nn.Sequential(Standardised(1, 1, 1), nn.Linear(2, 2))
    message = r"cannot reach 0\.weight in Sequential.*: nothing of it is dropped"
    with pytest.warns(UserWarning, match=message), MCDropConnect(["Conv1d", "Linear"]).draw(model, 0):
        model(torch.ones(1, 1, 2))
    with MCDropConnect(["Linear"]).draw(model, 0):
        model(torch.ones(1, 1, 2))


def test_weights_that_are_looked_at() -> None:
    """What a model asks of a weight beside the layer's call, or an embedding that shares it, is no matter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.embedding(ids).to(self.head.weight.dtype) * self.head.weight.norm()
            return self.head(hidden)

    model = Tied()
    with MCDropConnect().draw(model, 0):
        model(torch.tensor([1]))
    with pytest.raises(ValueError, match="found no Conv1d"), MCDropConnect(["Conv1d"]).draw(model, 0):
        pass


def test_weights_that_are_made_anew() -> None:
    """A layer whose weight is a function of others is refused, also beside one whose weights can be dropped."""
    model = nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the weights of 0, which are made anew"), MCDropConnect().draw(model, 0):
        model(torch.ones(1, 2))
    remove_parametrizations(model[0], "weight")
    with MCDropConnect().draw(model, 0):
        model(torch.ones(1, 2))


def test_no_such_layer() -> None:
    """A model without the layers is refused."""
    with pytest.raises(ValueError, match="found no LSTM or GRU in LlamaForSequenceClassification"):
        drawn(llama(), MCDropConnect(["LSTM", "GRU"]), 0, **tokens([3]))
