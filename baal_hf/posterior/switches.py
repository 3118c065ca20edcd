"""Which modules choose a dropout rate by their own `training` flag, and the flags of a model during a draw.

Most dropout passes `training` on to a torch function, where a draw can answer it whatever the flag. Attention modules
however write `dropout=self.p if self.training else 0.0`: unless their flag is on, the rate never reaches torch. A draw
must switch these on, and these alone: a flag also governs batch norm, LayerDrop, SpecAugment, router noise and gradient
checkpointing, all of which stay as in evaluation. (Where a class hides a dropout and other noise behind one flag, the
other noise comes with it.)
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType

from torch import nn


@cache
def gates_dropout(kind: type[nn.Module]) -> bool:
    """Whether modules of this class hide a dropout behind `self.training`.

    True for `rate if self.training else 0.0` (either way round) and for `if self.training: ... dropout(...)`, in any
    method of the class or its ancestors. Where Python has no source to read, the names used by the code decide.
    """
    return any(_gates(method) for method in own_methods(kind) if "training" in method.__code__.co_names)


def own_methods(kind: type[nn.Module]) -> list[FunctionType]:
    """The methods of a class and its ancestors, but for torch's own and those of every model of transformers."""
    general = ("torch.", "transformers.modeling_utils")
    ancestors = [ancestor for ancestor in kind.__mro__ if not ancestor.__module__.startswith(general)]
    return [method for ancestor in ancestors for method in vars(ancestor).values() if inspect.isfunction(method)]


@cache
def syntax(method: FunctionType) -> ast.AST | None:
    """What the method's source says; None where Python has no source to read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return None


def _gates(method: FunctionType) -> bool:
    tree = syntax(method)
    if tree is None:
        return any("drop" in name and "layer" not in name for name in method.__code__.co_names)
    return any(_is_gate(node) for node in ast.walk(tree))


def _is_gate(node: ast.AST) -> bool:
    if isinstance(node, ast.IfExp):
        zero = any(isinstance(branch, ast.Constant) and branch.value == 0 for branch in (node.body, node.orelse))
        return zero and _reads_training(node.test)
    if isinstance(node, ast.If):
        return _reads_training(node.test) and any(_calls_dropout(part) for line in node.body for part in ast.walk(line))
    return False


def _reads_training(test: ast.expr) -> bool:
    return any(isinstance(part, ast.Attribute) and part.attr == "training" for part in ast.walk(test))


def _calls_dropout(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and "dropout" in ast.unparse(node.func).lower()


@contextmanager
def drawing_flags(model: nn.Module) -> Iterator[None]:
    """Evaluation mode everywhere except in modules that gate a dropout; every flag as before on leaving."""
    with evaluation_flags(model):
        for module in model.modules():
            module.training = gates_dropout(type(module))  # type: ignore[arg-type]
        yield


@contextmanager
def evaluation_flags(model: nn.Module) -> Iterator[None]:
    """Evaluation mode everywhere; every flag as before on leaving."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training
