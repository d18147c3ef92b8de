"""How a check ends when it does not pass. No logic here.

Prove mode depends on the difference between `NotServed` and the rest: a check that breaks before it
gets as far as the cache proves nothing about the cache.
"""


class CheckError(Exception):
    """The check could not be carried out, or the tool or the server misbehaved."""


class NotServed(CheckError):
    """Everything ran, but what should have come from the cache did not come from it whole."""


class Skipped(Exception):
    """The check does not apply to this server; the text is the reason that the user is shown."""


class NotInstalled(CheckError):
    """A tool that the check drives is not on this machine; the text says how to get it."""
