"""``python -m dwsep.cli`` is ``dwsep``."""

from dwsep.cli.main import main

if __name__ == "__main__":
    main()
