"""Tensor types in the library's signatures, and the names of their axes.

batch      number of activations (tokens) in a flattened batch
d_in       width of the activation read from the language model
d_sae      number of latents, i.e. width of the SAE
sequences, positions   number of sequences, and of tokens in each
vocab      size of the language model's vocabulary
*tokens    any number of leading dimensions, possibly none
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Acts = Float[Tensor, "batch d_in"]
Latents = Float[Tensor, "batch d_sae"]
AnyActs = Float[Tensor, "*tokens d_in"]
AnyLatents = Float[Tensor, "*tokens d_sae"]
Scalar = Float[Tensor, ""]

PerLatent = Float[Tensor, " d_sae"]
PerInput = Float[Tensor, " d_in"]

Tokens = Int[Tensor, "sequences positions"]
Mask = Bool[Tensor, "sequences positions"]
SequenceActs = Float[Tensor, "sequences positions d_in"]
Logits = Float[Tensor, "sequences positions vocab"]
