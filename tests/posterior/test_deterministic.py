"""The posterior of one network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baal_hf import Deterministic, MCDropout, Posterior


def test_one_network() -> None:
    """The only draw is the model in evaluation mode; flags are as before afterwards, also after an exception."""
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval())
    with pytest.raises(KeyError), Deterministic().draw(network, 0):
        assert torch.equal(network(torch.ones(100)), torch.ones(100))
        raise KeyError
    assert [part.training for part in network.modules()] == [True, True, False]


def test_no_second_draw() -> None:
    """Asking for another draw says where draws are to be had."""
    with pytest.raises(ValueError, match="MCDropout has any number"), Deterministic().draw(nn.Identity(), 1):
        pass


@pytest.mark.parametrize("posterior", [Deterministic(), MCDropout()])
def test_protocol(posterior: object) -> None:
    """Every posterior is one."""
    assert isinstance(posterior, Posterior)
