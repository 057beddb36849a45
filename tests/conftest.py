"""Modules of assertions that several folders share tell as much as a test does when they fail."""

import pytest

pytest.register_assert_rewrite("conformance", "histories")
