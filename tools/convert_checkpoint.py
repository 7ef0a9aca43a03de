"""The converter, from a checkout: ``fastlstm convert`` under a name that tools/ lists.

python tools/convert_checkpoint.py checkpoint.pt model.safetensors
"""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    runpy.run_module("fastlstm", run_name="__main__")
