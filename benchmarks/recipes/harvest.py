"""Write an activations file for this comparison: one site of a language model, train, validation and held-out tokens.

python harvest.py --model embedded --site resid_post.2 --tokens 1000000 --held-out 50000 --out acts.safetensors
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from penstock.activations.harvest import Text, TrainingStream, fill_cache, rows_acts
from penstock.language_models.loading import LanguageModel
from penstock.training.batches import VALIDATION_TOKENS


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
    rows = {
        "validation": text.validation(VALIDATION_TOKENS, seed=0),
        "held_out": text.held_out(options.held_out, seed=0),
    }
    acts = {"train": train} | {
        name: rows_acts(model, part, (options.site,), "cpu")[options.site] for name, part in rows.items() if part
    }
    save_file({name: values.contiguous() for name, values in acts.items()}, options.out)
    print(f"{options.out}: {', '.join(f'{name} {list(values.shape)}' for name, values in acts.items())}")


if __name__ == "__main__":
    main()
