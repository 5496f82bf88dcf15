"""Training: the loop is an iterator of events."""
