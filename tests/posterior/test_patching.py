"""Baal's interface: a patched model is random in evaluation, is Trainer's in training, and can be had back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedModel, TrainingArguments

from baal_hf import (
    BaalTransformersTrainer,
    MCConsistentDropoutModule,
    MCDropConnect,
    MCDropout,
    MCDropoutConnectModule,
    MCDropoutModule,
    patch_module,
    unpatch_module,
)
from baal_hf.posterior.patching import is_patched

IDS = torch.tensor([[101, 2054, 2003, 102]])


def logits(model: nn.Module) -> torch.Tensor:
    """One pass."""
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_patched_in_place_and_back(model: PreTrainedModel) -> None:
    """Each evaluation pass of a patched model is a new draw; unpatched it is deterministic and as before."""
    expected, keys = logits(model), list(model.state_dict())
    assert patch_module(model) is model
    assert is_patched(model) and list(model.state_dict()) == keys
    assert not torch.equal(logits(model), logits(model))
    assert unpatch_module(model) is model
    assert type(model) is BertForSequenceClassification
    assert torch.equal(logits(model), expected)
    assert unpatch_module(model) is model  # nothing to undo is no error


def test_copies(model: PreTrainedModel) -> None:
    """inplace=False leaves the model alone, both ways."""
    patched = patch_module(model, inplace=False)
    assert patched is not model and is_patched(patched) and not is_patched(model)
    assert torch.equal(logits(model), logits(model))
    plain = unpatch_module(patched, inplace=False)
    assert not is_patched(plain) and is_patched(patched)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-6)  # a copy lies elsewhere in memory
    assert not torch.equal(logits(patched), logits(patched))


def test_training_mode_is_torchs(model: PreTrainedModel) -> None:
    """In training mode a patched model drops out as any model does, from torch's generator."""
    patch_module(model).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = logits(model)
        torch.manual_seed(0)
        assert torch.equal(logits(model), first)
        assert not torch.equal(logits(model), first)


def test_wrapper(model: PreTrainedModel) -> None:
    """MCDropoutModule forwards calls and attributes, and gives the module back, also as a context manager."""
    expected = logits(model)
    with MCDropoutModule(model) as wrapped:
        assert wrapped.config is model.config
        assert not torch.equal(logits(wrapped), logits(wrapped))
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = wrapped.no_such_thing
    assert torch.equal(logits(model), expected)
    assert MCDropoutModule(model).unpatch() is model
    assert torch.equal(logits(model), expected)


def test_other_posteriors(model: PreTrainedModel) -> None:
    """What is drawn from can be chosen; the same seed gives the same sequence of passes."""
    posterior = MCDropout(seed=5)
    patched = patch_module(copy.deepcopy(model), posterior=posterior)
    assert patched.patch.posterior is posterior
    assert not is_patched(model)
    first, second = logits(patched), logits(patched)
    with torch.inference_mode():
        for t, came in enumerate([first, second]):
            with MCDropout(seed=5).draw(model, t):
                torch.testing.assert_close(model(input_ids=IDS).logits, came, rtol=0, atol=1e-6)


def test_a_failed_pass_closes_its_draw(model: PreTrainedModel) -> None:
    """After an exception in a pass the patched model goes on."""
    patch_module(model)
    with pytest.raises(IndexError):
        model(input_ids=IDS + 10**6)
    assert not torch.equal(logits(model), logits(model))


def test_consistent_dropout(model: PreTrainedModel) -> None:
    """A consistent module is one network for all rows until eval() is called again, and different ones in turn."""
    with MCConsistentDropoutModule(model) as wrapped:
        wrapped.eval()
        first = logits(wrapped)
        assert torch.equal(logits(wrapped), first)
        with torch.inference_mode():
            torch.testing.assert_close(wrapped(input_ids=IDS.repeat(3, 1)).logits[2:], first, rtol=0, atol=1e-5)
        wrapped.train()
        wrapped.eval()
        assert not torch.allclose(logits(wrapped), first)
    assert torch.equal(logits(model), logits(model))


def test_dropconnect_module(model: PreTrainedModel) -> None:
    """Every pass drops other weights, and the trained ones are all there afterwards."""
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = logits(model)
    wrapped = MCDropoutConnectModule(model, layers=["Linear"], weight_dropout=0.4)
    assert not torch.allclose(logits(wrapped), logits(wrapped))
    assert wrapped.unpatch() is model
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_trainer_takes_patches_over(model: PreTrainedModel, tmp_path: Path) -> None:
    """Whatever a module is wrapped with, the trainer draws from it, and evaluates the module as it is."""
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    machine = BaalTransformersTrainer(MCDropoutConnectModule(model, ["Linear"], 0.4), arguments)
    assert machine.model is model and isinstance(machine.posterior, MCDropConnect)
    assert isinstance(BaalTransformersTrainer(MCConsistentDropoutModule(model), arguments).posterior, MCDropout)


def test_trainers_draw_networks_from_default_patches(model: PreTrainedModel, tmp_path: Path) -> None:
    """A trainer's draws are networks unless other ones were asked for: scores of several rows need that."""
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    for module in (patch_module(copy.deepcopy(model)), MCDropoutModule(model)):
        assert BaalTransformersTrainer(module, arguments).posterior.masks == "shared"
    asked = patch_module(copy.deepcopy(model), posterior=MCDropout(masks="fresh"))
    assert BaalTransformersTrainer(asked, arguments).posterior.masks == "fresh"


def test_patched_modules_are_pickled(model: PreTrainedModel) -> None:
    """A patched module comes out of a pickle, or a copy, patched, and can be had back."""
    expected = logits(model)
    patched = patch_module(model, posterior=MCDropout(seed=5))
    for other in (pickle.loads(pickle.dumps(patched)), copy.deepcopy(patched)):
        assert is_patched(other) and other.patch.posterior.seed == 5
        assert not torch.equal(logits(other), logits(other))
        torch.testing.assert_close(logits(unpatch_module(other)), expected, rtol=0, atol=1e-5)
    wrapped = pickle.loads(pickle.dumps(MCDropoutModule(unpatch_module(model))))
    assert not torch.equal(logits(wrapped), logits(wrapped))


def test_bad_requests(model: PreTrainedModel) -> None:
    """Patching twice is an error, patching what has no dropout a warning."""
    patch_module(model)
    with pytest.raises(ValueError, match="patched already"):
        patch_module(model)
    with pytest.warns(UserWarning, match="found no dropout with a rate above 0 in Linear"):
        patch_module(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"rate above 0 in Dropout(.|\n)*no: p = 0"):
        patch_module(nn.Dropout(0.0))
    with pytest.raises(ValueError, match="patched already"):
        MCDropoutConnectModule(model)
    with pytest.raises(ValueError, match="a part of this Sequential is patched already"):
        patch_module(nn.Sequential(model))
    with pytest.warns(UserWarning, match="found no Linear in Dropout"):
        MCDropoutConnectModule(nn.Dropout(0.5))
