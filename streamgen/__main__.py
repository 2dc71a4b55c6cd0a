"""`python -m streamgen`, and what `accelerate launch -m streamgen` starts."""

from .cli.app import main

if __name__ == "__main__":
    main()
