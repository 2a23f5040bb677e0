"""The command line: one module per verb; nothing heavy is imported before a verb runs."""
