"""DTensors, which no fused kernel knows: refused early, with what to pass instead."""

from __future__ import annotations

import json

from helpers import run_python

_CODE = """
import json, sys, torch, icm_fast as icm
from icm_fast import functional as F_icm
assert "torch.distributed.tensor" not in sys.modules  # nor does the check need it
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from torch.distributed.tensor import DeviceMesh, Replicate, Shard, distribute_tensor
mesh = DeviceMesh("cpu", [0])
def shared(tensor, placement=Shard(0)):
    return distribute_tensor(tensor, mesh, [placement])
logits, weight, labels, lam = torch.randn(4, 5), torch.randn(5, 3), torch.arange(4), torch.tensor(0.3)
target, features = icm.MixedTarget(labels, labels.flip(0), lam, clean=labels), torch.randn(4, 3)
group = dist.group.WORLD
calls = {
    "logits of icm_loss": lambda: F_icm.icm_loss(shared(logits), target, process_group=group),
    "logits with one process": lambda: F_icm.icm_loss(shared(logits), target),
    "logits of mixup_cross_entropy": lambda: F_icm.mixup_cross_entropy(shared(logits), labels),
    "logits of RegMixupLoss": lambda: icm.RegMixupLoss()((logits, shared(logits)), target),
    "features": lambda: F_icm.linear_icm_loss(shared(features), weight, target),
    "weight": lambda: F_icm.linear_icm_loss(features, torch.nn.Parameter(shared(weight)), target),
    "bias": lambda: F_icm.linear_icm_loss(features, weight, target, shared(weight[:, 0])),
    "class weight": lambda: F_icm.mixup_cross_entropy(logits, labels, weight=shared(torch.ones(5))),
    "dense target": lambda: F_icm.icm_loss(logits, shared(target.dense(5))),
    "hard labels": lambda: F_icm.icm_loss(logits, shared(labels)),
    "y_a": lambda: icm.MixedTarget(shared(labels), labels, lam),
    "lam": lambda: icm.MixedTarget(labels, labels, shared(lam, Replicate())),
    "logit_scale": lambda: F_icm.icm_loss(logits, target, logit_scale=shared(torch.tensor(2.0), Replicate())),
    "views": lambda: F_icm.contrastive_loss(features, shared(features)),
    "images": lambda: icm.Mixup()(shared(logits), labels),
    "index": lambda: F_icm.mixup(logits, shared(labels), 0.5),
    "mixing lam": lambda: F_icm.mixup(logits, labels, shared(lam, Replicate())),
    "AM-Mixup's features": lambda: icm.AMMixup()(shared(features), labels),
}
said = {}
for name, call in calls.items():
    try:
        call()
        said[name] = "nothing"
    except TypeError as error:
        said[name] = str(error)
leaf = shared(logits).requires_grad_()
F_icm.icm_loss(leaf.to_local(), target, process_group=group).backward()  # as the message says
said["advice"] = str(bool(leaf.grad.to_local().abs().sum() > 0))
print(json.dumps(said))
"""


def test_dtensors_are_refused_with_what_to_pass_instead() -> None:
    said = json.loads(run_python(_CODE))
    assert said.pop("advice") == "True"
    for name, message in said.items():
        assert "is a DTensor; pass " in message and ".full_tensor()" in message and ".to_local()" in message, name
