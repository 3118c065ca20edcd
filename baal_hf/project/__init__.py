"""A labelling project in a folder: rounds with people in them, hours or weeks apart; each step can be repeated.

    project.json    settings, written once
    labels.db       the ledger of labels
    models/0001/    each trained model, with what was measured of it in record.json
    curve.jsonl     a line for each trained model
    runs/NAME/      simulations on known labels

Training lies in `project.training`, which takes transformers with it, and is imported by itself.
"""

from baal_hf.project.project import Project
from baal_hf.project.settings import Settings

__all__ = ["Project", "Settings"]
