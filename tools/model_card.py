"""The text of MODEL_CARD.md of the embedded language model, from figures the training tool measured."""

from dataclasses import dataclass
from datetime import date

NUM_CURVE_ROWS = 12
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class SplitSize:
    """How much text a split holds."""

    files: int
    bytes: int
    """Bytes of UTF-8."""
    tokens: int
    """Tokens of the text; the BOS before each file is not counted."""


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """One line of the loss curve."""

    tokens: int
    """Training tokens so far, all epochs together."""
    train_loss: float
    """Loss of the last training batch, nats per token."""
    held_out_loss: float
    """Loss on a fixed 4% of the held-out rows, nats per token."""
    seconds: int
    """Time spent training and measuring so far."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything that MODEL_CARD.md claims of one trained model."""

    command: str
    """Command line that makes the model."""
    python_version: str
    """Version of the standard library that is the data."""
    hardware: str
    splits: dict[str, SplitSize]
    """Keys "train" and "held_out"."""
    context: int
    """Tokens in a row, the BOS at its start included."""
    architecture: dict[str, str]
    """Name and value of each size worth knowing."""
    training: dict[str, str]
    """Name and value of each training setting."""
    curve: list[CurveRow]
    nats: dict[str, float]
    """Model and its loss summed over all held-out tokens; the shipped model comes first."""
    prompt: str
    sample: str
    """Prompt and what the model wrote after it."""

    def text(self) -> str:
        """The card in Markdown."""
        held_out = self.splits["held_out"]
        losses = [
            [name, f"{nats / held_out.tokens:.4f}", f"{nats / held_out.bytes:.4f}"] for name, nats in self.nats.items()
        ]
        splits = [[name, f"{s.files:,}", f"{s.bytes:,}", f"{s.tokens:,}"] for name, s in self.splits.items()]
        return TEMPLATE.format(
            command=self.command,
            date=date.today().isoformat(),
            python_version=self.python_version,
            hardware=self.hardware,
            hours=f"{self.curve[-1].seconds / 3600:.2f}",
            splits=table(["split", "files", "bytes", "tokens"], splits),
            architecture=table(["size", "value"], [list(item) for item in self.architecture.items()]),
            training=table(["setting", "value"], [list(item) for item in self.training.items()]),
            spark=sparkline([row.held_out_loss for row in self.curve]),
            curve=curve_table(self.curve),
            losses=table(["model", "nats per token", "nats per byte"], losses),
            tokens_per_row=self.context - 1,
            prompt=self.prompt,
            sample=self.sample.strip("\n"),
        )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def curve_table(curve: list[CurveRow]) -> str:
    """About a dozen rows of the curve at equal distances, its first and last among them."""
    num_rows = min(NUM_CURVE_ROWS, len(curve))
    picked = [curve[round(i * (len(curve) - 1) / max(num_rows - 1, 1))] for i in range(num_rows)]
    header = ["training tokens", "train batch", "held-out sample", "seconds"]
    return table(
        header,
        [
            [f"{row.tokens:,}", f"{row.train_loss:.3f}", f"{row.held_out_loss:.3f}", f"{row.seconds:,}"]
            for row in picked
        ],
    )


def sparkline(values: list[float]) -> str:
    """One bar per value, the lowest for the smallest."""
    low, span = min(values), max(values) - min(values) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


TEMPLATE = """\
# The embedded language model of penstock

A small decoder-only transformer trained on the source code of the Python standard library. It is there
so that sparse autoencoders can be trained, compared and tested on the activations of a real language
model without a download. It is too small to write useful code.

Made on {date} by

    {command}

Every figure below was measured by that tool on the run that made the weights beside this card.

## Data
The `.py` files of the standard library of Python {python_version}, its tests included where installed,
without `site-packages`. A file is held out when the SHA-256 of its path relative to the library falls
in the lowest tenth of its range, so the split is the same on every machine; held-out files were used
neither for the tokenizer nor for the weights. Files that are not UTF-8 are left out.

{splits}

## Tokenizer
Byte-level BPE trained on the train split. It is lossless: any text decodes to itself. `<|bos|>` stands
before each document; it is the only special token.

## Architecture
Llama as in Hugging Face `transformers`, input and output embeddings tied, weights stored in float16.

{architecture}

## Training
{training}

Muon trains the hidden matrices (weight decay 0.1), AdamW (betas 0.9, 0.98) the embeddings and norms, in
bfloat16 autocast, gradients clipped to norm 1. The learning rate warms up over 100 steps, stays flat and
falls linearly to zero over the last 40%. Documents are one stream, cut into rows of `context` tokens
that each start with BOS; each epoch cuts it at another offset.

It took {hours} hours on {hardware}.

Loss in nats per token on a fixed sample of the held-out rows (every 25th, document starts included):
{spark}

{curve}

## Held-out loss
Of the weights as shipped (rounded to float16, computed in float32), over every held-out token. The
tokens predicted are the same for both models: all tokens of the files, not the BOS that starts each.
Bytes are the UTF-8 bytes of the same files, so nats per byte is the same sum over another count.

{losses}

The language model reads the stream in rows as in training: a BOS, then {tokens_per_row} tokens, each
predicted from those before it in its row. The 5-gram model (interpolated modified Kneser-Ney,
`tools/ngram.py`) is fitted to the same train tokens and sees up to 4 tokens back within the file.

## Sample
Prompt `{prompt}`, temperature 0.8, seed 0:

````python
{sample}
````
"""
