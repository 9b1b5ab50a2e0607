"""Paragraphs for a paper, from records alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from datbench import schedule
from datbench.metrics import latency
from datbench.records import Calibration, Comparison, Workload
from datbench.reports.methods import methods
from datbench.reports.protocol import counted, listed, ranged

CUDA = Workload(
    "cuda:0", (3, 224, 224), batch_size=8, dtype="float16", amp=True, channels_last=True,
    image="noise", seed=3,
)  # fmt: skip
CALIBRATION = Calibration(
    "2026-11-25T10:00:00+00:00", "pvt_v2_b0", 12.3, 20, 0.0123,
    {"default": 0.031, "rigorous": 0.018}, 1, 8,
)  # fmt: skip


@pytest.fixture
def run(make_record):
    """Records of one comparison: run("SLOWER", "SAME", tier="rigorous")."""

    def make(*verdicts, work=None, pairs=8, **facts):
        compared = [None, *(Comparison("dat_tiny", 1.1, 1.0, 1.2, v) for v in verdicts)]
        records = [
            make_record(
                name, comparison=c, samples=240, pairs=pairs, peak_allocated_mib=90.0, work=work
            )
            for name, c in zip(("dat_tiny", "swin_tiny", "pvt_small"), compared, strict=False)
        ]
        known = {"tier": "default", "min_effect": 0.01, "command": "datbench compare --models x"}
        return [dataclasses.replace(record, **{**known, **facts}) for record in records]

    return make


def on_gpu(records, name="NVIDIA GeForce RTX 4090"):
    return [
        dataclasses.replace(
            record,
            environment=dataclasses.replace(
                record.environment, device_name=name, driver="570.1", cuda="12.8", cudnn="91000"
            ),
        )
        for record in records
    ]


def test_a_run_on_a_cpu_is_told_in_five_paragraphs(run):
    found = methods(run("SLOWER"))
    assert len(found) == 5
    hardware, kind, protocol, comparison, counts = found
    assert "The device was the processor Test CPU." in hardware
    assert "datbench 0.2.0, git commit ffff" in hardware
    assert "Python 3.11.7, PyTorch 2.14.1" in hardware
    assert "One forward pass of dat_tiny and swin_tiny was timed, with batch size 1" in kind
    assert "were float32, in contiguous (NCHW) memory format, on 2 threads" in kind
    assert "8 process pairs, with 240 timed iterations" in kind
    assert "`datbench compare --models x`" in kind
    assert "monotonic clock" in protocol
    assert "Student's t interval" in comparison
    assert "multiply-adds of one image, each counted as 1" in counts
    assert "on a CPU the largest sum" in counts
    everything = " ".join(found)
    for foreign in ("CUDA", "GPU", "TF32", "cudnn", "Holm", "Simulated", "None", "L2"):
        assert foreign not in everything


def test_a_gpu_is_told_with_its_software_and_settings(run):
    everything = " ".join(methods(on_gpu(run("SLOWER", work=CUDA))))
    for told in (
        "GeForce RTX 4090 (driver 570.1, CUDA 12.8, cuDNN 91000), in a machine with Test CPU",
        "Weights were float32, and the arithmetic under autocast to float16, in channels-last",
        "TF32 was off, cudnn.benchmark was on, and the L2 cache was left as it was",
        "Gaussian noise, drawn with seed 3", "CUDA events around each iteration",
        "PyTorch's caching allocator", "with batch size 8",
    ):  # fmt: skip
        assert told in everything, told
    assert "threads" not in everything
    set_ = dataclasses.replace(CUDA, tf32=True, cudnn_benchmark=False, cold_cache=True)
    told = "TF32 was on, cudnn.benchmark was off, and the L2 cache was overwritten before each"
    assert told in " ".join(methods(on_gpu(run(work=set_))))


def test_numbers_are_those_of_the_code_that_measures(run, monkeypatch):
    everything = " ".join(methods(run("SLOWER", "SAME", tier="rigorous")))
    for told in (
        f"at least {schedule.SLOT_ITERATIONS} consecutive iterations",
        f"{schedule.SLOT_MS:g} ms", f"{100 * schedule.LOOK_LEVEL:g} %", "6, 12, 20 and 40 pairs",
        f"{latency.BLOCKS} blocks", f"{latency.WARMUP_MOST_S:g} s", "at least 0.2 s",
        "p90 from 29, p95 from 59 and p99 from 299", "Holm", "within a factor of 1 + 1 %",
        "tier rigorous: at most 40 pairs of 3 to 5 rounds",
    ):  # fmt: skip
        assert told in everything, told
    monkeypatch.setattr("datbench.reports.protocol.SLOT_MS", 77.0)
    assert "77 ms" in " ".join(methods(run()))


def test_a_simulated_device_is_told_before_anything_else(run):
    records = [
        dataclasses.replace(record, warnings=("simulated: it only pretends",))
        for record in on_gpu(run("SAME", work=CUDA), "Simulated GPU")
    ]
    hardware, kind, *_ = methods(records)
    assert hardware.startswith("The device is simulated: it only pretends to work")
    assert kind.startswith("Simulated:")


def test_one_pair_has_no_verdict_and_says_so(run):
    records = run("SLOWER", tier="quick", pairs=1)
    quick = [dataclasses.replace(records[1], comparison=Comparison("dat_tiny", 1.1))]
    everything = " ".join(methods(records[:1] + quick))
    assert "There is no verdict: one process pair was run" in everything
    assert "1 process pair, with" in everything
    assert "is looked at" not in everything
    two = dataclasses.replace(run("SLOWER", pairs=2)[1], comparison=Comparison("dat_tiny", 1.1))
    assert "fewer than 3 process pairs are too few" in " ".join(methods([two]))


def test_a_verdict_beside_none_keeps_their_names_apart(run):
    records = run("SLOWER", "SAME", budget_s=30.0)
    records[2] = dataclasses.replace(records[2], comparison=Comparison("dat_tiny", 1.1))
    everything = " ".join(methods(records))
    assert "There is no verdict of pvt_small:" in everything
    assert "or where the budget ended" in everything
    assert "budget of 30 s" in everything


def test_a_training_step_is_told_with_its_optimizer(run):
    work = Workload("cpu", (3, 224, 224), mode="train", optimizer="sgd", threads=2)
    everything = " ".join(methods(run(work=work)))
    assert "One training step of dat_tiny was timed" in everything
    assert "SGD with momentum 0.9; the learning rate is 1e-07" in everything
    scaled = dataclasses.replace(CUDA, mode="train", optimizer="adamw")
    assert "AdamW with gradient scaling" in " ".join(methods(on_gpu(run(work=scaled))))


def test_machines_and_kinds_have_paragraphs_and_shared_facts_stand_once(run):
    here = run("SLOWER")
    eight = [
        dataclasses.replace(r, workload=dataclasses.replace(r.workload, batch_size=8)) for r in here
    ]
    there = on_gpu(run("SAME", work=CUDA))
    found = methods([*here, *there, *eight])
    assert len(found) == 2 + 2 + 3  # machines, kinds, and what is shared
    assert sum("with batch sizes 1 and 8" in text for text in found) == 1
    assert found[0].startswith("On Test CPU, 2 threads: ")
    everything = " ".join(found)
    assert everything.count("p90 from 29") == 1
    assert "2 s on a GPU" in everything
    assert "No ratio was formed between machines or runs." in everything
    assert "on a CPU the largest sum of what the allocator's events tell and on a GPU" in everything


def test_every_command_is_told(run):
    found = methods([*run(command="datbench compare --models x"), *run(command="datbench y")])
    assert ["repeated by `" in text for text in found] == [False, True, True, False, False]


def test_what_is_not_known_is_said(run, make_record):
    old = run("SLOWER", tier="", min_effect=None, command="")
    everything = " ".join(methods(old))
    assert "Whether weights were loaded is not recorded" in everything
    assert "how many were planned is not known" in everything
    assert "within a margin that is not recorded" in everything
    bare = dataclasses.replace(make_record("lost", error="died"), measurements=(), environment=None)
    everything = " ".join(methods([bare]))
    assert "Hardware and software of lost are not known" in everything
    assert "Nothing was timed. lost failed." in everything
    elsewhere = dataclasses.replace(old[0].environment, datbench_version="0.0.1")
    told = methods([dataclasses.replace(old[0], environment=elsewhere)])[0]
    assert "datbench 0.0.1" in told
    assert "What is said of the protocol is that of datbench" in told
    assert methods([]) == []


def test_doubts_faults_and_runs_that_were_cut_are_named(run, three_records):
    everything = " ".join(methods(three_records))
    assert "yolov8n+dat failed. Flagged are: noisy (swin_tiny)." in everything
    cut = methods(run(finished=False))[1]
    assert "Measuring dat_tiny ended before all was measured" in cut


def test_a_calibration_is_told_once(run):
    found = methods(run("SAME", calibration=CALIBRATION))
    assert found[-1] == (
        "On 2026-11-25 the machine was calibrated with copies of pvt_v2_b0 (12.3 ms): their ratio "
        "scattered by 1.2 % over 20 process pairs, from which a difference of 3.1 % (tier default) "
        "and 1.8 % (tier rigorous) is found 19 times of 20, and they were called different in 1 "
        "of 8 comparisons."
    )
    assert sum("calibrated" in text for text in found) == 1


def test_many_models_and_sizes_are_counted_not_listed(make_record):
    records = [
        make_record(f"m{i}", samples=60 + i, pairs=5, work=Workload("cpu", (3, 32 + i, 32 + i)))
        for i in range(50)
    ]
    kind = methods(records)[1]
    assert "m7 and 42 more was timed" in kind
    assert "and others" in kind
    assert "60 to 109 timed iterations" in kind
    assert "m8" not in kind


def test_a_photograph_of_the_user_is_told_by_its_name_alone(run):
    work = Workload("cpu", (3, 224, 224), image="/home/somebody/cat.png")
    everything = " ".join(methods(run(work=work)))
    assert "the image cat.png" in everything
    assert "/home" not in everything


def test_sentences_are_whole(run, three_records):
    for records in (run("SLOWER", "SAME"), three_records, on_gpu(run(work=CUDA))):
        for text in methods([dataclasses.replace(r, calibration=CALIBRATION) for r in records]):
            assert text[0].isupper()
            assert text.endswith(".")
            pairs = {text[i : i + 2] for i in range(len(text))}
            assert not pairs & {"  ", " .", " ,", "..", "( ", "()"}
            assert "\n" not in text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (listed([]), ""), (listed(["a"]), "a"), (listed(["a", "b", "c"]), "a, b and c"),
        (counted(1, "core"), "1 core"), (counted(2, "core"), "2 cores"),
        (ranged([5, 8], "pair"), "5 to 8 pairs"), (ranged([1, 1], "pair"), "1 pair"),
    ],
)  # fmt: skip
def test_words_are_joined_as_sentences_do(found, expected):
    assert found == expected


def test_methods_need_no_torch():
    code = "import sys, datbench.reports.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
