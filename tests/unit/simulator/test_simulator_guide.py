"""The guide says everything that the simulator obeys, and fits a terminal."""

from faregate.simulator.errors import ERROR_NAMES
from faregate.simulator.guide import GUIDE
from faregate.simulator.markers import TABLE
from faregate.simulator.models import MODELS


def test_every_model_is_in_the_guide() -> None:
    assert [model.id for model in MODELS if model.id not in GUIDE] == []


def test_every_marker_and_error_is_in_the_guide() -> None:
    examples = [f"[[{marker.example}]]" for _, group in TABLE for marker in group]
    assert [example for example in examples if example not in GUIDE] == []
    assert [name for name in ERROR_NAMES if name not in GUIDE] == []


def test_every_route_is_in_the_guide() -> None:
    for route in (
        "/chat/completions",
        "/models",
        "/generation",
        "/key",
        "/activity",
        "bills",
        "stats",
        "last",
        "reset",
    ):
        assert route in GUIDE


def test_no_line_is_too_wide() -> None:
    assert max(len(line) for line in GUIDE.splitlines()) <= 120
