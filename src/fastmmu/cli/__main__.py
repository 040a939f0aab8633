from __future__ import annotations

import sys

from fastmmu.cli.main import main

sys.exit(main())
