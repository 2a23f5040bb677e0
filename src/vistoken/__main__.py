"""`python -m vistoken` is the same program as `vistoken`."""

from vistoken.cli.main import main

if __name__ == "__main__":
    main()
