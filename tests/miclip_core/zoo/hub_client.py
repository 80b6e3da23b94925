"""A process that looks up models on whatever hub its environment names; prints an answer to each step as JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from typing import Any

import torch

from miclip_core.zoo import openclip
from miclip_core.zoo.load import inspect_model, load_model
from schemas.errors import MiclipError
from schemas.refs import ModelRef


def digest(text: str) -> str:
    return inspect_model(ModelRef.parse(text)).weights_sha256


def answer(step: dict[str, Any]) -> dict[str, Any]:
    if step.get("offline"):
        import huggingface_hub.constants
        from huggingface_hub.utils import close_session

        close_session()
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    if "token" in step:
        os.environ["HF_TOKEN"] = step["token"]
    if "processes" in step:
        with multiprocessing.get_context("fork").Pool(step["processes"]) as pool:
            return {"digests": pool.map(digest, [step["model"]] * step["processes"], chunksize=1)}
    try:
        if "tokeniser" in step:
            return {"ids": openclip.tokeniser(step["tokeniser"])(["a cat"]).tolist()}
        facts = inspect_model(ModelRef.parse(step["model"]))
        found = {"family": facts.family, "revision": facts.revision, "weights_sha256": facts.weights_sha256}
        if step.get("load"):
            model = load_model(ModelRef.parse(step["model"]))
            found["finite"] = bool(model.embed_images(torch.zeros(1, 3, *facts.input_hw)).isfinite().all())
        return found
    except MiclipError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    print(json.dumps({name: answer(step) for name, step in json.loads(sys.argv[1]).items()}))
