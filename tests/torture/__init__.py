"""Load, random kills, and an audit of every acknowledgement: ``python -m tests.torture``.

Rule: black box. A real ``cas serve`` and the stock gRPC client; what must be there at the end is
what a journal on the client's side says was acknowledged.
"""
