"""The workloads of `make bench`."""

from __future__ import annotations

from .workloads import FLIPPED, ONE_LAM, OPERATIONS, ROLLED, Spec

# The table of README.md, whose targets stand in benchmarks/readme.
TABLE = ((64, 10), (64, 100), (128, 10), (128, 100), (512, 100), (1024, 1000), (4096, 1000), (8192, 1000))
# Classes -> batch sizes, beside the table's, up to where a step of a rival takes some seconds; and those of ours alone.
SWEEP = {10: (512, 1024, 4096), 100: (1024, 4096), 1000: (64, 256), 21841: (64, 256, 1024, 2048)}
ALONE = {10: (16384, 65536), 100: (16384, 65536), 1000: (16384, 65536), 21841: (4096, 16384)}
SMALL_IMAGES, LARGE_IMAGES = (128, 3, 32, 32), (64, 3, 224, 224)

_SWEPT = sorted({*TABLE, *((rows, classes) for classes, sizes in SWEEP.items() for rows in sizes)})
_ALONE = [(rows, classes) for classes, sizes in ALONE.items() for rows in sizes]

SUITE: tuple[Spec, ...] = (
    *(Spec("icm_loss", size) for size in (*_SWEPT, *_ALONE)),
    *(Spec("icm_loss", size, ONE_LAM) for size in ((128, 100), (4096, 10), (4096, 100), (1024, 1000), (4096, 1000))),
    *(Spec("icm_loss", (1024, 1000), dtype=dtype) for dtype in ("bfloat16", "float16", "float64")),
    *(Spec("mixup_cross_entropy", size) for size in ((128, 10), (128, 100), (1024, 1000), (4096, 1000))),
    Spec("mixup_cross_entropy", (1024, 1000), ONE_LAM),
    Spec("mixup", SMALL_IMAGES),
    Spec("mixup", LARGE_IMAGES),
    Spec("mixup", LARGE_IMAGES, dtype="bfloat16"),
    Spec("mixup", LARGE_IMAGES, dtype="uint8"),
    Spec("mixup", SMALL_IMAGES, FLIPPED),
    Spec("mixup", LARGE_IMAGES, FLIPPED),
    Spec("mixup", LARGE_IMAGES, ROLLED),
    Spec("mixup", LARGE_IMAGES, ROLLED, dtype="uint8"),
    # Batch, features, classes; then batch, features; then batch, classes.
    *(Spec("linear_icm_loss", size) for size in ((1024, 512, 1000), (4096, 512, 1000), (1024, 256, 100_000))),
    *(Spec("contrastive_loss", size) for size in ((1024, 512), (4096, 512))),
    *(Spec("icm_loss_dense", size) for size in ((1024, 1000), (4096, 100))),
)


def is_of_ours_alone(spec: Spec) -> bool:
    """Whether rivals would take too long, or too much memory."""
    return spec.operation == "icm_loss" and spec.size in _ALONE


def sizes_of(operation: str) -> list[tuple[int, ...]]:
    """Of an operation in its plainest form, in order."""
    assert operation in OPERATIONS
    plain = (spec for spec in SUITE if spec == Spec(operation, spec.size) and not is_of_ours_alone(spec))
    return [spec.size for spec in plain]
