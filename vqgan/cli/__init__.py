"""Command lines: options of every tool, help, one-line errors, exit codes."""
