"""A client for this server and for any that speaks the Remote Execution API or Bazel's HTTP
cache protocol.

Rule: usable without the server: nothing here imports a part of it (`lint-imports` checks).
`AsyncClient` and its synchronous face `Client` put and get blobs; `push_tree` and
`pull_tree` move directories; `saves` keeps and brings back what CI jobs want between runs.
What the wire said, and how it failed, is an exception of `cas.client.errors` or
`cas.errors`.
"""
