"""The least number of bytes each operation must move: what a benchmark divides by its time.

Counted: every input read once, every output written once. Label and weight vectors count too; a cache
that saves nothing but a second read of the same array is not assumed away.
"""

from __future__ import annotations

import torch


def _column_bytes(batch_size: int, scalar_lam: bool) -> int:
    return batch_size * 16 + (4 if scalar_lam else 4 * batch_size)  # two int64 labels, one float32 weight


def icm_loss_bytes(
    batch_size: int, num_classes: int, dtype: torch.dtype, mode: str, *, scalar_lam: bool = False
) -> int:
    """mode "fwd": logits and target read. "bwd": the same again, gradient written. "fwdbwd": both.

    Where one pass over on-chip data serves both, "fwdbwd" overstates the reads by one array of logits.
    """
    logits_bytes = batch_size * num_classes * dtype.itemsize
    fwd = logits_bytes + _column_bytes(batch_size, scalar_lam)
    bwd = fwd + logits_bytes + 2 * 4 * batch_size  # the two log-sum-exp vectors
    return {"fwd": fwd, "bwd": bwd, "fwdbwd": fwd + bwd}[mode]


def mixup_cross_entropy_bytes(batch_size: int, num_classes: int, dtype: torch.dtype, mode: str) -> int:
    """As icm_loss_bytes, with one log-sum-exp per row."""
    logits_bytes = batch_size * num_classes * dtype.itemsize
    fwd = logits_bytes + _column_bytes(batch_size, False)
    bwd = fwd + logits_bytes + 4 * batch_size
    return {"fwd": fwd, "bwd": bwd, "fwdbwd": fwd + bwd}[mode]


def mixup_bytes(numel: int, in_dtype: torch.dtype, out_dtype: torch.dtype, *, keep_clean: bool = False) -> int:
    """numel samples' elements read once (a partner is another sample of the batch), one or two outputs."""
    return numel * in_dtype.itemsize + numel * out_dtype.itemsize * (2 if keep_clean else 1)
