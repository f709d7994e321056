"""`python -m mllm_align.cli`."""

import sys

from mllm_align.cli import main

if __name__ == "__main__":
    sys.exit(main())
