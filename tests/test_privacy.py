"""What leaves a machine names neither its people nor itself."""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import json
from pathlib import Path

import pytest

from datbench.reports import Content
from datbench.reports.machines import by_machine
from datbench.reports.privacy import without_host

HASH = "host-" + hashlib.sha256(b"bench-1").hexdigest()[:8]


@pytest.fixture
def _alice(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/data/people/alice"))
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")


def hidden(make_record, text: str) -> str:
    """What becomes of a warning."""
    return without_host(Content([make_record(warnings=[text])])).records[0].warnings[0]


@pytest.mark.usefixtures("_alice")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/bob/nets/a.py:fn", "~/nets/a.py:fn"),
        ("--results=/home/bob", "--results=~"),
        ("PATH=/usr/bin:/home/bob/bin", "PATH=/usr/bin:~/bin"),
        ("file:///home/bob/x", "file://~/x"),
        ("/Users/Bob.B/x and '/home/eve'", "~/x and '~'"),
        ("/cluster/home/bob/x", "~/x"),
        (r"C:\Users\Bob B\x.py", r"~\x.py"),
        (r"'C:\\Users\\bob'", "'~'"),
        ("/root/x /root", "~/x ~"),
        ("/data/people/alice/x", "~/x"),
        ("/scratch/alice/x", "/scratch/user/x"),
        ("/scratch/alice", "/scratch/user"),
        (r"D:\alice\x", r"D:\user\x"),
        ("/home/bob/x /scratch/bob/y", "~/x /scratch/user/y"),
        ("bench-1", HASH),
        ("ssh BENCH-1: no", f"ssh {HASH}: no"),
        ("on bench-1.example.org.", f"on {HASH}."),
        ("/mnt/bench-1/x", f"/mnt/{HASH}/x"),
    ],
)
def test_names_of_people_and_hosts_are_replaced(make_record, text, expected):
    assert hidden(make_record, text) == expected


@pytest.mark.parametrize("user", ["root", "dat", "tiny", "or"])
@pytest.mark.parametrize(
    "text",
    [
        "dat_tiny: noisy: the root of the mean or so", "block:dat and/or yolov8n+dat@neck",
        "https://arxiv.org/abs/2201.00520", "my-bench-1 bench-10 bench-1x",
        "roots /rooted /rootless/x",
        "zoo/blocks/dat.py", "the home/office ratio", "MiB/s", "x /dat.py", "tiny, dat root",
    ],
)  # fmt: skip
def test_ordinary_words_stay(make_record, monkeypatch, user, text):
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    assert hidden(make_record, text) == text


@pytest.mark.usefixtures("_alice")
def test_every_text_of_a_record_and_its_samples_is_searched(make_record, environment):
    place = "/home/alice/bench-1/x"
    where = dataclasses.replace(
        environment, platform=place, settings={"a": {"b": [place]}}, packages={"torch": place}
    )
    record = dataclasses.replace(
        make_record("/home/alice/net.py:fn", error=place, warnings=[f"noisy: {place}"]),
        environment=where, command=f"datbench compare {place}", source=place,
        workload=dataclasses.replace(make_record().workload, image=place),
    )  # fmt: skip
    slot = {"model": record.model, "disturbed": place, "latency_ms": [1.5], "redone": False}
    content = without_host(Content([record], {(record.run_id, record.model): [slot]}, ["model"]))
    text = json.dumps([content.records[0].to_json(), *content.samples.values()])
    for name in ("alice", "bench-1", "/home"):
        assert name not in text
    assert text.count(HASH) == 10
    assert content.columns == ["model"]
    [(key, slots)] = content.samples.items()
    assert key == (record.run_id, content.records[0].model) == (record.run_id, "~/net.py:fn")
    assert slots[0]["latency_ms"] == [1.5]
    assert without_host(content) == content


def test_machines_stay_apart_and_records_else_the_same(make_record, environment):
    record = make_record()
    hosts = [dataclasses.replace(environment, host=host) for host in ("a", "b", "dat", "")]
    records = [dataclasses.replace(record, environment=e, run_id=e.host) for e in hosts]
    found = without_host(Content(records)).records
    assert len({r.machine for r in found}) == 4
    assert found[3].environment.host == ""
    assert len(by_machine(found)) == 4
    for before, after in zip(records, found, strict=True):
        assert (after.model, after.family, after.measurements) == (
            before.model, before.family, before.measurements,
        )  # fmt: skip
