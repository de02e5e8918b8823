"""One module per subcommand; at module level they import only typer and the standard library."""
