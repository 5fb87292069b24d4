"""`python launch.py` is `python -m mtl_jax` from a checkout; `--help` lists the modes and the flags."""

from mtl_jax.__main__ import main

if __name__ == "__main__":
    main()
