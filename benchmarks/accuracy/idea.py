"""The picture of the idea for README.md: mixed digits, their mixed classes, and both softmaxes after training.

`python -m benchmarks.accuracy.idea` trains the demo's network with the loss and writes benchmarks/results/idea.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import icm_fast as icm
from benchmarks.accuracy import data
from benchmarks.accuracy.models import DigitNet
from icm_fast import functional as F_icm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT = Path(__file__).resolve().parent.parent / "results" / "idea.png"
SHOWN = 8
PAIRS = ((0, 6), (3, 1), (7, 2), (4, 9), (5, 8), (1, 7), (9, 3), (2, 5))
LAMS = (0.7, 0.55, 0.8, 0.6, 0.75, 0.5, 0.85, 0.65)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.idea", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(arguments)
    images = data.load("digits", 0)
    model = trained(images, options.steps)
    shown, target = mixed_examples(images)
    with torch.no_grad():
        scores = F_icm.mixed_logits(model(shown), target)
    draw(shown[:, 0], target, scores).savefig(options.out, dpi=110)
    print(f"wrote {options.out}")
    return 0


def trained(images: data.ImageSet, steps: int) -> DigitNet:
    """A network trained with the Infinite Class Mixup loss on fresh mixtures."""
    torch.manual_seed(0)
    model = DigitNet(images.num_classes)
    mix = icm.Mixup(mixup_alpha=1.0, mode="elem")
    criterion = icm.ICMLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(images.train_labels), (64,))
        mixed, target = mix(images.train_images[batch], images.train_labels[batch])
        loss = criterion(model(mixed), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def mixed_examples(images: data.ImageSet) -> tuple[Tensor, icm.MixedTarget]:
    """Test images of the chosen pairs of classes, mixed."""
    first = {c: images.test_images[images.test_labels == c][0] for c in range(images.num_classes)}
    y_a, y_b = (torch.tensor([pair[k] for pair in PAIRS]) for k in (0, 1))
    lam = torch.tensor(LAMS)
    stacked = torch.stack([first[int(c)] for c in torch.cat([y_a, y_b])])
    mixed = F_icm.mixup(stacked, torch.arange(2 * SHOWN).roll(SHOWN), torch.cat([lam, 1 - lam]))
    return mixed[:SHOWN], icm.MixedTarget(y_a, y_b, lam)


def draw(images: Tensor, target: icm.MixedTarget, scores: Tensor) -> Figure:
    """Images down the side, mixed classes along the bottom, one matrix for each axis."""
    from matplotlib.figure import Figure

    names = [f"{lam:.2f}·{a}\n+ {1 - lam:.2f}·{b}" for (a, b), lam in zip(PAIRS, LAMS, strict=True)]
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    grid = figure.add_gridspec(SHOWN, 3, width_ratios=[1.2, SHOWN, SHOWN])
    for row in range(SHOWN):
        axis = figure.add_subplot(grid[row, 0])
        axis.imshow(images[row], cmap="gray_r")
        axis.set_axis_off()
        if row == 0:
            axis.set_title("image i,\nmixed", fontsize=9)
    titles = (
        "class axis: each row is a softmax,\nwhich mixed class is this image?",
        "pair axis: each column is a softmax,\nwhich image is of this mixed class?",
    )
    for column, (title, dim) in enumerate(zip(titles, (1, 0), strict=True)):
        axis = figure.add_subplot(grid[:, column + 1])
        picture: Any = axis.imshow(scores.softmax(dim), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(SHOWN), names, fontsize=7)
        axis.set_yticks([])
        axis.set_xlabel("mixed class j = the classifiers of both labels, mixed like the images", fontsize=9)
    figure.colorbar(picture, ax=figure.axes[-1], label="probability")
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
