"""A base model for jobs whose tests are about the processes around it: a corner of MiniLM, with all of its tokenizer.

Of the whole one each checkpoint is 270 MB, which are hashed when they are written and when they are read.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from demo import assets
from safetensors.numpy import load_file, save_file

_WEIGHTS = "model.safetensors"
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@cache
def small_encoder() -> Path:
    """Its folder, made once and gone with this process. Without torch, which takes seconds to import."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-encoder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    whole = assets.minilm()
    shutil.copytree(whole, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_WEIGHTS))
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | _SIZES))
    smaller = {config[name]: _SIZES[name] for name in ("hidden_size", "intermediate_size")}
    kept = {
        name: tensor[tuple(slice(smaller.get(size, size)) for size in tensor.shape)].copy()
        for name, tensor in load_file(whole / _WEIGHTS).items()
        if ".layer." not in name or int(name.partition(".layer.")[2].partition(".")[0]) < _SIZES["num_hidden_layers"]
    }
    save_file(kept, folder / _WEIGHTS, metadata={"format": "pt"})
    return folder
