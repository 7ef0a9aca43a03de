"""What needs an engine that reads matrices in fewer bytes."""

from fastlstm import _engine

collect_ignore = (
    []
    if "enumeration stored" in _engine.vocabulary()
    else ["test_engine_in_fewer_bytes.py", "test_quantize.py", "test_quantised_commands.py"]
)
