"""Settings of the whole suite: property tests run the same examples every time, untimed."""

from hypothesis import settings

settings.register_profile("cas", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("cas")
