"""The index: what the store knows of every blob and action result.

Rule: records, transactions and last-use times only.  Nothing here opens a blob's file, knows a
protocol, or decides what to keep.
"""
