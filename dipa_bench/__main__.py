"""``python -m dipa_bench`` is ``dipa-bench``."""

from dipa_bench.cli.main import main

main()
