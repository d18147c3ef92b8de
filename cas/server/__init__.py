"""Processes: a supervisor that holds the directory and the address, and its workers.

Rule: this is where everything is put together and nothing is served.  `worker` is the
composition root and the only module here that may import the RPC engines or the store's
index; whatever the supervisor imports stays light.
"""
