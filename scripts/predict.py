"""The command `jca-predict` of an installed package, in a clone: see `jca/__main__.py`."""

from jca.__main__ import main


if __name__ == "__main__":
    main()
