"python -m semeda.study: the command semeda-study."
import sys

from semeda.study.run import main

sys.exit(main())
