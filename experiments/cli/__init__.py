"""The command line: the only room that parses and prints."""
