"""What REAPI asks of a cache whatever the transport: rules that gRPC and HTTP share.

Rule: knows the store and REAPI's messages, nothing of calls, requests or statuses.
"""
