"""Train a reward model and score with it. Nothing in here imports `auditing`."""

import logging

# bitsandbytes says at each start on a CPU that a faster kernel for 4-bit layers is missing, also
# where no layer has 4 bits.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
