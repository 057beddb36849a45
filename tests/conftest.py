"""What all tests have in common: shared assertions that tell as much as a test does when they fail, and one seed."""

import os
import random

import pytest

pytest.register_assert_rewrite("conformance", "histories")


def pytest_configure(config: pytest.Config) -> None:
    # Where several processes run the tests, all have to collect the same ones: a seed is in their names.
    os.environ.setdefault("FAREGATE_CHAOS_SEED", str(random.SystemRandom().randrange(10**6)))
