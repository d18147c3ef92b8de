"""The test suite; folders mirror cas/. What several of them share is imported as `tests.…`."""
