"""Hostile calls of every RPC: made up (`cases`), sent (`drive`), and what must hold after them."""
