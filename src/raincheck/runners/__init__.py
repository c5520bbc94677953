"""Runners arrange that accepted jobs run."""
