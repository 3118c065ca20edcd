"""Losses on unlabelled rows: by hand, by loops, and where their gradients go."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from baal_hf.semisupervised import (
    MeanTeacher,
    PiModel,
    PseudoLabels,
    SemiSupervisedMethod,
    mean_teacher,
    pi_model,
    pseudo_labels,
    ramp_up,
    semi_supervised_method,
)
from baal_hf.semisupervised.mean_teacher import update_teacher


def logits_of(*probs: list[float]) -> Tensor:
    """Logits whose softmax is these rows."""
    return torch.tensor(probs, dtype=torch.float64).log()


def two_passes(n: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of two passes [n, c], some of them confident."""
    generator = torch.Generator().manual_seed(seed)
    first, second = 4 * torch.randn(2, n, c, generator=generator, dtype=torch.float64)
    return first, second


@pytest.mark.parametrize("loss", [pi_model, mean_teacher])
def test_agreement_by_hand(loss):
    """Probabilities (.5, .5) and (.9, .1) differ by .4 in each class: .16; (.2, .8) twice by nothing."""
    one, other = logits_of([0.5, 0.5], [0.2, 0.8]), logits_of([0.9, 0.1], [0.2, 0.8])
    assert loss(one, other).item() == pytest.approx(0.08)
    assert loss(one[:1], other[:1]).item() == pytest.approx(0.16)


def test_pseudo_labels_by_hand():
    """One row of two is confident of class 0, which the noisy pass gives .25: -log(.25) / 2."""
    weak, strong = logits_of([0.97, 0.03], [0.9, 0.1]), logits_of([0.25, 0.75], [0.4, 0.6])
    assert pseudo_labels(strong, weak).item() == pytest.approx(math.log(4) / 2)
    assert pseudo_labels(strong, weak, threshold=0.89).item() == pytest.approx((math.log(4) - math.log(0.4)) / 2)
    assert pseudo_labels(strong, weak, threshold=0.98).item() == 0


def test_confidence_at_the_threshold_counts():
    """A row whose confidence is the threshold itself is learned: p >= τ."""
    weak = torch.tensor([[0.0, 0.0]])
    assert pseudo_labels(weak, weak, threshold=0.5).item() == pytest.approx(math.log(2))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 1000), st.floats(0.05, 0.99))
def test_losses_equal_loops(n, c, seed, threshold):
    """Each loss equals its formula written as loops over rows and classes."""
    first, second = two_passes(n, c, seed)
    agreement, labels = 0.0, 0.0
    for z, other in zip(first.tolist(), second.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        q = [math.exp(v) / sum(map(math.exp, other)) for v in other]
        agreement += sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / (n * c)
        labels -= math.log(p[q.index(max(q))]) / n if max(q) >= threshold else 0
    assert pi_model(first, second).item() == pytest.approx(agreement)
    assert mean_teacher(first, second).item() == pytest.approx(agreement)
    assert pseudo_labels(first, second, threshold).item() == pytest.approx(labels)


@pytest.mark.parametrize("loss", [pi_model, mean_teacher, pseudo_labels])
def test_positions_are_rows(loss):
    """Positions of tokens or pixels count as rows do."""
    first, second = two_passes(12, 3, seed=1)
    as_tokens = [passes.reshape(2, 6, 3).movedim(-1, 1) for passes in (first, second)]  # [B, C, S]
    assert loss(*as_tokens).item() == pytest.approx(loss(first, second).item())


@pytest.mark.parametrize(("loss", "through_second"), [(pi_model, True), (mean_teacher, False), (pseudo_labels, False)])
def test_where_gradients_go(loss, through_second):
    """Gradients reach the first pass; of the second pass only the Pi-model's."""
    first, second = (logits.requires_grad_() for logits in two_passes(8, 3, seed=0))
    loss(first, second).backward()
    assert first.grad.abs().sum() > 0
    assert (second.grad is not None) == through_second


@pytest.mark.parametrize("loss", [pi_model, mean_teacher, pseudo_labels])
def test_other_shapes_are_refused(loss):
    """Passes over other rows are refused and not broadcast."""
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[1, 3\]"):
        loss(torch.zeros(4, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 1.5, math.nan])
def test_thresholds_outside_are_refused(threshold):
    """A threshold is in (0, 1)."""
    with pytest.raises(ValueError, match="threshold in"):
        pseudo_labels(torch.zeros(1, 2), torch.zeros(1, 2), threshold)
    with pytest.raises(ValueError, match="threshold in"):
        PseudoLabels(threshold)


@pytest.mark.parametrize("decay", [0, 1, math.nan])
def test_decays_outside_are_refused(decay):
    """A decay is in (0, 1)."""
    with pytest.raises(ValueError, match="decay in"):
        MeanTeacher(decay)


def test_ramp_grows_to_one():
    """The ramp is exp(-5 (1 - t)²), grows, and stays at one; a ramp of no steps is one from the start."""
    values = [ramp_up(step, 20) for step in range(40)]
    assert values[0] == pytest.approx(math.exp(-5))
    assert values[15] == pytest.approx(math.exp(-5 / 16))
    assert values == sorted(values)
    assert values[20:] == [1] * 20
    assert ramp_up(0, 0) == 1
    with pytest.raises(ValueError, match="steps >= 0"):
        ramp_up(-1, 20)
    with pytest.raises(ValueError, match="steps >= 0"):
        ramp_up(0, -1)


# Methods


def noisy() -> nn.Module:
    """A small model with dropout, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)).train()


def forward(model: nn.Module, batch: Tensor) -> Tensor:
    """A pass."""
    return model(batch)


METHODS = [PiModel(), MeanTeacher(), PseudoLabels(0.4)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_methods_train_any_model(method):
    """A method has a loss with a gradient for each of the model's weights, and leaves the model in training mode."""
    model = noisy()
    method.start(model)
    method.loss(model, torch.randn(32, 6), forward).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_pi_model_has_two_noises():
    """The Pi-model's two passes differ by dropout: without any its loss is zero, with some it is not."""
    model, batch = noisy(), torch.randn(32, 6)
    assert PiModel().loss(model, batch, forward).item() > 1e-4
    with pytest.warns(UserWarning, match="were equal"):
        assert PiModel().loss(model.eval(), batch, forward).item() == 0


def test_passes_without_noise_are_warned_of():
    """Where the first two passes of a training are equal the user is told; dropout and augmentations are noise."""
    batch = torch.randn(8, 6)
    method = PiModel()
    for _ in range(2):
        method.start(nn.Linear(6, 3))
        with pytest.warns(UserWarning, match=r"passes over a batch were equal.*Linear has no dropout"):
            method.loss(nn.Linear(6, 3), batch, forward)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            method.loss(nn.Linear(6, 3), batch, forward)  # said once
            PiModel(augment=torch.rand_like).loss(nn.Linear(6, 3), batch, forward)
            PiModel().loss(noisy(), batch, forward)


def test_the_teacher_needs_weights_that_move():
    """An average of small steps is lost in 16 bits; weights that are not trained may have them."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"16 bits lose, and 0\.weight has no more"):
        MeanTeacher().start(model)
    model[0].requires_grad_(False)
    model[1].float()
    MeanTeacher().start(model)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_pi_model_stacks_batches(kind):
    """Batches that are dictionaries or tuples are passed twice at once, other values as they are."""
    seen = []

    def remembered(model: nn.Module, batch: dict | tuple) -> Tensor:
        values = list(batch.values()) if isinstance(batch, dict) else list(batch)
        seen.append(values)
        return model(values[0])

    rows = torch.arange(12.0).reshape(2, 6)
    batch = {"x": rows, "name": "a"} if kind is dict else (rows, "a")
    PiModel(augment=lambda batch: batch).loss(noisy(), batch, remembered)
    assert torch.equal(seen[0][0], torch.cat([rows, rows]))
    assert seen[0][1] == "a"


def test_augmentations_are_made_anew():
    """Each pass sees an augmentation of its own: even without dropout passes differ."""
    model, batch = noisy().eval(), torch.randn(16, 6)

    def augment(batch: Tensor) -> Tensor:
        return batch + torch.randn_like(batch)

    assert PiModel(augment).loss(model, batch, forward).item() > 0
    teacher = MeanTeacher(augment=augment)
    teacher.start(model)
    teacher.teacher.eval()
    assert teacher.loss(model, batch, forward).item() > 0
    seen: list[str] = []
    PseudoLabels(weak=lambda b: seen.append("weak") or b, strong=lambda b: seen.append("strong") or b).loss(
        model, batch, forward
    )
    assert seen == ["weak", "strong"]


def test_pseudo_labels_come_without_noise():
    """The class comes from a pass in evaluation mode, and is learned in one in training mode."""
    modes = []
    model = noisy()
    PseudoLabels().loss(model, torch.randn(4, 6), lambda model, batch: modes.append(model.training) or model(batch))
    assert modes == [False, True]


def test_the_teacher_is_an_average():
    """The teacher is the mean of all weights so far at first, and then moves by 1 - α towards the model."""
    model = nn.Linear(1, 1, bias=False)
    weights = torch.tensor([1.0, 4.0, 7.0, 2.0])
    method = MeanTeacher(decay=0.7)
    model.weight.data.fill_(weights[0])
    method.start(model)
    for t, weight in enumerate(weights[1:].tolist(), 1):
        model.weight.data.fill_(weight)
        method.step(model, t)
        if t == 2:
            assert method.teacher.weight.item() == pytest.approx(weights[:3].mean().item())
    assert method.teacher.weight.item() == pytest.approx(0.7 * 4 + 0.3 * 2)  # 1 - 1/4 is over α
    update_teacher(method.teacher, model, 1.0)
    assert method.teacher.weight.item() == pytest.approx(0.7 * 4 + 0.3 * 2)


def test_the_teacher_learns_nothing_itself():
    """No gradient reaches the teacher, and its steps leave the model as it is."""
    model, method = noisy(), MeanTeacher()
    method.start(model)
    before = [parameter.clone() for parameter in model.parameters()]
    method.loss(model, torch.randn(8, 6), forward).backward()
    method.step(model, 1)
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_the_teacher_is_swapped_in_and_out():
    """Inside the block the model has the teacher's weights; afterwards its own, also after an exception."""
    model, method = noisy(), MeanTeacher()
    with pytest.raises(ValueError, match="no teacher before training"), method.swapped_into(model):
        pass
    method.start(model)
    held = model[0].weight
    own = held.clone()
    model[0].weight.data.add_(1)
    with pytest.raises(RuntimeError, match="already"), method.swapped_into(model):
        assert torch.equal(model[0].weight, own)
        assert model[0].weight is held
        with method.swapped_into(model):
            pass
    assert torch.equal(model[0].weight, own + 1)
    assert torch.equal(method.teacher[0].weight, own)


def test_the_teacher_is_swapped_into_an_open_autocast_region():
    """Half-precision copies of the model's weights, which autocast keeps, are not taken for the teacher's."""
    model, method, inputs = noisy().eval(), MeanTeacher(), torch.ones(1, noisy()[0].in_features)
    method.start(model)
    model[0].weight.data.add_(1)
    with torch.autocast("cpu", torch.bfloat16):
        own = model(inputs)
        with method.swapped_into(model):
            assert (model(inputs) - own).abs().max() > 0.1
        assert torch.equal(model(inputs), own)


def test_the_teacher_is_saved(tmp_path):
    """A teacher comes back from its file; a folder without one is refused; swapped in, it is not saved as itself."""
    model, method = noisy(), MeanTeacher()
    method.start(model)
    model[0].weight.data.add_(1)
    with method.swapped_into(model):
        method.save(tmp_path)
    with pytest.raises(ValueError, match=r"teacher\.safetensors"):
        MeanTeacher().start(model, tmp_path)
    method.save(tmp_path)
    again = MeanTeacher()
    again.start(model, tmp_path)
    assert torch.equal(again.teacher[0].weight, method.teacher[0].weight)
    assert not torch.equal(again.teacher[0].weight, model[0].weight)


def test_methods_by_name():
    """A name gives the method with its defaults, an object itself; anything else is refused."""
    assert isinstance(semi_supervised_method("pi_model"), PiModel)
    assert isinstance(semi_supervised_method("mean_teacher"), MeanTeacher)
    assert isinstance(semi_supervised_method("pseudo_labels"), PseudoLabels)
    own = PiModel()
    assert semi_supervised_method(own) is own
    with pytest.raises(ValueError, match="pi_model, mean_teacher, pseudo_labels, got 'fixmatch'"):
        semi_supervised_method("fixmatch")
    for nothing in (3, PiModel):
        with pytest.raises(TypeError, match="SemiSupervisedMethod"):
            semi_supervised_method(nothing)
    with pytest.raises(NotImplementedError):
        SemiSupervisedMethod().loss(noisy(), None, forward)
