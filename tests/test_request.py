"""Plan files and requests: what they take, what they say of mistakes, and that they come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datbench.errors import UserError
from datbench.request import PLAN, Request, make_request, read_request

WHOLE = """
models = ["dat", "swin"]
baseline = "swin"
tier = "quick"
batch_size = [1, 8, 32]
img_size = 224
dtype = ["float32", "bfloat16"]
runtime = ["eager", "compile[mode=max-autotune]"]
executor = "slurm"
[slurm]
partition = "gpu"
gres = "gpu:1"
array_parallelism = 4
"""


def test_a_plan_file_says_what_the_command_line_says(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(WHOLE)
    request = read_request(file)
    assert request.models == ("dat", "swin")
    assert request.batch_size == (1, 8, 32)
    assert request.img_size == (224,)  # a single value stands for a list of one
    assert request.slurm == {"partition": "gpu", "gres": "gpu:1", "array_parallelism": 4}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "models is missing; add it, e.g. models = ['dat', 'swin']"),
        ("models = []", "models: "),
        ("models = ['dat']\nbatchsize = 4", "no option 'batchsize'; did you mean batch_size?"),
        ("models = ['dat']\nzzz = 4", "there is no option 'zzz'"),
        ("models = ['dat']\nbatch_size = 0", "batch_size.0: input should be greater than"),
        ("models = ['dat']\nbatch_size = 1.5", "batch_size.0: input should be a valid integer"),
        ("models = ['dat']\nbatch_size = true", "batch_size.0: input should be a valid integer"),
        ("models = ['dat']\ndtype = 'float64'", "got 'float64'"),
        ("models = ['dat']\ndtype = []", "dtype: "),
        ("models = ['dat']\nbudget = 'long'", "budget: input should be a valid number"),
        ("models = ['dat']\nbudget = inf", "budget: "),
        ("models = ['dat']\ntier = 'fast'", "'quick', 'default' or 'rigorous'"),
        ("models = ['dat']\nretries = -1", "retries: "),
        ("models = ['dat']\nslurm = 'gpu'", "slurm: input should be a valid dictionary"),
        ("models = ['dat'", "is no TOML"),
        ("batch_size = 0\ntier = 'x'", "; "),  # each mistake is told
    ],
)
def test_mistakes_in_a_plan_file_are_told_with_their_place(tmp_path, text, told):
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    with pytest.raises(UserError) as found:
        read_request(file)
    assert str(found.value).startswith(str(file))
    assert told in str(found.value)
    assert "\n" not in str(found.value)


def test_a_plan_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_request(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text"):
        read_request(tmp_path / "binary.toml")


COUNTS = st.lists(st.integers(1, 2**40), max_size=4)
WORDS = st.text(min_size=1, max_size=12)
REQUESTS = st.fixed_dictionaries(
    {"models": st.lists(WORDS, min_size=1, max_size=3)},
    optional={
        "command": st.sampled_from(["compare", "profile"]),
        "baseline": WORDS,
        "tier": st.sampled_from(["quick", "default", "rigorous"]),
        "budget": st.floats(0.001, 1e9),
        "batch_size": COUNTS.filter(bool),
        "img_size": COUNTS,
        "dtype": st.lists(st.sampled_from(["float32", "bfloat16"]), min_size=1, max_size=3),
        "image": WORDS,
        "amp": st.booleans(),
        "seed": st.integers(-(2**40), 2**40),
        "checkpoint": st.lists(WORDS, max_size=2),
        "slurm": st.dictionaries(WORDS, st.one_of(WORDS, st.integers(0, 99), st.booleans())),
    },
)


@given(REQUESTS)
def test_a_saved_request_comes_back_as_it_was(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    request = make_request(content)
    request.save(folder)
    assert read_request(folder / PLAN) == request


def test_a_saved_request_leaves_out_what_is_usual(tmp_path):
    make_request({"models": ["dat"], "batch_size": 1}).save(tmp_path)
    head, *rest = (tmp_path / PLAN).read_text().splitlines()
    assert head.startswith("# ")
    assert f"datbench run {tmp_path}" in head
    assert rest == ['models = "dat"']


def test_the_plan_file_of_the_docs_works(tmp_path):
    docs = Path(__file__).parents[1] / "docs" / "sweeps.md"
    text = docs.read_text(encoding="utf-8")
    (plan,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    (tmp_path / "sweep.toml").write_text(plan)
    assert read_request(tmp_path / "sweep.toml").executor == "slurm"
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    assert set(Request.model_fields) <= named


def test_requests_do_not_change():
    request = make_request({"models": ["dat"]})
    with pytest.raises(ValueError, match="frozen"):
        request.seed = 1
    assert isinstance(request, Request)
