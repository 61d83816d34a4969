"""python -m speech_mtl: the command line."""

from speech_mtl.cli import main

if __name__ == "__main__":
    main()
