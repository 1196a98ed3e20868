"""Entry point of ``python -m crosspair`` and ``torchrun -m crosspair``."""

from crosspair.cli import main

if __name__ == "__main__":
    main()
