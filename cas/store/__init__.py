"""The store: blobs and action results, kept so that nothing acknowledged is lost.

Rule: knows digests, the index and files; knows no protocol.  Errors are those of
`cas.errors`.
"""
