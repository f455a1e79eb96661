"""torch.compile and torch.export: a whole step is one graph, for all draws and batch sizes, with eager's bits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.utils._pytree as pytree
from torch import Tensor, nn

import icm_fast as icm
from icm_fast import functional as F_icm
from icm_fast.testing import budget

CLASSES = 20
HEAD = nn.Linear(12, CLASSES)
STEPS: dict[str, tuple[Any, nn.Module]] = {
    "icm": (icm.Mixup(0.2), icm.ICMLoss()),
    "pair axis": (icm.Mixup(0.2, mode="pair"), icm.ICMLoss("pair", logit_scale=torch.tensor(0.7))),
    "icm of CutMix": (icm.Mixup(0.2, 1.0, mode="elem", prob=0.7), icm.ICMLoss()),
    "cutmix_minmax": (icm.Mixup(0.2, cutmix_minmax=(0.2, 0.8)), icm.ICMLoss()),
    "remix": (icm.Mixup(0.2, remix=icm.RemixRule(torch.arange(1, CLASSES + 1))), icm.ICMLoss()),
    "mixup": (icm.Mixup(0.2, pairing="roll"), icm.MixupCrossEntropyLoss(label_smoothing=0.1)),
    "regmixup": (icm.Mixup(20, keep_clean=True), icm.RegMixupLoss()),
    "dense": (icm.Mixup(0.2, target="dense", num_classes=CLASSES), icm.ICMLoss(backend="cpu")),
    "disabled": (lambda images, labels: (images, labels), icm.ICMLoss()),
    # More classes than a batch uses: in a graph, which cannot look, mixed classifiers; the weight's gradient is sparse.
    "linear": (icm.Mixup(0.2), icm.LinearICMLoss(HEAD)),
}


class Step(nn.Module):
    """Mixing, network and loss."""

    def __init__(self, name: str, net: str = "linear") -> None:
        super().__init__()
        self.mix, self.criterion = STEPS[name]
        outputs = 12 if name == "linear" else CLASSES
        self.head = HEAD  # of the network, not of the loss
        layers = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()] if net == "convolutional" else []
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 4 * 4, outputs))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        mixed, target = self.mix(images, labels)
        loss: Tensor = self.criterion(self.net(mixed), target)
        return loss


def batch(size: int) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 3, 4, 4), torch.randint(CLASSES, (size,))


def results(step: Any, weight: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of a batch of this size, with the draws of this seed."""
    torch.manual_seed(size)
    images, labels = batch(size)
    torch.manual_seed(seed)
    loss = step(images, labels)
    return loss.detach(), torch.autograd.grad(loss, weight)[0]


@pytest.fixture
def _recompiling_is_an_error() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.mark.usefixtures("_recompiling_is_an_error")
@pytest.mark.parametrize("name", STEPS)
def test_one_graph_serves_every_draw_and_batch_size(name: str) -> None:
    step = Step(name)
    # aot_eager runs the fake kernels and the registered derivatives; code generation is another test.
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for size, seed in ((32, 0), (32, 1), (32, 2), (21, 3), (20, 4)):
        ours, expected = (results(each, step.net[1].weight, size, seed) for each in (compiled, step))
        if name == "linear":  # eager mode looks at the labels, and takes the other way where it is cheaper
            torch.testing.assert_close(ours, expected)
        else:
            budget.check_same_bits(ours[0], expected[0], f"loss of {size}")
            budget.check_same_bits(ours[1], expected[1], f"gradient of {size}")


@pytest.mark.long
@pytest.mark.parametrize("net", ["linear", "convolutional"])
@pytest.mark.parametrize("name", STEPS)
def test_generated_code_draws_and_computes_the_same(name: str, net: str) -> None:
    """Of a network with convolutions, around which the code generator turns round what may be turned round."""
    torch._dynamo.reset()
    step = Step(name, net)
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for size, seed in ((32, 0), (21, 1)):
        ours, expected = (results(each, step.net[-1].weight, size, seed) for each in (compiled, step))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


class TwoMixtures(nn.Module):
    """Equal draws, twice."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.mix, self.net = icm.Mixup(1.0, **options), nn.Linear(48, CLASSES)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self.mix(images, labels) for _ in range(2)]
        losses = [F_icm.icm_loss(self.net(mixed.flatten(1)), target) for mixed, target in pairs]
        return losses[0] + losses[1], torch.stack([target.lam for _, target in pairs])


@pytest.mark.parametrize("options", [{}, {"cutmix_alpha": 1.0}, {"pairing": "flip"}], ids=str)
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_two_equal_draws_stay_two(compiler: str, options: dict[str, Any]) -> None:
    """What a graph computes twice from the same it may compute once: a draw is not that."""
    torch._dynamo.reset()
    step = TwoMixtures(**options)
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for seed in range(3):
        torch.manual_seed(seed)
        images, labels = batch(8)
        found = []
        for run in (compiled, step):
            torch.manual_seed(seed)
            loss, lam = run(images, labels)
            found.append((lam, loss.detach(), torch.autograd.grad(loss, step.net.weight)[0]))
        assert found[1][0][0] != found[1][0][1]
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.usefixtures("_recompiling_is_an_error")
@pytest.mark.parametrize("name", ["lam of mixup", "lam of a tuple", "logit_scale", "rate"])
def test_numbers_that_change_need_no_graph_of_their_own(name: str) -> None:
    logits, labels = torch.randn(8, CLASSES), torch.randint(CLASSES, (8,))
    target = icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.3))
    calls: dict[str, Any] = {
        "lam of mixup": lambda v: F_icm.mixup(logits, torch.arange(8).flip(0), v),
        "lam of a tuple": lambda v: F_icm.icm_loss(logits, icm.MixedTarget.from_tuple((labels, labels.flip(0), v))),
        "logit_scale": lambda v: F_icm.icm_loss(logits, target, logit_scale=v),
        "rate": lambda v: F_icm.am_mixup_loss(logits, torch.arange(8).flip(0), v, labels),
    }
    compiled = torch.compile(calls[name], fullgraph=True, dynamic=True, backend="eager")
    for number in (0.1, 0.25, 0.7):
        torch.testing.assert_close(compiled(number), calls[name](number))


def test_am_mixup_needs_a_graph_for_each_label_alone() -> None:
    """Own or partner's, as the rate falls below one half; not for each accuracy."""
    torch._dynamo.reset()
    mix, counted = icm.AMMixup(beta=1.0), torch._dynamo.testing.CompileCounter()
    features, labels = torch.randn(8, 5), torch.arange(8)
    compiled = torch.compile(mix, fullgraph=True, dynamic=True, backend=counted)
    for accuracy in (0.1, 0.2, 0.35, 0.5, 0.8, 0.85, 0.9):
        mix.update(accuracy)
        torch.manual_seed(0)
        ours = compiled(features, labels)
        torch.manual_seed(0)
        torch.testing.assert_close(ours, mix(features, labels))
    assert counted.frame_count <= 3


def test_a_generator_in_a_graph_is_refused_with_what_to_do() -> None:
    mix = icm.Mixup(0.2, generator=torch.Generator())
    with pytest.raises(Exception, match="cannot hold a generator; mix outside"):
        torch.compile(mix, fullgraph=True, backend="eager")(*batch(8))
    compiled = torch.compile(mix, backend="eager")  # without fullgraph the draws are made between graphs
    assert isinstance(compiled(*batch(8))[1], icm.MixedTarget)


def test_a_batch_size_that_is_fixed_means_another_graph() -> None:
    """So that the test above can fail."""
    torch._dynamo.reset()
    step = Step("icm")
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="eager")
    results(compiled, step.net[1].weight, 32, 0)
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(Exception, match=r"[Rr]ecompil"):
        results(compiled, step.net[1].weight, 21, 0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", [name for name in STEPS if name != "dense"])
def test_a_step_can_be_exported(name: str, strict: bool) -> None:
    step = Step(name)
    size = torch.export.Dim("B", min=20, max=1024)
    program = torch.export.export(step, batch(32), dynamic_shapes=({0: size}, {0: size}), strict=strict)
    kept = io.BytesIO()
    torch.export.save(program, kept)
    kept.seek(0)
    exported = torch.export.load(kept).module()
    for rows in (32, 21):
        images, labels = batch(rows)
        torch.manual_seed(rows)
        ours = exported(images, labels)
        torch.manual_seed(rows)
        torch.testing.assert_close(ours, step(images, labels))


def test_a_loss_can_be_exported_with_its_target_as_an_argument() -> None:
    logits, labels = torch.randn(8, CLASSES), torch.randint(CLASSES, (8,))
    target = icm.MixedTarget(labels, labels.flip(0), torch.rand(8))
    program = torch.export.export(icm.ICMLoss(), (logits, target))
    other = icm.MixedTarget(labels.flip(0), labels, torch.rand(8))
    budget.check_same_bits(program.module()(logits, other), icm.ICMLoss()(logits, other), "exported loss")


def test_a_target_is_a_tree_of_its_tensors() -> None:
    labels = torch.arange(4)
    target = icm.MixedTarget(labels, labels.flip(0), torch.tensor(0.3), clean=labels)
    leaves, spec = pytree.tree_flatten({"target": target})
    assert len(leaves) == 4 and all(isinstance(leaf, Tensor) for leaf in leaves)  # no None, which has no .to()
    again = pytree.tree_unflatten(leaves, spec)["target"]
    assert isinstance(again, icm.MixedTarget) and again.y_a is target.y_a and again.clean is labels
    # Whatever a map puts there.
    shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), target)
    assert shapes.y_a == (4,) and shapes.lam == () and shapes.plan is None
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(target)[0]]
    assert paths[:3] == [".y_a", ".y_b", ".lam"]
