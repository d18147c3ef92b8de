"""Processes: a supervisor that holds the directory and the address, and its workers.

Rule: this is where everything is put together and nothing is served.  The modules of roles
(`child.MODULES`) are the composition roots, and the only ones here that may import the RPC
engines or the store's index; whatever the supervisor imports stays light.
"""
