"""`pytest benchmarks --benchmark-only`: one process, since several at once would time each other."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The project's own options spread tests over processes; here they must not."""
    config.option.numprocesses, config.option.dist, config.option.tx = 0, "no", []


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """A machine's name in its network is nobody's business."""
    machine_info.pop("node", None)


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[object], output_json: dict[str, list[dict[str, dict[str, object]]]]
) -> None:
    """Every single round would make the file a hundred times as long as what is read of it."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
