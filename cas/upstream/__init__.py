"""The tier behind the local store: an object store that any number of nodes share.

Rule: the local store is always the first tier and is right without this one.  Nothing here but
`leaving` is imported by a server unless `[upstream]` names a store.  A loop on a thread of its own
(`tier.Tier`) asks; whoever wants something gets a `Pending`.
"""
