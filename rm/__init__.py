"""What train_rm.py, score.py and audit.py share."""

import logging

# On a CPU, bitsandbytes advises at every import to install a package that only speeds 4-bit layers up.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
