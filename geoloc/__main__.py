"""`python -m geoloc` is the command `geoloc`."""

from geoloc.cli import main

if __name__ == "__main__":
    main()
