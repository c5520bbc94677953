"""The jobs of this process: who runs, who waits, and what is recorded of them."""
