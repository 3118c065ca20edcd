"""Metric modules that ship with the package, so that scoring a model needs no network.

Each folder here is a module of `evaluate`: `evaluate.load(str(path("accuracy")))` takes it from disk.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

__all__ = ["available_metrics", "load", "path"]


def available_metrics() -> list[str]:
    """Names that `load` knows, in alphabetical order."""
    return sorted(folder.name for folder in Path(__file__).parent.iterdir() if (folder / f"{folder.name}.py").is_file())


def path(name: str) -> Path:
    """Folder of the metric module, as `evaluate.load` takes it.

    Args:
        name: One of `available_metrics()`.

    Raises:
        ValueError: There is no such metric.
    """
    if name not in available_metrics():
        raise ValueError(
            f"baal_hf ships no metric {name!r}: it has {', '.join(available_metrics())}. "
            "For another, pass its name or its folder to evaluate.load."
        )
    return Path(__file__).parent / name


def load(name: str) -> "evaluate.Metric":
    """Metric module of that name, loaded through `evaluate` from the package's own files.

    It keeps what it is given in memory: no cache file that several processes could want at once.

    Args:
        name: One of `available_metrics()`.

    Returns:
        A metric; `metric.compute(predictions=..., references=...)` returns `{name: score}`.

    Raises:
        ValueError: There is no such metric.
    """
    folder = path(name)
    # evaluate takes as long to import as torch, transformers and datasets together: it comes when asked for.
    import evaluate

    return evaluate.load(str(folder), keep_in_memory=True)
