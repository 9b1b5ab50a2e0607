"""Published figures: what agrees, what does not, and what is said of it."""

from __future__ import annotations

import csv
import io
import json

import pytest

from datbench import verify as module
from datbench.errors import UserError
from datbench.verify import Check, Claim, claims_of_file, claims_of_the_zoo, sample
from zoo import list_models
from zoo.spec import MODELS


@pytest.fixture
def call(datbench):
    return lambda folder, *arguments: datbench(folder, "verify", *arguments)


# Of timm's published benchmark files; families that attend each in their own way.
PUBLISHED = """\
model,img_size,gmacs
beit_base_patch16_224,224,17.58
botnet26t_256,256,3.32
coat_tiny,224,4.35
crossvit_tiny_240,240,1.57
halonet26t,256,3.19
lambda_resnet26t,256,3.02
levit_192,224,0.66
mobilevitv2_050,256,0.48
resnet18,288,3.01
volo_d1_224,224,6.94
xcit_tiny_12_p16_224,224,1.24
"""


def test_every_model_of_the_zoo_has_its_claim():
    claims = claims_of_the_zoo()
    assert [claim.model for claim in claims] == [n for n in list_models() if n in MODELS]
    tiny = next(claim for claim in claims if claim.model == "dat_tiny")
    assert (tiny.img_size, tiny.macs, tiny.fused) == (224, 4.6e9, False)
    assert tiny.rounding == pytest.approx(0.05e9)
    assert next(claim for claim in claims if claim.model == "yolov8n").fused
    with pytest.raises(UserError, match="no model of the zoo matches 'nothing'"):
        claims_of_the_zoo("nothing")


@pytest.mark.parametrize(
    ("macs", "published", "rounding", "agrees", "note"),
    [
        (1_009, 1_000, 0, True, ""),
        (1_011, 1_000, 0, False, "off by more than 1%"),
        (989, 1_000, 0, False, "off by more than 1%"),
        (1_040, 1_000, 50, True, "as published, rounded"),
        (1_060, 1_000, 50, False, "off by more than 1%"),
        (1_060, None, 0, True, "no published figure"),
        (None, 1_000, 50, False, "not_counted: why"),
    ],
)
def test_a_claim_holds_within_one_percent_or_its_rounding(macs, published, rounding, agrees, note):
    claim = Claim("a", 224, published, rounding)
    check = Check(claim, macs, ("not_counted: why",) if macs is None else ())
    assert (check.agrees, check.note) == (agrees, note)
    if macs and published:
        assert check.row()["difference"] == pytest.approx(macs / published - 1)


def test_an_error_is_a_row_that_does_not_agree():
    check = Check(Claim("a", 224, 1e9), error="no model named 'a'")
    assert not check.agrees
    assert list(check.row().values()) == ["a", 224, None, 1e9, None, "no model named 'a'"]


def test_a_file_is_rounded_as_its_finest_figure(tmp_path):
    file = tmp_path / "a.csv"
    text = "model,img_size,gmacs,more\r\n a ,224,4.5,x\r\nb,224,0.25,y\r\n"
    file.write_text(text, encoding="utf-8-sig")
    claims = claims_of_file(file)
    assert [(c.model, c.img_size, c.macs) for c in claims] == [("a", 224, 4.5e9), ("b", 224, 2.5e8)]
    assert [claim.rounding for claim in claims] == [pytest.approx(0.005e9)] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column model, img_size, gmacs; expected model, img_size, gmacs"),
        ("model,gmacs\na,1\n", "has no column img_size"),
        ("model,img_size,gmacs\n", "holds no rows below its header"),
        ("model,img_size,gmacs\n\na,224,4.5\nb,224,many\n", "line 4: 'b', '224', 'many'; expected"),
        ("model,img_size,gmacs\na,0,4.5\n", "line 2: 'a', '0', '4.5'; expected a name, a side"),
        ("model,img_size,gmacs\na,224.5,4.5\n", "line 2"),
        ("model,img_size,gmacs\na,inf,4.5\n", "line 2"),
        ("model,img_size,gmacs\na,224,nan\n", "line 2"),
        ("model,img_size,gmacs\na,224,1e300\n", "line 2"),
        ("model,img_size,gmacs\na,224\n", "line 2"),
        ('model,img_size,gmacs\n"a\nb",224,x\n', r"line 3: 'a\\nb'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, text, message):
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        claims_of_file(file)
    with pytest.raises(UserError, match="cannot be read"):
        claims_of_file(tmp_path / "missing.csv")


def test_a_sample_takes_every_family_before_any_twice(monkeypatch):
    monkeypatch.setattr(module, "_family", lambda model: model[0])
    claims = [Claim(f"{family}{i}", 224, 1e9) for family in "abcd" for i in range(9)]
    drawn = sample(claims, 6, seed=1)
    assert {claim.model[0] for claim in drawn[:4]} == set("abcd")
    assert len({claim.model for claim in drawn}) == 6
    assert sample(claims[::-1], 6, seed=1) == drawn
    assert sample(claims, 6, seed=2) != drawn
    assert len(sample(claims, 99, seed=1)) == 36


def test_families_are_files_of_timm_and_those_of_the_zoo():
    assert module._family("vit_tiny_patch16_224") == "vision_transformer"
    assert module._family("resnet18.a1_in1k") == "resnet"
    assert module._family("dat_tiny") == "dat"


def test_published_figures_of_the_zoo_hold(call, tmp_path):
    done = call(tmp_path, "*v2_b[01]", "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == ["model", "img_size", "macs", "published_macs", "difference", "note"]
    assert [(row["model"], row["note"]) for row in rows] == [
        ("pvt_v2_b0", "as published, rounded"),
        ("pvt_v2_b1", ""),
    ]
    assert float(rows[1]["difference"]) == pytest.approx(0.0096538, abs=1e-6)
    fused = call(tmp_path, "yolov8n", "--format", "json")
    (row,) = json.loads(fused.stdout)
    assert row["macs"] == pytest.approx(4.3732e9, rel=1e-4)
    assert row["note"] == "batch norms folded into the convolutions, as published"


def test_figures_of_timm_hold_and_a_wrong_one_gives_status_1(call, tmp_path):
    (tmp_path / "right.csv").write_text(PUBLISHED)
    done = call(tmp_path, "--against", "right.csv")
    assert done.returncode == 0, done.stdout
    assert "11 of 11 agree with what is published" in done.stdout
    wrong = PUBLISHED.replace("resnet18,288,3.01", "resnet18,288,3.11") + "resnet19,224,1.0\n"
    (tmp_path / "wrong.csv").write_text(wrong)
    done = call(tmp_path, "resnet*", "--against", "wrong.csv", "--format", "csv")
    assert done.returncode == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert rows[0]["note"] == "off by more than 1%"
    assert rows[1]["macs"] == ""
    assert "no model named 'resnet19' in timm; did you mean" in rows[1]["note"]


def test_names_are_shown_as_they_are(call, tmp_path):
    (tmp_path / "a.csv").write_text("model,img_size,gmacs\n[red]x[/foo],224,1.8\n")
    done = call(tmp_path, "--against", "a.csv")
    assert done.returncode == 1
    assert "[red]x[/foo]" in done.stdout
    assert "Traceback" not in done.stderr


def test_nothing_to_verify_is_a_mistake(call, tmp_path):
    (tmp_path / "a.csv").write_text(PUBLISHED)
    done = call(tmp_path, "nothing*", "--against", "a.csv")
    assert (done.returncode, done.stderr) == (2, "Error: no model in a.csv matches 'nothing*'\n")
