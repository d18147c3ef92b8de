"""RPC engines: how calls reach the servicers.  Knows nothing of blobs."""
