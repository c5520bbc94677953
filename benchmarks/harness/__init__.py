"""What the benchmarks have in common: processes, the load, environments, rounds and reports.

Only the standard library: the apps and their dependencies live in environments of their own.
"""
