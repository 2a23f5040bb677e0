"""vLLM as the server: what it cannot run is refused first, the rest is made ready for it.

``launch`` starts vLLM's own OpenAI-compatible server; ``plugin`` is what vLLM loads in each of its
processes; ``model`` is the only module that imports vLLM, and only vLLM imports it.
"""
