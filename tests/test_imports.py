"""Imports: they point down the line of design.md only, change nothing outside the package, and are cheap."""

import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "baal_hf"

FLOORS = [
    {"arrays", "criteria", "devices", "ledger", "metrics", "store"},
    {"rows"},
    {"export"},
    {"dataset", "posterior", "heuristics", "files"},
    {"features", "sampling"},
    {"inputs", "outputs", "checkpoints"},
    {"trainer", "modelwrapper", "calibration"},
    {"ensemble", "loop", "stopping", "curves", "semisupervised"},
    {"plots", "reliability"},
    {"experiment"},
    {"project"},
    {"cli", "__init__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What the siblings of a folder may import from it, besides nothing.
SHARED = {
    "heuristics": {"base", "batch", "clusters", "distances", "draws", "greedy", "labels", "reductions"},
    "posterior": {
        *("answers", "base", "branches", "masks", "network", "passes", "places", "report", "switches", "trace"),
        "weights",
    },
}
SIBLINGS = {
    ("heuristics.batchbald", "heuristics.disagreement"): "the first pick is BALD's",
    ("heuristics.prefiltered", "heuristics.disagreement"): "the filter is BALD unless one says",
    ("heuristics.stochastic", "heuristics.disagreement"): "PowerBALD is PowerSampling by BALD",
    ("heuristics.stochastic", "heuristics.uncertainty"): "PowerEntropy is PowerSampling by Entropy",
    ("posterior.patching", "posterior.dropout"): "patch_module is MCDropout, left in place",
    ("posterior.patching", "posterior.dropconnect"): "MCDropoutConnectModule is MCDropConnect, left in place",
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Full name of every module that the file imports, wherever in the file."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                submodule = ROOT.joinpath(*module.split("."), name.name)
                is_module = submodule.is_dir() or submodule.with_suffix(".py").is_file()
                yield f"{module}.{name.name}" if is_module else module


def inside(module: str) -> list[str]:
    """Path of the module below the package; `__init__` for the package itself."""
    return module.split(".")[1:] or ["__init__"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    """A file imports only what lies below it, and of its own folder only what the folder's siblings share."""
    here = list(file.relative_to(PACKAGE).with_suffix("").parts)
    assert here[0] in FLOOR, f"{here[0]} has no floor yet: give it one in FLOORS"
    for module in imported(file):
        if module.split(".")[0] != PACKAGE.name:
            continue
        there = inside(module)
        if there[0] != here[0]:
            assert FLOOR[there[0]] < FLOOR[here[0]], f"{'.'.join(here)} imports {module}, which is not below it"
        elif here[0] in SHARED and here[-1] != "__init__" and (".".join(here), ".".join(there)) not in SIBLINGS:
            assert there[-1] in SHARED[here[0]], f"{'.'.join(here)} imports its sibling {module}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "heuristics").glob("*.py")), ids=lambda file: file.stem)
def test_heuristics_know_arrays_only(file):
    """A heuristic imports the standard library, numpy, torch, arrays and its own folder."""
    for module in imported(file):
        library = module.split(".")[0]
        if library == PACKAGE.name:
            assert inside(module)[0] in {"arrays", "heuristics"}, module
        else:
            assert library in {"numpy", "torch"} or library in sys.stdlib_module_names, module


def printed_by(program: str) -> dict[str, object]:
    """The JSON that the program prints, run in a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_has_no_side_effects():
    """Importing baal_hf and every public name of it changes no logging, warning filter or environment variable."""
    seen = printed_by(
        """
        import json, logging, os, warnings
        import datasets, torch, transformers
        from transformers import Trainer  # these do have side effects, and are not ours

        def state():
            return {
                "root handlers": list(map(repr, logging.root.handlers)),
                "root level": logging.root.level,
                "logging disabled": logging.root.manager.disable,
                "libraries' levels": [datasets.logging.get_verbosity(), transformers.logging.get_verbosity()],
                "warning filters": list(map(repr, warnings.filters)),
                "environment": {name: hash(value) for name, value in os.environ.items()},
                "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.initial_seed()],
            }

        before = state()
        import baal_hf
        for name in baal_hf.__all__:
            getattr(baal_hf, name)
        own = [name for name, logger in logging.root.manager.loggerDict.items()
               if name.split(".")[0] == "baal_hf" and getattr(logger, "handlers", [])]
        print(json.dumps({"before": before, "after": state(), "own handlers": own}))
        """
    )
    assert seen["after"] == seen["before"]
    assert seen["own handlers"] == []


def test_importing_is_cheap():
    """Importing baal_hf costs at most a fifth of importing torch, transformers and datasets."""
    shares = []
    for _ in range(5):  # noise only ever adds, so the first run within the limit settles it
        seconds = printed_by(
            """
            import json, time
            begin = time.process_time()
            import torch, transformers, datasets
            base = time.process_time()
            import baal_hf
            print(json.dumps({"libraries": base - begin, "baal_hf": time.process_time() - base}))
            """
        )
        shares.append(seconds["baal_hf"] / seconds["libraries"])
        if shares[-1] <= 0.2:
            return
    pytest.fail(f"baal_hf adds {min(shares):.0%} or more to the imports that it stands on; make what is costly lazy")
