"""`python -m steersman …` and `torchrun -m steersman …`."""

from steersman.cli import main

main()
