"""Models: load, tune, generate. Weights and adapters stay in transformers' and peft's own formats."""
