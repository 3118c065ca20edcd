"""The models that a project has trained, and what was measured of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from baal_hf.project.whole_file import put

RECORD = "record.json"


@dataclass(frozen=True)
class TrainedModel:
    """One of the models.

    Attributes:
        model: Its name, such as "0003": that of its folder, and the model version of labels.
        labelled: Rows that it was trained on.
        events: Events that the ledger had: it knows nothing of later ones.
        seed: Of the training.
        metrics: On the test rows, such as "eval_accuracy"; none without test rows.
        seconds: That training and evaluation took.
        time: Seconds since 1970, UTC, when it was done.
    """

    model: str
    labelled: int
    events: int
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    time: float = 0.0

    def line(self) -> str:
        """As JSON, with the metrics beside the rest."""
        values = asdict(self)
        return json.dumps({**values.pop("metrics"), **values}) + "\n"


def trained_models(folder: Path) -> list[TrainedModel]:
    """All models that were trained in a project's folder, the latest last, also those whose files were deleted.

    A model that was saved just before its process was killed is not in `curve.jsonl`, but says itself what it is.

    Raises:
        ValueError: A file holds something else.
    """
    curve = folder / "curve.jsonl"
    lines = curve.read_text(encoding="utf-8").splitlines() if curve.exists() else []
    # Not those of 0004.part, which is still written.
    saved = sorted((folder / "models").glob(f"[0-9]*[0-9]/{RECORD}"))
    found = [_model(line, f"{curve}, line {number}") for number, line in enumerate(lines, start=1)]
    found += [_model(path.read_text(encoding="utf-8"), str(path)) for path in saved]
    by_name = {model.model: model for model in found}
    return [by_name[name] for name in sorted(by_name)]


def write_curve(folder: Path, models: list[TrainedModel]) -> None:
    """Write `curve.jsonl`."""
    put(folder / "curve.jsonl", "".join(model.line() for model in models).encode())


def _model(line: str, where: str) -> TrainedModel:
    try:
        values = json.loads(line)
        known = {name: values[name] for name in TrainedModel.__dataclass_fields__ if name in values}
        metrics = {name: float(value) for name, value in values.items() if name not in known}
        return TrainedModel(**known, metrics=metrics)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: this is no record of a trained model: {error}.") from error
