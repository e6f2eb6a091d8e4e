"""One compute thread: on tensors as small as here a second one costs more than it gives, most of all on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, and inherited by the tools that tests start
