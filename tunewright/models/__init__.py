"""Models: load, tune, generate. Weights and adapters stay in transformers' and peft's own formats."""

import logging
import warnings


def _hush(logger: str, beginning: str) -> None:
    """Keep one message of another library's from the log, and no other."""
    logging.getLogger(logger).addFilter(lambda record: not str(record.msg).startswith(beginning))


# On import bitsandbytes, which peft imports where it is installed, asks for a package of kernels that are fetched from the Hub. It works without.
_hush("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community")
# In 8 bits it says with every call that it rounds through float16.
_hush("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast from")
# peft asks transformers in the old way whether layers are computed again.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
