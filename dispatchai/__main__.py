"""`python -m dispatchai`: the command line."""

from dispatchai.cli import main

main()
