"""`python -m peira.cli`."""

from peira.cli.main import main

if __name__ == "__main__":
    main()
