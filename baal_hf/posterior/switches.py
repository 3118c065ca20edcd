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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType

from torch import nn


@cache
def gates_dropout(kind: type[nn.Module]) -> bool:
    """Whether modules of this class hide a dropout behind `self.training`.

    True where a method of the class or its ancestors has `rate if self.training else 0.0` (either way round) or
    `rate * self.training`; calls dropout or sets a rate under `if self.training`; or returns early `if not
    self.training` from what calls dropout, or is a dropout. Where Python has no source to read, the names used by the
    code decide.
    """
    is_dropout = "dropout" in kind.__name__.lower()
    methods = [method for method in own_methods(kind) if "training" in method.__code__.co_names]
    return any(_gates(method, is_dropout) for method in methods)


def own_methods(kind: type[nn.Module]) -> list[FunctionType]:
    """The methods of a class and its ancestors, but for torch's own and those of every model of transformers."""
    general = ("torch.", "transformers.modeling_utils")
    ancestors = [ancestor for ancestor in kind.__mro__ if not ancestor.__module__.startswith(general)]
    methods = [method for ancestor in ancestors for method in vars(ancestor).values() if inspect.isfunction(method)]
    return [inspect.unwrap(method) for method in methods]


@cache
def syntax(method: FunctionType) -> ast.AST | None:
    """What the method's source says; None where Python has no source to read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return None


def _gates(method: FunctionType, is_dropout: bool) -> bool:
    tree = syntax(method)
    if tree is None:
        return any("drop" in name and "layer" not in name for name in method.__code__.co_names)
    drops = is_dropout or any(_calls_dropout(node) for node in ast.walk(tree))
    return any(_is_gate(node) or (drops and _is_early_return(node)) for node in ast.walk(tree))


def _is_gate(node: ast.AST) -> bool:
    if isinstance(node, ast.IfExp):
        zero = any(isinstance(branch, ast.Constant) and branch.value == 0 for branch in (node.body, node.orelse))
        return zero and _reads_training(node.test)
    if isinstance(node, ast.If) and _reads_training(node.test):
        return any(_calls_dropout(part) or _sets_rate(part) for line in node.body for part in ast.walk(line))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = (node.left, node.right)
        return any(map(_reads_training, sides)) and any("drop" in ast.unparse(side) for side in sides)
    return False


def _is_early_return(node: ast.AST) -> bool:
    if not isinstance(node, ast.If) or not any(isinstance(line, ast.Return) for line in node.body):
        return False
    parts = ast.walk(node.test)
    return any(
        isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not) and _reads_training(part) for part in parts
    )


def _sets_rate(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Attribute):
        return False
    return any("dropout" in ast.unparse(target) or ast.unparse(target) == "p" for target in node.targets)


def _reads_training(test: ast.AST) -> bool:
    return any(isinstance(part, ast.Attribute) and part.attr == "training" for part in ast.walk(test))


def _calls_dropout(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and "dropout" in ast.unparse(node.func).lower()


@contextmanager
def drawing_flags(model: nn.Module) -> Iterator[None]:
    """Evaluation mode everywhere except in modules that gate a dropout; every flag as before on leaving."""
    with _flags(model, lambda kind: gates_dropout(kind)):  # type: ignore[arg-type]
        yield


@contextmanager
def evaluation_flags(model: nn.Module) -> Iterator[None]:
    """Evaluation mode everywhere; every flag as before on leaving."""
    with _flags(model, lambda kind: False):
        yield


@contextmanager
def _flags(model: nn.Module, wanted: Callable[[type[nn.Module]], bool]) -> Iterator[None]:
    """The flag of each module as its class wants it; every flag as before on leaving."""
    changed = [module for module in model.modules() if module.training is not wanted(type(module))]
    before = [module.training for module in changed]
    try:
        for module in changed:
            module.training = wanted(type(module))
        yield
    finally:
        for module, training in zip(changed, before, strict=True):
            module.training = training
