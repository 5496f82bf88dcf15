"""Data: from a file to what a step computes. `formats` reads, `check` reports, `tokens` renders, `sampler` orders."""
