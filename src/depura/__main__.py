"""`python -m depura`."""

from depura.cli import main

if __name__ == "__main__":
    main()
