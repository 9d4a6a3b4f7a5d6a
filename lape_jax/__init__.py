"""LaPE (Layer-adaptive Position Embedding, ICCV 2023) for Vision Transformers in JAX/Flax."""

import itertools
import sys
from importlib.util import find_spec

__version__ = "0.2.0"

# Every command imports these. They are of the extras `train` and `data`: models, port and fold do without.
_OF_COMMANDS = ("ml_collections", "optax", "orbax", "grain", "array_record", "PIL", "simplejpeg", "cv2", "pycocotools")

# `python -m lape_jax.NAME` imports this file first, so that here a line can be said in place of a traceback.
_is_command = any(a == "-m" and b.startswith("lape_jax.") for a, b in itertools.pairwise(sys.orig_argv))
_lacking = ", ".join(name for name in _OF_COMMANDS if find_spec(name) is None) if _is_command else ""
if _lacking:
    print(f"error: this command needs {_lacking}: pip install 'lape_jax[all]'", file=sys.stderr)
    sys.exit(2)
