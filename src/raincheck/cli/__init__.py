"""The command line, `raincheck` (extra `cli`)."""
