"""Who calls, and what he may do: the same for gRPC and HTTP.

Rule: headers and certificates to a principal, a principal and an instance to a role.  Knows
nothing of stores, protocols or servers, and serves nothing; secrets stay in here and are in
no message, no log line and no repr.
"""
