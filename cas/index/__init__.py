"""The index: what the store knows of every blob, action result and upload.

Rule: records and transactions only.  Nothing here opens a blob's file, knows a
protocol, or decides what to keep.
"""
