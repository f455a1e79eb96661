"""`python -m benchmarks.readme`."""

from .page import main

raise SystemExit(main())
