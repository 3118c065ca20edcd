"""One event: checked when it is made, never changed."""

from dataclasses import FrozenInstanceError, asdict

import pytest

from baal_hf.ledger import LabelEvent
from baal_hf.ledger.events import ACTIONS


@pytest.mark.parametrize("action", ACTIONS)
def test_actions(action) -> None:
    """Each action there is makes an event, which is equal to one that says the same."""
    event = LabelEvent(3, action, "x", 2, "anna", "BALD", 0.5, 0.25, "v1", 17.0, 4)
    assert event == LabelEvent(**asdict(event))
    assert hash(event) == hash(LabelEvent(**asdict(event)))


def test_events_cannot_be_edited() -> None:
    """An event is never changed."""
    with pytest.raises(FrozenInstanceError):
        LabelEvent(0, "label", 1, step=1).label = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "lable"}, "action out of label, relabel, unlabel, skip, undo, add_class and a step >= 0"),
        ({"step": -1}, "and a step >= 0"),
        ({"probability": 1.5}, r"probability in \[0, 1\], got 1.5"),
        ({"probability": -0.1}, r"probability in \[0, 1\], got -0.1"),
        ({"probability": float("nan")}, r"probability in \[0, 1\], got nan"),
        ({"score": float("nan")}, "score that is a number, got nan"),
    ],
)
def test_events_are_checked(arguments, message) -> None:
    """An unknown action, a step below 0, a probability outside [0, 1] and a score that is NaN are refused."""
    with pytest.raises(ValueError, match=message):
        LabelEvent(**{"row_id": 0, "action": "label", **arguments})


@pytest.mark.parametrize("name", ["annotator", "heuristic", "model_version"])
@pytest.mark.parametrize("value", [5, b"anna", ["anna"]])
def test_names_are_text(name, value) -> None:
    """A name that is no text is refused: a file would give back another one."""
    with pytest.raises(TypeError, match=f"{name} that is text"):
        LabelEvent(0, "label", 1, **{name: value})


@pytest.mark.parametrize("probability", [0, 1, 0.5])
def test_probabilities(probability) -> None:
    """A row that was sure to be chosen, and one that had no chance, have probabilities too."""
    assert LabelEvent(0, "label", 1, probability=probability).probability == probability
