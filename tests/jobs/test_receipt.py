import json

import pytest

from geoloc.errors import OutputMismatchError
from geoloc.jobs.receipt import check_receipt, receipt_path, write_receipt

IDENTITY = {"model": "3fa9", "sizes": (1, 2)}


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("id\na\n")
    write_receipt(path, IDENTITY)
    return path


def test_the_file_and_its_job_are_recognised(output):
    check_receipt(output, IDENTITY)
    assert receipt_path(output) == output.parent / ".out.csv.receipt"
    assert json.loads(receipt_path(output).read_text())["num_bytes"] == 5


def test_another_job_is_refused_with_the_values_that_differ(output):
    with pytest.raises(
        OutputMismatchError,
        match=r"another job made .*out.csv: model is 3fa9 there and 77 here; .*--overwrite",
    ):
        check_receipt(output, {**IDENTITY, "model": 77})


@pytest.mark.parametrize("text", ["id\nb\n", "id\na\nc\n"])
def test_a_changed_file_is_refused(output, text):
    output.write_text(text)
    with pytest.raises(OutputMismatchError, match=r"out.csv was changed after the job had finished it: "):
        check_receipt(output, IDENTITY)


@pytest.mark.parametrize("receipt", [None, "", "[]", "{}", '{"identity": {}}'])
def test_without_a_receipt_nobody_knows(output, receipt):
    receipt_path(output).unlink()
    if receipt is not None:
        receipt_path(output).write_text(receipt)
    with pytest.raises(
        OutputMismatchError, match=r"out.csv exists, and no receipt .* says which job made it"
    ):
        check_receipt(output, IDENTITY)
