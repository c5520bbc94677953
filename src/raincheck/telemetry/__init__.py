"""What is told of jobs: the port, and its adapters."""
