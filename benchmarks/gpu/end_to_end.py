"""From text to trained SAE on a GPU: `penstock train` on models of GPT-2 small's and Gemma-2-2B's shapes.

    python benchmarks/gpu/end_to_end.py

Weights are random and the tokenizer is the embedded model's, so nothing is fetched; the work is the same as with the
real weights. Printed are tokens per second, and which share of the time the SAE's steps took.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.append(f"{__file__.rsplit('/', 2)[0]}/engine")
from common import print_table  # noqa: E402


def make_model(shape: str, folder: Path, device: str) -> None:
    """A randomly initialised model, its blocks after the site left out."""
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

    import penstock.language_models

    small = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config: Any = {
        "toy": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=4096, n_positions=128, **small),
        "gpt2": GPT2Config(n_layer=7, vocab_size=50257, **small),
        "gemma-2-2b": Gemma2Config(num_hidden_layers=13, **small),
    }[shape]
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    model.save_pretrained(folder)
    embedded = Path(penstock.language_models.__file__).parent / "embedded"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, folder / name)


def train(shape: str, site: str, d_sae: int, tokens: int, device: str, workspace: Path) -> list[str]:
    """Train one Gated SAE and return its row of the table."""
    make_model(shape, workspace / shape, device)
    options = {
        "model": workspace / shape, "site": site, "d-sae": d_sae, "tokens": tokens, "device": device,
        "target-l0": min(64, d_sae // 8), "dtype": "float32" if device == "cpu" else "bfloat16",
        "out": workspace / f"run-{shape}", "eval-tokens": 2048, "context": 128, "bootstrap": 10, "threads": 4,
        "batch-size": min(4096, tokens // 8), "buffer-tokens": min(2**18, tokens // 2),
    }  # fmt: skip
    command = [sys.executable, "-m", "penstock", "train"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    subprocess.run(command, check=True)
    run = workspace / f"run-{shape}"
    (saved,) = run.glob("saes/*/cfg.json")
    # Written when the language model is loaded, and when the SAE is trained.
    seconds = saved.stat().st_mtime - (run / "config.json").stat().st_mtime
    stepping = float(json.loads(saved.read_text())["metadata"]["train_seconds"])
    return [shape, str(d_sae), f"{tokens:,}", f"{seconds:.1f}", f"{tokens / seconds:,.0f}", f"{stepping / seconds:.0%}"]


def main() -> None:
    """Print one row for each model shape."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dry", action="store_true", help="a toy model on the CPU")
    args = parser.parse_args()
    cases = [("gpt2", "resid_post.6", 16384, 2_000_000), ("gemma-2-2b", "resid_post.12", 65536, 800_000)]
    if args.dry:
        cases = [("toy", "resid_post.1", 64, 4096)]
    rows = []
    with tempfile.TemporaryDirectory() as workspace:
        for shape, site, d_sae, tokens in cases:
            rows.append(train(shape, site, d_sae, tokens, "cpu" if args.dry else "cuda", Path(workspace)))
    print_table(["model shape", "d_sae", "tokens", "seconds", "tokens/s", "share of SAE steps"], rows)


if __name__ == "__main__":
    main()
