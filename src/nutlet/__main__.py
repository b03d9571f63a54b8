"""``python -m nutlet`` is the command ``nutlet``."""

from nutlet.cli import main

if __name__ == "__main__":
    main()
