"""The protocols' meaning: names, messages and services between an engine and a store."""
