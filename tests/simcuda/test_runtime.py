"""The simulated runtime itself: what torch must find for the other tests to mean something."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def script(simulator):
    """Run lines of Python on the simulated runtime; what they `tell` comes back."""
    prelude = "import json, time, torch\nfrom probe import get, kernels, put\n"
    prelude += "tell = lambda **found: print(json.dumps(found))\n"

    def run(text, **settings):
        code = prelude + textwrap.dedent(text)
        return simulator.python("-c", code, PYTHONPATH=HERE, **settings).lines()

    return run


def test_allocations_are_those_of_torch_and_are_charged_to_the_device(script):
    (found,) = script(
        """
        x = torch.empty(1_000_000, device="cuda")
        free, total = torch.cuda.mem_get_info()
        tell(name=torch.cuda.get_device_name(), allocated=torch.cuda.memory_allocated(),
             reserved=torch.cuda.memory_reserved(), charged=get("used"), taken=total - free)
        """
    )
    assert found["name"] == "Simulated GPU"
    assert found["allocated"] == 4_000_256
    assert found["reserved"] == found["charged"] == found["taken"] == 20 * 2**20


def test_device_time_is_that_of_the_work_and_the_host_goes_on(script):
    # Two products of 2 * 512^3 operations at a GFLOP/s: 268 ms each, and a microsecond to launch.
    (found,) = script(
        """
        a = torch.empty(512, 512, device="cuda")
        torch.mm(a, a)
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began = time.perf_counter()
        start.record(); torch.mm(a, a); torch.mm(a, a); end.record()
        launched = time.perf_counter() - began
        torch.cuda.synchronize()
        tell(ms=start.elapsed_time(end), launched=launched, waited=time.perf_counter() - began)
        """,
        gflops=1, launch_ns=1000, virtual_clock=0,
    )  # fmt: skip
    assert found["ms"] == pytest.approx(2 * 2 * 512**3 / 1e6, rel=0.001)
    assert found["launched"] < found["ms"] / 1000 <= found["waited"]


def test_events_read_before_the_work_is_done_are_an_error(script):
    (found,) = script(
        """
        a = torch.empty(512, 512, device="cuda")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(); torch.mm(a, a); end.record()
        try:
            start.elapsed_time(end)
        except RuntimeError as error:
            tell(error=str(error))
        """,
        gflops=1,
    )
    assert "completed" in found["error"]


def test_streams_work_side_by_side_and_wait_for_events(script):
    (found,) = script(
        """
        a = torch.empty(512, 512, device="cuda")
        torch.mm(a, a)
        torch.cuda.synchronize()
        one, two = torch.cuda.Stream(), torch.cuda.Stream()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        events[0].record(one)
        with torch.cuda.stream(one): torch.mm(a, a); events[1].record()
        with torch.cuda.stream(two): torch.mm(a, a); events[2].record()
        two.wait_event(events[1])
        with torch.cuda.stream(two): torch.mm(a, a); events[3].record()
        torch.cuda.synchronize()
        tell(ms=[events[0].elapsed_time(e) for e in events[1:]])
        """,
        gflops=1,
    )
    one, two, both = found["ms"]
    assert two == pytest.approx(one, rel=0.05)
    assert both == pytest.approx(2 * one, rel=0.05)


def test_a_training_step_runs_and_autocast_launches_half_kernels(script):
    (found,) = script(
        """
        from torch import nn
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
        ).cuda()
        x = torch.empty(2, 3, 8, 8, device="cuda")
        optimizer = torch.optim.AdamW(model.parameters())
        def step(half):
            before = get("half_products"), kernels("Half"), get("convolutions")
            with torch.autocast("cuda", torch.float16, enabled=half):
                loss = model(x).float().square().sum()
            loss.backward()
            optimizer.step()
            after = get("half_products"), kernels("Half"), get("convolutions")
            return [b - a for a, b in zip(before, after)]
        tell(plain=step(False), half=step(True))
        """
    )
    assert found["plain"] == [0, 0, 2]  # the convolution and its weights' gradient
    assert found["half"][0] == 5  # and three products of the linear layer
    assert found["half"][1] > 0


def test_what_does_not_fit_is_torchs_own_error_and_what_fits_goes_on(script):
    (found,) = script(
        """
        try:
            torch.empty(2 * 2**30, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            x = torch.empty(2**29, dtype=torch.uint8, device="cuda")
            tell(error=str(error), ooms=get("ooms"), allocated=torch.cuda.memory_allocated())
        """,
        mem_total="1G",
    )
    assert "Tried to allocate 2.00 GiB" in found["error"]
    assert found["ooms"] >= 1
    assert found["allocated"] == 2**29


def test_a_failed_allocation_is_tried_again_by_torch(script):
    (found,) = script(
        """
        torch.empty(1, device="cuda")
        put("fail_malloc_in", 1)
        x = torch.empty(2**28, device="cuda")
        tell(retries=torch.cuda.memory_stats()["num_alloc_retries"], ooms=get("ooms"))
        """
    )
    assert found == {"retries": 1, "ooms": 1}


def test_a_graph_takes_the_time_of_its_work_and_hardly_any_of_the_host(script):
    (found,) = script(
        """
        a = torch.empty(256, 256, device="cuda")
        side = torch.cuda.Stream()
        with torch.cuda.stream(side): torch.mm(a, a)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(5): b = torch.mm(a, a)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before = get("gemms")
        start.record(); graph.replay(); end.record()
        torch.cuda.synchronize()
        tell(ms=start.elapsed_time(end), gemms=get("gemms") - before, graphs=get("graph_launches"))
        """,
        gflops=1,
    )
    assert found["ms"] == pytest.approx(5 * 2 * 256**3 / 1e6, rel=0.01)
    assert (found["gemms"], found["graphs"]) == (0, 1)


def test_devices_have_their_own_memory_and_clock(script):
    (found,) = script(
        """
        x = torch.empty(2**20, device="cuda:1")
        y = x.to("cuda:0")
        names = [str(torch.cuda.get_device_properties(i).uuid) for i in range(2)]
        tell(allocated=[torch.cuda.memory_allocated(i) for i in range(2)], names=names)
        """,
        device_count=2,
    )
    assert found["allocated"] == [2**22, 2**22]
    assert len(set(found["names"])) == 2


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"device_count": 0}, 0), ({"device_count": 3}, 3),
     ({"device_count": 3, "CUDA_VISIBLE_DEVICES": "2"}, 1),
     ({"device_count": 3, "CUDA_VISIBLE_DEVICES": ""}, 0)],
)  # fmt: skip
def test_as_many_devices_as_asked_for_are_visible(script, settings, count):
    (found,) = script(
        "tell(count=torch.cuda.device_count(), there=torch.cuda.is_available())", **settings
    )
    assert found == {"count": count, "there": count > 0}


def test_a_lost_device_stays_lost(script):
    (found,) = script(
        """
        a = torch.empty(8, 8, device="cuda")
        errors = []
        put("lost_after", 3)
        for _ in range(5):
            try:
                a.add_(1)
                torch.cuda.synchronize()
            except RuntimeError as error:
                errors.append(str(error).partition("\\n")[0])
        tell(errors=errors)
        """
    )
    assert len(found["errors"]) == 3
    assert all("unavailable" in error for error in found["errors"])


def test_counters_of_processes_that_have_ended_can_be_read(simulator):
    ran = simulator.python("-c", "import torch; torch.empty(2**20, device='cuda').fill_(0)")
    assert len(ran.counters) == 1
    assert ran.total("launches") >= 1
    assert ran.used == [(20 * 2**20, *[0] * 7)]
