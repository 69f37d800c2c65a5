"""`python -m dispatchai`: the command line."""

from dispatchai.cli.main import main

main()
