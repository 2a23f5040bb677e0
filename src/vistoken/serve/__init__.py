"""One process that answers over HTTP: an OpenAI-compatible application and its engine."""
