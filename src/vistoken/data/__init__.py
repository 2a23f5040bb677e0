"""Messages, batches and composed scenes."""
