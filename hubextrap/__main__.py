"""`python -m hubextrap` is the `hubextrap` command."""

from hubextrap.cli.main import main

if __name__ == "__main__":
    main()
