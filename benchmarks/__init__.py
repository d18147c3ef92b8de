"""Benchmarks: our server beside its peers, in one run on one machine.

Rule: the first figure is the server's own CPU time for one operation, read from
/proc; throughput and latency also measure the load generator, so they come second.
Nothing here is imported by the server, and nothing here reaches into a running one:
peers and ours are driven through the same sockets by the same generator.
"""
