"""What the server counts of itself, and how that is read.

Rule: imports nothing of ours, and may be imported by all.  `families` is the table of what is
counted, `board` the memory that all processes of a server count in, `instruments` what they
count with; `exposition` reads it all, for people and for Prometheus, and `readiness` says
whether the server can write.
"""
