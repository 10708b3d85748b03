"""Write an activations file for this comparison: one site of a language model, train and held-out tokens.

python harvest.py --model embedded --site resid_post.2 --tokens 1000000 --held-out 50000 --out acts.safetensors
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from penstock.activations.harvest import Text, TrainingStream, fill_cache, masked_acts
from penstock.language_models.loading import LanguageModel
from penstock.language_models.tokens import TokenRows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--site", default="resid_post.2")
    parser.add_argument("--text", default="embedded")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--held-out", type=int, default=50_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = LanguageModel.load(options.model)
    text = Text(
        model=model,
        source=options.text,
        text_field="text",
        context=min(model.context, 1024),
        packing="packed",
    )
    stream = TrainingStream(text=text, sites=(options.site,), batch_rows=32, device="cpu")
    train = fill_cache(stream, options.tokens, seed=0).acts[options.site]
    rows = text.held_out(options.held_out, seed=0)
    parts = [
        masked_acts(model, TokenRows(tokens, mask), (options.site,), "cpu")[options.site]
        for tokens, mask in zip(rows.tokens.split(32), rows.mask.split(32), strict=True)
    ]
    save_file({"train": train.contiguous(), "held_out": torch.cat(parts).contiguous()}, options.out)
    print(f"{options.out}: train {list(train.shape)}, held_out {sum(map(len, parts))} tokens")


if __name__ == "__main__":
    main()
