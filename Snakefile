# make table1 and its like: the Snakefile of the package, with this checkout's modules. Its head says how to use it.
import os, sys

sys.path.insert(0, str(workflow.basedir))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(workflow.basedir), os.environ.get("PYTHONPATH")]))

include: "semeda/study/Snakefile"
