"""The front door: ``python run.py method=altlora task=glue``. ``python run.py --help`` explains."""

import sys

from lrx.launch import main

if __name__ == "__main__":
    sys.exit(main())
