"""`highwall predict --sensors`: readings from the command line or a table, matched, counted and never guessed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import highwall
from targets.runtime import artifact
from targets.runtime.artifact import InputSpec
from targets.runtime.errors import HighwallError
from targets.runtime.predict import check_sensors, sensor_names

NAMES = ["tilt", "rain"]


@pytest.fixture
def parts(make_parts):
    return make_parts("classify", InputSpec(3, 5, 3, "uint8", sensors=2))


@pytest.fixture
def file(parts, tmp_path):
    """Its probability is the pixels' share of 255 times the mean of the two readings."""
    named = replace(parts.manifest, provenance={"sensors": {"names": NAMES}})
    artifact.write(tmp_path / "two.highwall", named, parts.model, parts.golden, parts.receipt)
    return tmp_path / "two.highwall"


@pytest.fixture
def images(tmp_path):
    for name, value in (("a.png", 255), ("b.png", 51)):
        Image.fromarray(np.full((3, 5, 3), value, np.uint8)).save(tmp_path / name)
    return tmp_path / "a.png", tmp_path / "b.png"


def answers(capsys, file, images, *words):
    assert highwall.main(["predict", str(file), *map(str, images), *words, "--json"]) == 0
    return [round(one["probability"], 5) for one in json.loads(capsys.readouterr().out)]


def complaint(capsys, file, images, *words):
    assert highwall.main(["predict", str(file), *map(str, images), *words]) == 1
    out, said = capsys.readouterr()
    assert out == ""
    assert said.count("\n") == 1
    return said


def table(tmp_path, *rows):
    (tmp_path / "now.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(tmp_path / "now.csv")


def test_readings_given_as_numbers_go_with_every_image(file, images, capsys):
    assert answers(capsys, file, images, "--sensors", "0.5,0.3") == [0.4, 0.08]
    assert answers(capsys, file, images, "--sensors=-0.2, 1") == [0.4, 0.08]


def test_one_row_goes_with_every_image_and_named_rows_each_with_its_own(file, images, tmp_path, capsys):
    assert answers(capsys, file, images, "--sensors", table(tmp_path, "tilt,rain", "0.5,0.3")) == [0.4, 0.08]
    rows = ("tilt,name,rain", "1,b.png,0", f"0.2,{tmp_path / 'a.png'},0.4", "9,other.png,9")
    assert answers(capsys, file, images, "--sensors", table(tmp_path, *rows)) == [0.3, 0.1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "takes 2 sensor features (tilt, rain) beside the image"),
        (("--sensors", "1"), "1 were given"),
        (("--sensors", "1,2,3"), "3 were given"),
        (("--sensors", ""), "are not numbers"),
        (("--sensors", "1,wet"), "'1,wet' are not numbers"),
        (("--sensors", "1,nan"), "nan is no reading"),
        (("--sensors", "1e39,0"), "1e+39 is no reading"),
        (("--sensors", "gone.csv"), "cannot read gone.csv"),
    ],
)
def test_readings_that_do_not_fit_are_one_line(file, images, capsys, words, says):
    assert says in complaint(capsys, file, images, *words)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (("tilt,rain",), "a line of names"),
        (("",), "a line of names"),
        (("tilt,rain", "1"), "as many cells"),
        (("tilt,rain", "1,2", "3,4"), "no column 'name'"),
        (("rain,tilt", "1,2"), "has rain, tilt; the model takes tilt, rain"),
        (("tilt", "1"), "has tilt; the model takes tilt, rain"),
        (("name,tilt,rain", "a.png,1,2"), "no row whose name is b.png"),
        (("name,tilt,rain", "a.png,1,2", "a.png,3,4"), "of one name"),
        (("name,tilt,rain", "a.png,1,2", ",3,4"), "without a name"),
        (("name,tilt,rain", "a.png,1,2", "b.png,3,wet"), "the row of b.png: '3,wet' are not numbers"),
        (("name,tilt,rain", "a.png,1,2", "b.png,3,inf"), "inf is no reading"),
        (("tilt,rain", '"1,2'), "cannot read"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(file, images, tmp_path, capsys, rows, says):
    assert says in complaint(capsys, file, images, "--sensors", table(tmp_path, *rows))


def test_a_model_without_sensors_refuses_readings(classifier, tmp_path, capsys):
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((7, 5, 3), np.uint8)).save(image)
    said = complaint(capsys, classifier.write(tmp_path / "one.highwall"), [image], "--sensors", "1,2")
    assert "takes no sensor features, 2 were given" in said


@pytest.mark.parametrize(
    "provenance", [{}, {"sensors": None}, {"sensors": {}}, {"sensors": {"names": "ab"}}, {"sensors": {"names": ["a"]}}]
)
def test_names_that_the_workbench_did_not_give_are_not_made_up(parts, provenance):
    manifest = replace(parts.manifest, provenance=provenance)
    assert sensor_names(manifest) == ()
    assert check_sensors([1, 2], manifest).tolist() == [1, 2]
    with pytest.raises(HighwallError, match="takes 2 sensor features beside"):
        check_sensors(None, manifest)
