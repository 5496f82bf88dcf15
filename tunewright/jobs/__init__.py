"""The queue, the workers, where they run."""
