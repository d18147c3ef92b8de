"""The tier behind the local store: an object store, or another server, of any number of nodes.

Rule: the local store is always the first tier and is right without this one.  Nothing here but
`leaving` is imported by a server unless `[upstream]` names something.  A loop on a thread of its
own (`loop.Loop`) asks; whoever wants something gets a `Pending`.
"""
