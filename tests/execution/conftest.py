"""Studies that take milliseconds, for the tests of this folder."""

from study_fixtures import lab, register  # noqa: F401  fixtures
