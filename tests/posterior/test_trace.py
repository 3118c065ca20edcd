"""Draws that share work give what draws give that are run alone, on every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from baal_hf import MCDropout
from baal_hf.posterior.trace import Trace, UnstackableError
from tests.posterior.families import TASKS, build, configuration, dropout_rates, inputs, output
from tests.posterior.family_settings import REFUSED
from tests.posterior.test_families import cases

pytestmark = [
    # Models of transformers tell of their own old ways, and of tiny configurations; none of it is about draws.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

DRAWS = [0, 1, 5]


def alone(model: nn.Module, posterior: MCDropout, given: dict[str, Tensor]) -> list[Tensor]:
    """Each draw by itself."""
    outputs = []
    for t in DRAWS:
        with posterior.draw(model, t):
            outputs.append(output(model, given).clone())
    return outputs


def posteriors(model: nn.Module) -> list[MCDropout]:
    """Dropout everywhere, in the last layer and behind it, and added."""
    return [MCDropout(), MCDropout(where="last:1"), MCDropout(p=0.3, where="head"), MCDropout(p=0.3)]


@pytest.mark.parametrize(("task", "family"), cases(list(TASKS)))
def test_sharing_changes_nothing(task: str, family: str) -> None:
    """What comes before the first mask can be kept, and draws stacked where masks have rows: outputs are equal."""
    rates = [rate for rate in dropout_rates(configuration(task, family)) if (family, rate) not in REFUSED]
    model = build(task, family, dict.fromkeys(rates, 0.3))
    given = inputs(task, model)
    rows = {len(value) for value in given.values()}
    with torch.no_grad():
        output(model, given)  # BigBird changes its attention in its first pass
        for posterior in posteriors(model):
            try:
                expected = alone(model, posterior, given)
            except ValueError:  # no such place, or no dropout there
                continue
            trace = Trace()
            with posterior.traced(model, DRAWS[:1], trace):
                first = output(model, given).clone()
            kept = [first]
            for t in DRAWS[1:]:
                with posterior.traced(model, [t], trace):
                    kept.append(output(model, given).clone())
            for mine, right in zip(kept, expected, strict=True):
                torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)
            if len(rows) > 1:
                continue
            try:
                with posterior.traced(model, DRAWS, trace):
                    stacked = output(model, {n: v.repeat(3, *(1,) * (v.ndim - 1)) for n, v in given.items()})
            except UnstackableError:
                continue
            torch.testing.assert_close(stacked, torch.cat(expected), rtol=1e-4, atol=1e-4)
