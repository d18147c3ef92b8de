"""Drives build tools that nobody here wrote against a cache server, and says whether it served
them.

Rule of this package: a check passes only on the tool's own word, or on bytes compared, that the
cache served it; never because nothing went wrong. Standard library only, but for `probe`, which
speaks the server's protocol through the generated `cas.pb` modules.
"""
