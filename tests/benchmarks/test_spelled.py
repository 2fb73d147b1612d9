"""A result's command says all that was asked for, and nothing that was not."""

from benchmarks.spelled import spelled


def test_a_command_has_the_options_that_say_something() -> None:
    options = {"data": "DIR", "lr": 0.01, "width": None, "seams": 0.0, "folds": 0, "no_ratios": True, "qat": False}
    assert (
        spelled("benchmarks.folds", options)
        == "python -m benchmarks.folds --data DIR --lr 0.01 --seams 0.0 --folds 0 --no-ratios"
    )
