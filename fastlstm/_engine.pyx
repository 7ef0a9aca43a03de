# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True
"""The only border between Python and the kernels, one module in the parts that it includes.

A `Network` is a packed model as the C structs of ``core/fastlstm.h``; a `Stream` is a network
plus its state, a `Pool` a network and the `Slots` of many. Nothing here imports a Python module of
ours; ``fastlstm.model``, ``fastlstm.stream`` and ``fastlstm.pool`` give these classes their public
faces.
"""

import numpy as np
cimport cython
cimport numpy as cnp

from fastlstm.core cimport fl_watch_forks

cnp.import_array()
if fl_watch_forks():
    raise MemoryError("forks of this process cannot be noticed")

include "engine/memory.pxi"
include "engine/numbers.pxi"
include "engine/signals.pxi"
include "engine/blas.pxi"
include "engine/program.pxi"
include "engine/arrays.pxi"
include "engine/ports.pxi"
include "engine/places.pxi"
include "engine/scratch.pxi"
include "engine/network.pxi"
include "engine/parts.pxi"
include "engine/whole.pxi"
include "engine/prepare.pxi"
include "engine/stream.pxi"
include "engine/ledger.pxi"
include "engine/slots.pxi"
include "engine/pool.pxi"
include "engine/table.pxi"
