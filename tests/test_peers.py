"""Dense targets that other libraries really produce, and the loss that one computes; `make check` installs them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peers import peer, peer_file
from torch import Tensor

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing.checks import check_icm_loss
from icm_fast.testing.linear import Inputs, check_linear_icm_loss

pytestmark = pytest.mark.long
ROWS, CLASSES = 24, 10


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand(ROWS, 3, 8, 8, generator=generator), torch.randint(CLASSES, (ROWS,), generator=generator)


def timm_targets(generator: torch.Generator) -> dict[str, Tensor]:
    mixup = peer_file("timm", "data/mixup.py")
    return {
        f"{mode}, smoothing {smoothing}": mixup.Mixup(
            mixup_alpha=0.4, cutmix_alpha=1.0, mode=mode, label_smoothing=smoothing, num_classes=CLASSES
        )(*batch(generator))[1]
        for mode in ("batch", "elem", "pair")
        for smoothing in (0.0, 0.1)
    }


def torchvision_targets(generator: torch.Generator) -> dict[str, Tensor]:
    v2 = peer("torchvision.transforms.v2")
    kinds = {"MixUp": v2.MixUp(alpha=0.4, num_classes=CLASSES), "CutMix": v2.CutMix(num_classes=CLASSES)}
    return {name: mix(*batch(generator))[1] for name, mix in kinds.items()}


@pytest.mark.parametrize("source", [timm_targets, torchvision_targets], ids=["timm", "torchvision"])
def test_dense_targets(source: object, generator: torch.Generator) -> None:
    weight = torch.randn(CLASSES, 16, generator=generator)
    given = Inputs(torch.randn(ROWS, 16, generator=generator), weight, torch.randn(CLASSES, generator=generator))
    logits = F.linear(*given[:3])
    for name, target in source(generator).items():
        assert target.shape == (ROWS, CLASSES) and target.is_floating_point()
        leaf = logits.clone().requires_grad_()
        loss = F_icm.icm_loss(leaf, target)
        check_icm_loss(loss.detach(), torch.autograd.grad(loss, leaf)[0], logits, target, what=name)
        results = [F_icm.linear_icm_loss(given.features, given.weight, target, given.bias)]
        check_linear_icm_loss((*results, None, None, None, None), given, target, what=name)
        if bool(((target != 0).sum(1) <= 2).all()):  # not smoothed: the sparse path
            sparse = F_icm.icm_loss(logits, icm.MixedTarget.from_dense(target))
            torch.testing.assert_close(sparse, loss.detach())


def test_clip_loss_of_open_clip(generator: torch.Generator) -> None:
    """Ours is twice open_clip's, which halves the sum of the axes."""
    clip_loss = peer_file("open_clip", "loss.py").ClipLoss()
    image, text = (F.normalize(torch.randn(33, 16, generator=generator), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    leaves = [image, text, scale]
    theirs, ours = clip_loss(image, text, scale), F_icm.contrastive_loss(image, text, scale) / 2
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))
