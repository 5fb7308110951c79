"""`python -m nanochat_platform.cli`: the console script where it is not on the path."""

from nanochat_platform.cli import main

if __name__ == "__main__":
    main()
