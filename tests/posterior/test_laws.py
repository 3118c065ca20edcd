"""What every posterior promises, whichever it is."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from baal_hf import Deterministic, Ensemble, MCDropConnect, MCDropout, Posterior
from tests.posterior.laws import drawn, left_as_it_was, llama, tokens


def members() -> list[dict[str, torch.Tensor]]:
    """State dicts of three networks."""
    return [llama(seed).state_dict() for seed in (1, 2, 3)]


POSTERIORS = {
    "deterministic": Deterministic,
    "own dropout": MCDropout,
    "inserted": lambda: MCDropout(p=0.3),
    "attention": lambda: MCDropout(p=0.3, where="attention"),
    "head": lambda: MCDropout(p=0.3, where="head"),
    "last layer": lambda: MCDropout(p=0.3, where="last:1"),
    "pattern": lambda: MCDropout(p=0.3, where="model.layers.*.mlp"),
    "dropconnect": MCDropConnect,
    "ensemble": lambda: Ensemble(members()),
}


@pytest.fixture(params=POSTERIORS)
def posterior(request: pytest.FixtureRequest) -> Posterior:
    """Each in turn."""
    return POSTERIORS[request.param]()


def network() -> nn.Module:
    """A model that all of them can draw from."""
    return llama(attention_dropout=0.2)


def test_protocol(posterior: Posterior) -> None:
    """It has a size and says whether opening a draw is costly."""
    assert isinstance(posterior, Posterior)
    assert posterior.size is None or posterior.size > 0
    assert isinstance(posterior.swaps_weights, bool)


def test_a_draw_is_a_fixed_function(posterior: Posterior) -> None:
    """A row's output is the same alone, in any batch and order, under padding on either side, and the next time."""
    model, inputs = network(), tokens([3, 9, 5])
    together = drawn(model, posterior, 0, **inputs)
    for row, length in enumerate([3, 9, 5]):
        alone = drawn(model, posterior, 0, **{name: value[row : row + 1, :length] for name, value in inputs.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    shuffled = drawn(model, posterior, 0, **{name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)
    padded = {name: F.pad(value[:1, :3], (4, 0)) for name, value in inputs.items()}
    padded["position_ids"] = F.pad(torch.arange(3), (4, 0))[None]
    torch.testing.assert_close(drawn(model, posterior, 0, **padded)[0], together[0], rtol=0, atol=1e-5)


def test_draws_repeat_and_differ(posterior: Posterior) -> None:
    """Another object draws the same networks, as after a restart; different draws are different networks."""
    model, inputs = network(), tokens([6, 6])
    first = drawn(model, posterior, 0, **inputs)
    torch.testing.assert_close(drawn(network(), posterior, 0, **inputs), first)
    if posterior.size != 1:
        assert not torch.allclose(drawn(model, posterior, 1, **inputs), first, atol=1e-3)


def test_model_is_left_as_it_was(posterior: Posterior) -> None:
    """Every parameter, buffer, flag, hook and forward method is as before, also after an exception inside the block."""
    model, inputs = network(), tokens([4, 4])
    left_as_it_was(model, lambda: posterior.draw(model, 0), lambda: model(**inputs))


def test_draws_do_not_nest(posterior: Posterior) -> None:
    """A second draw in this thread, or of this model or a part of it in another, is refused while one is open."""
    model = network()
    with posterior.draw(model, 0):
        with pytest.raises(RuntimeError, match="open already"), posterior.draw(network(), 0):
            pass
        caught: list[BaseException] = []

        def enter(part: nn.Module) -> None:
            try:
                with posterior.draw(part, 0):
                    pass
            except RuntimeError as error:
                caught.append(error)

        for part in (model, model.model.layers[1]):
            thread = threading.Thread(target=enter, args=[part])
            thread.start()
            thread.join()
    assert ["open already" in str(error) for error in caught] == [True, True]


def test_bad_requests(posterior: Posterior) -> None:
    """A draw that is not there, and a model in DataParallel, are refused."""
    with pytest.raises(ValueError, match="t=-1"), posterior.draw(network(), -1):
        pass
    with pytest.raises(TypeError, match="DataParallel: pass its"), posterior.draw(nn.DataParallel(network()), 0):
        pass
    if posterior.size is not None:
        with pytest.raises(ValueError, match=f"{posterior.size} draw"), posterior.draw(network(), posterior.size):
            pass


def test_autocast(posterior: Posterior) -> None:
    """Under autocast a draw is near its float32 self."""
    model, inputs = network(), tokens([6, 9])
    exact = drawn(model, posterior, 0, **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = drawn(model, posterior, 0, **inputs)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)


def test_gradients(posterior: Posterior) -> None:
    """Gradients pass through a draw."""
    model = network()
    with posterior.draw(model, 0):
        model(**tokens([5, 4])).logits.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.model.layers.parameters())


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
def test_distributed_data_parallel(posterior: Posterior) -> None:
    """A model wrapped in DistributedDataParallel draws what it draws bare."""
    model, inputs = network(), tokens([5, 8])
    expected = drawn(model, posterior, 0, **inputs)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        # It goes before its group does: one that outlives the group frees it holding the interpreter's lock, which the
        # group's thread may wait for.
        came = drawn(DistributedDataParallel(model), posterior, 0, **inputs)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(came, expected)
