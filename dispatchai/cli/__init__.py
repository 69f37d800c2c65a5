"""The command `dispatchai`: one module for each subcommand, and `main`, which declares them."""
