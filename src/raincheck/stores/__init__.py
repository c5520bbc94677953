"""Stores keep jobs and response bodies."""
