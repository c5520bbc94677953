"""Dialects spell jobs on the wire."""
