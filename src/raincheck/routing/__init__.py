"""Which request meets which policy."""
