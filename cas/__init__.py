"""cas: a content-addressable blob store and remote build cache."""
