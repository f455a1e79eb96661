"""What one environment is asked; run as a script by its Python, outside the source tree, it prints one JSON object.

Only torch and icm_fast are there, numpy is not.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import icm_fast as icm
from icm_fast import functional as F_icm

AXES = ("both", "class", "pair")


def main() -> int:
    """1 if a check failed."""
    checks = {name: outcome(check) for name, check in CHECKS.items()}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torch_cuda": torch.version.cuda}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(json.dumps({"versions": versions, "gpu": gpu, "checks": checks}))
    return 0 if all(text == "ok" for text in checks.values()) else 1


def outcome(check: Callable[[], None]) -> str:
    """The word ok, or what went wrong."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return "ok"


def is_installed() -> None:
    """It is the wheel's package that is checked."""
    assert Path(sys.prefix) in Path(icm.__file__).parents, f"icm_fast comes from {icm.__file__}"
    version = importlib.metadata.version("icm-fast")
    assert version.split("+")[0] == icm.__version__, f"metadata of {version}, package of {icm.__version__}"


def reports_itself() -> None:
    """`python -m icm_fast` with its self-check."""
    command = [sys.executable, "-I", "-m", "icm_fast", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stderr or result.stdout).strip().splitlines()[-1]
    report = json.loads(result.stdout)
    assert report["backends"]["cpu"]["available"], report["backends"]["cpu"]["reason"]
    checked = [each["passed"] for each in report["self_check"] if each["backend"] == "cpu"]
    assert checked and all(checked)


def sample(dtype: torch.dtype) -> tuple[torch.Tensor, icm.MixedTarget]:
    """Logits and target of 33 images, more than a tile, and of 7 classes, so that columns collide."""
    torch.manual_seed(0)
    labels = torch.randint(7, (33,))
    logits = torch.randn(33, 7, dtype=dtype, requires_grad=True)
    return logits, icm.MixedTarget(labels, labels.roll(1), torch.rand(33))


def loss_and_gradient(axis: Any, backend: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """On the same numbers in every type."""
    logits, target = sample(torch.float32)
    logits = logits.detach().to(dtype).requires_grad_()
    loss = F_icm.icm_loss(logits, target, axis=axis, backend=backend)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def loss_is_right() -> None:
    """The compiled loss and its gradient against the reference in float64."""
    for axis in AXES:
        truth = loss_and_gradient(axis, "reference", torch.float64)
        for ours, exact in zip(loss_and_gradient(axis, "cpu", torch.float32), truth, strict=True):
            torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-5, atol=1e-6)


def mixing_is_right() -> None:
    """The compiled mixing and its derivative against the reference."""
    torch.manual_seed(0)
    x, index, lam = torch.randn(5, 3, 8, 6), torch.randperm(5), torch.rand(5)
    results = []
    for backend in ("cpu", "reference"):
        leaf = x.clone().requires_grad_()
        mixed = F_icm.mixup(leaf, index, lam, backend=backend)
        results.append((mixed.detach(), *torch.autograd.grad(mixed.square().sum(), leaf)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def compiles() -> None:
    """In one graph, with the bits of eager mode; without a code generator, whose compiler a user may lack."""
    logits, target = sample(torch.float32)

    def step(logits: torch.Tensor, y_a: torch.Tensor, y_b: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return icm.ICMLoss()(logits, icm.MixedTarget(y_a, y_b, lam)) * 2.0

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    arguments = (logits, target.y_a, target.y_b, target.lam)
    losses = [function(*arguments) for function in (step, compiled)]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    assert torch.equal(*losses) and torch.equal(*gradients), "the compiled step differs from the eager one"


def cuda_library_loads() -> None:
    """If it is in the wheel: its kernels are registered, with or without a GPU to run them."""
    library = Path(icm.__file__).parent / "lib" / "libicm_fast_cuda.so"
    if library.exists():
        torch.ops.load_library(str(library))
        assert torch._C._dispatch_has_kernel_for_dispatch_key("icm_fast::icm_loss_fwd.cuda", "CUDA")


CHECKS: dict[str, Callable[[], None]] = {
    "installed": is_installed,
    "self-check": reports_itself,
    "loss": loss_is_right,
    "mixing": mixing_is_right,
    "compile": compiles,
    "CUDA library": cuda_library_loads,
}

if __name__ == "__main__":
    sys.exit(main())
