"""HTTP: the simple caches of Bazel, ccache, sccache, Gradle, Turborepo, Nx and moon.

Rule: a request is read (`paths`, `headers`, `bodies`), one of the protocols' modules turns
it into calls of the store, and an answer goes out (`answers`, `sending`); `service` is where
they meet.  Nothing here knows gRPC, and what a blob or an action result must be is said
below, in `cas.store` and `cas.reapi`.
"""
