"""`python -m gpucnn` is the command `gpucnn`."""

from gpucnn.cli import main

if __name__ == "__main__":
    main()
