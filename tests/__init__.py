"""The tests, in the rooms of what they test (docs/testing.md); here lies what several rooms share."""

from tests import shape_checks as shape_checks  # jaxtyping imports the first word of `tests.shape_checks.check` alone
