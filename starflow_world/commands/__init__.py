"""One module or folder per verb of the command line."""
