"""What a posterior draw costs beside a plain evaluation pass of the same batch: medians of paired runs.

    python scripts/bench_draws.py

all-MiniLM-L6-v2 with a head of five classes, 16 rows of 128 tokens (2,048), float32, as many threads as torch takes.
"""

import statistics
import time
from collections.abc import Callable

import torch
import transformers
from text_data import packaged_minilm
from transformers import AutoModelForSequenceClassification

from baal_hf import MCDropout

RUNS, DRAWS = 30, 10


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Time each kind of pass in turn, and print the median ratio to the plain pass beside it."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(packaged_minilm(), num_labels=5).eval()
    lengths = torch.tensor([64, 128] * 8)
    batch = {
        "input_ids": torch.randint(1000, 20000, (16, 128), generator=torch.Generator().manual_seed(0)),
        "attention_mask": (torch.arange(128) < lengths[:, None]).long(),
    }

    def plain() -> object:
        return model(**batch)

    def drawn(posterior: MCDropout, t: int) -> object:
        with posterior.draw(model, t):
            return model(**batch)

    shared, fresh = MCDropout(), MCDropout(masks="fresh")
    ratios: dict[str, list[float]] = {"shared masks": [], "fresh masks": []}
    with torch.inference_mode():
        for posterior in (shared, fresh):
            for t in range(DRAWS):
                drawn(posterior, t)
        for run in range(RUNS):
            t = run % DRAWS
            base = seconds(plain)
            ratios["shared masks"].append(seconds(lambda t=t: drawn(shared, t)) / base)
            base = seconds(plain)
            ratios["fresh masks"].append(seconds(lambda t=t: drawn(fresh, t)) / base)
    for name, values in ratios.items():
        low, *_, high = statistics.quantiles(values, n=4)
        print(f"{name}: {statistics.median(values):.2f} times a plain pass (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
