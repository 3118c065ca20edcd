"""MC dropout: every dropout that the model trains with, switched on as one fixed network per draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import Literal

import torch
from torch import nn

from baal_hf.posterior.base import opened
from baal_hf.posterior.network import DrawnNetwork
from baal_hf.posterior.places import Rates, checked_where
from baal_hf.posterior.report import dropout_report, foreign_kernel
from baal_hf.posterior.switches import drawing_flags, evaluation_flags
from baal_hf.posterior.trace import Trace


class MCDropout:
    """Monte-Carlo dropout (Gal & Ghahramani, 2016; 1506.02142) on any torch module.

    A draw answers every dropout call of the forward pass, in modules (`nn.Dropout`, 1d, 2d, 3d, alpha, between the
    layers of `nn.LSTM` and its kin), in functions (`F.dropout` with a plain rate), in attention (eager,
    `scaled_dot_product_attention`, `nn.MultiheadAttention`) and in adapters, at the rate the model was configured with.
    Weights, buffers, batch norm and everything else stay in evaluation mode.

    With `masks="shared"` (default) a draw is one network, the same for every row. A mask is named by (seed, t, site),
    a site by the module's path and the ordinal of the call within it. To make the output of a row independent of the
    batch and of padding, a mask is also shared by positions: hidden states [B, L, d] lose the same features at each
    position, attention weights [B, H, L, L] or [B·H, L, L] are kept or dropped by head and distance from query to key,
    images [B, C, H, W] likewise by channel and diagonal, and a vector [B] as a whole. Each unit is still dropped with
    probability p. Cross attention is kept or dropped by head and key, windowed attention by head and place in the
    window, and distances leave padding out. A model that keeps hidden states as [B, d, L] shares by position instead,
    and there padding on the left moves the masks. Noise no longer averages out over positions, so the spread of pooled
    outputs is of another size than with independent masks: about the same at a single token, larger for a mean.

    With `masks="fresh"` every unit of every row and pass has its own coin, as in the textbook. Draws are then not
    functions: the same row gives another output in another batch.

    `where` limits the dropout, and `p` replaces it: the model's own is then off, and dropout of rate `p` is added for
    the length of a draw, so that models that ship without dropout have draws too. No weight or state dict key changes.

    | `where` | the model's own dropout (`p=None`) | what `p` adds |
    |---|---|---|
    | "residual" | of hidden states inside the layers | on each sub-layer's output before it is added to the residual |
    | "attention" | of attention weights | on attention weights |
    | "head" | after the last layer | on the input of each linear layer after the last layer |
    | "last:k" | in the last k layers and after them | "residual" in the last k layers, and "head" |
    | a pattern | in modules whose name matches, and in their parts | on the output of modules whose name matches |
    | None | everywhere | as "residual" |

    Patterns are those of `fnmatch`, such as "model.layers.*.mlp". Layers are the elements of the model's outermost
    module lists, blocks of stages in hierarchical models, in the order in which the model has them. Dropout in some
    places only is another posterior than dropout everywhere: cheaper, and not the same scores.

    Args:
        seed: Names the sequence of draws.
        masks: "shared" or "fresh".
        p: None, or the rate of what is added, in [0, 1).
        where: None, or one of the places above.

    Attributes:
        size: None: there are as many draws as one asks for.
        swaps_weights: False.

    Raises:
        ValueError: `masks` or `where` is unknown, or `p` is not in [0, 1).
    """

    size: int | None = None
    swaps_weights = False

    def __init__(
        self,
        seed: int = 0,
        masks: Literal["shared", "fresh"] = "shared",
        p: float | None = None,
        where: str | None = None,
    ) -> None:
        if masks not in ("shared", "fresh"):
            raise ValueError(f"MCDropout needs masks='shared' or masks='fresh', got {masks!r}.")
        if p is not None and not 0 <= p < 1:
            raise ValueError(f"MCDropout needs a rate p in [0, 1), got {p}.")
        checked_where(where)
        self.seed = seed
        self.masks = masks
        self.p = p
        self.where = "residual" if p is not None and where is None else where
        self._generators: dict[torch.device, torch.Generator] = {}

    def with_seed(self, seed: int) -> MCDropout:
        """The same posterior with another seed, whose draws begin anew."""
        other = copy(self)
        other.seed, other._generators = seed, {}
        return other

    def draw(self, model: nn.Module, t: int) -> AbstractContextManager[None]:
        """Make `model` the t-th network for the length of a `with` block.

        Raises:
            ValueError: `t` is negative, the model has no such place as `where`, its attention runs in a kernel that
                masks do not reach, or the block ran the model and no dropout with a rate above 0 was met.
            TypeError: `model` is wrapped in `nn.DataParallel`, whose threads a draw does not reach.
            RuntimeError: A draw of this model, or another draw in this thread, is open already.
        """
        return self.traced(model, [t], None)

    @contextmanager
    def traced(self, model: nn.Module, draws: Sequence[int], trace: Trace | None) -> Iterator[None]:
        """`draw` for passes of one batch, each of which spares the next some work.

        The first pass, of one draw, fills the trace. A later one of one draw does not compute again what comes before
        the first mask. A later one of several draws is given the rows that many times: all for the first draw, all for
        the second, ... Independent masks (`masks="fresh"`) leave the trace empty.

        Raises:
            UnstackableError: The model drops out something that has no axis of rows, so draws cannot be stacked.
            ValueError: As `draw`.
            TypeError: As `draw`.
            RuntimeError: As `draw`.
        """
        with opened(self, model, min(draws)) as bare:
            adds_elsewhere = self.p is not None and self.where != "attention"  # the model's own dropout is off
            if not adds_elsewhere:
                self._refuse_kernels(bare)
            fresh = self._generator if self.masks == "fresh" else None
            keys = [f"{self.seed}/{t}" for t in draws]
            rates = Rates(self.p, self.where)
            network = DrawnNetwork(bare, keys, rates, fresh, None if fresh is not None else trace)
            flags = evaluation_flags(bare) if adds_elsewhere else drawing_flags(bare)
            with flags, network.followed(), network:
                yield
        if network.forward.count and not network.fired:
            raise ValueError(f"{self._nothing_fired(bare)}\n{dropout_report(bare)}")

    def _nothing_fired(self, model: nn.Module) -> str:
        place = f" at where={self.where!r}" if self.where else ""
        nothing = f"MCDropout found no active dropout in {type(model).__name__}{place}: every draw would be the same."
        if self.p is not None:
            return f"{nothing} Name modules whose outputs are to be dropped, as where='*.mlp', or take a rate above 0."
        return (
            f"{nothing} Add some for the draws with MCDropout(p=0.1), load the model with a rate above 0 in its "
            "configuration (for example `attention_dropout=0.1`), or use an ensemble. posterior=Deterministic() "
            "predicts without draws."
        )

    def _refuse_kernels(self, model: nn.Module) -> None:
        kernel = foreign_kernel(model)
        if kernel is None:
            return
        if self.where == "attention" or any(repr(kernel) in site.why_not for site in dropout_report(model).sites):
            raise ValueError(
                f"MCDropout cannot give its masks to the attention kernel {kernel!r} of {type(model).__name__}: call "
                'model.set_attn_implementation("sdpa") first.'
            )

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]
