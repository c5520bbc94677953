"""From a request to its 202."""
