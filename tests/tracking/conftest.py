"""A small store and run folders, for the tests of this folder."""

from store_fixtures import hand, no_user_settings, root, uri  # noqa: F401  fixtures
