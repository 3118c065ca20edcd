"""`ModelWrapper.predict_on_dataset` beside a bare loop of forward passes over the same batches, in turn.

    python scripts/bench_modelwrapper.py

Both draw the same masks, so that what is compared is all that is around the passes.
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from baal_hf import MCDropout, ModelWrapper


def network() -> nn.Module:
    """The CNN of BatchBALD's MNIST experiment (Kirsch et al., 2019)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.Dropout(), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5), nn.Dropout(), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1024, 128), nn.Dropout(), nn.ReLU(), nn.Linear(128, 10)),
    )


def main() -> None:
    """Print the ratio of each pair and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = TensorDataset(torch.rand(args.rows, 1, 28, 28), torch.zeros(args.rows, dtype=torch.long))
    wrapper = ModelWrapper(network(), nn.CrossEntropyLoss())
    wrapper.predict_on_dataset(rows, 128, 2, workers=0, verbose=False)
    ratios = []
    for _ in range(args.runs):
        started = time.perf_counter()
        probs = wrapper.predict_on_dataset(rows, 128, 20, workers=0, verbose=False)
        ours = time.perf_counter()
        with torch.inference_mode():
            bare = []
            for images, _ in DataLoader(rows, 128):
                drawn = []
                for t in range(20):
                    with MCDropout().draw(wrapper.model, t):
                        drawn.append(wrapper.model(images).softmax(1))
                bare.append(torch.stack(drawn, -1))
        done = time.perf_counter()
        assert torch.allclose(torch.cat(bare), torch.from_numpy(probs), atol=1e-5)
        ratios.append((ours - started) / (done - ours))
        print(
            f"predict_on_dataset {ours - started:.2f} s, bare passes {done - ours:.2f} s: {ratios[-1]:.3f}", flush=True
        )
    print(f"median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
