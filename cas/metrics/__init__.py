"""What the server counts of itself, and how that is read.

Rule: imports nothing of ours, and may be imported by all.  `families` is the table of what is
counted, `board` the memory that all processes of a server count in, `instruments` what they
count with; `tools` counts who asks, from a sample, `recent` keeps what went wrong lately and
`history` samples of an hour and a day.  `exposition` reads it all for Prometheus, `overview` for
the page, and `readiness` says whether the server can write.
"""
