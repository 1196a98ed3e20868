"""``python -m crosspair``, and what ``torchrun -m crosspair`` starts."""

from crosspair.cli import main

if __name__ == "__main__":
    main()
