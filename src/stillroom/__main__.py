"""``python -m stillroom``: the command line."""

from stillroom.cli import main

if __name__ == "__main__":
    main()
