"""What only a device has: streams, other devices, graphs, and a host that must not wait."""

from __future__ import annotations

import time

import pytest
import torch

import icm_fast as icm
from icm_fast.testing.budget import check_same_bits

from .problems import Kernel, problem

# A small batch and one of many blocks.
SHAPES = ((128, 100), (1500, 300))
SPIN_CYCLES = 600_000_000  # some 0.3 s
mark_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@mark_shapes
def test_works_on_the_current_stream(
    shape: tuple[int, int], kernel: Kernel, gpu: torch.device, generator: torch.Generator
) -> None:
    given = problem(kernel.operation, shape, torch.float32, gpu, generator)
    expected = given.run(kernel.backend)
    values = torch.full_like(given.leaf, float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # What is launched on another stream does not wait for this, and reads NaN.
        torch.cuda._sleep(SPIN_CYCLES // 6)
        values.copy_(given.leaf)
        results = given.run(kernel.backend, values)
    stream.synchronize()
    for ours, other in zip(results, expected, strict=True):
        check_same_bits(ours, other, "on a stream of its own")


@mark_shapes
def test_the_host_does_not_wait(
    shape: tuple[int, int], kernel: Kernel, gpu: torch.device, generator: torch.Generator
) -> None:
    given = problem(kernel.operation, shape, torch.float32, gpu, generator)
    for _ in range(3):  # what is loaded, compiled and allocated once
        given.run(kernel.backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # torch's own waits
    try:
        given.run(kernel.backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    # And any other: the device is busy when the call begins, and must still be when it has returned.
    busy = torch.cuda.Event()
    started = time.perf_counter()
    torch.cuda._sleep(SPIN_CYCLES)
    busy.record()
    given.run(kernel.backend)
    returned_s = time.perf_counter() - started
    still_busy = not busy.query()
    torch.cuda.synchronize()
    assert still_busy, f"the call returned after {returned_s:.3f} s, when the device had finished what came before it"


@mark_shapes
@pytest.mark.parametrize("regime", ["normal", "range_500"])
def test_graph_replays_equal_eager_calls(
    regime: str, shape: tuple[int, int], kernel: Kernel, gpu: torch.device, generator: torch.Generator
) -> None:
    given = problem(kernel.operation, shape, torch.float32, gpu, generator, regime)
    first = given.leaf.clone()
    # Replayed on other values: what was decided at capture, the repair of an underflow too, must not stay decided.
    others = [first.flip(0).contiguous(), first * 0.01, first * 30, first]
    expected = [given.run(kernel.backend, values) for values in others]
    static = first.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            given.run(kernel.backend, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = given.run(kernel.backend, static)
    for round_ in range(3):
        for values, results in zip(others, expected, strict=True):
            static.copy_(values)
            for result in captured:
                result.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            for ours, other in zip(captured, results, strict=True):
                check_same_bits(ours, other, f"replay of round {round_}")


def test_a_device_that_is_not_current(kernel: Kernel, gpu: torch.device, generator: torch.Generator) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second GPU")
    given = problem(kernel.operation, (128, 100), torch.float32, torch.device("cuda", 1), generator)
    with torch.cuda.device(0):
        given.run_and_check(kernel.backend)
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_a_whole_step_in_one_graph(mode: str, gpu: torch.device) -> None:
    """Mixing with its draws, network, loss, gradients and update: each replay draws anew, as eager steps would."""
    mix, criterion = icm.Mixup(0.2, 1.0, mode=mode), icm.ICMLoss()
    torch.manual_seed(0)
    images = torch.rand(128, 3, 8, 8, device=gpu)
    labels = torch.randint(100, (128,), device=gpu)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 100)).to(gpu)
    start = [parameter.detach().clone() for parameter in net.parameters()]
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)

    def step() -> torch.Tensor:
        optimiser.zero_grad(set_to_none=False)
        mixed, target = mix(images, labels)
        loss = criterion(net(mixed), target)
        loss.backward()
        optimiser.step()
        return loss.detach()

    def restart(seed: int) -> None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), start, strict=True):
                parameter.copy_(value)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for seed in (1, 2):
        restart(seed)
        expected = [step().item() for _ in range(4)]
        restart(seed)
        replayed = []
        for _ in range(4):
            graph.replay()
            replayed.append(loss.item())
        assert len(set(replayed)) == 4
        assert replayed == expected
