"""Models: load, tune, generate. Weights and adapters stay in transformers' and peft's own formats."""

import logging

# On import bitsandbytes, which peft imports where it is installed, asks for a package of kernels that are fetched from the Hub. It works without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
