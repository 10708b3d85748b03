"""Language models: loading, sites, texts and tokens. Knows nothing of SAEs."""

from penstock.language_models.families import FAMILIES as FAMILIES
from penstock.language_models.hooks import Edit as Edit
from penstock.language_models.loading import LanguageModel as LanguageModel
from penstock.language_models.sites import Site as Site
from penstock.language_models.stdlib_corpus import Document as Document
from penstock.language_models.stdlib_corpus import Split as Split
from penstock.language_models.texts import documents as documents
from penstock.language_models.tokens import Packing as Packing
from penstock.language_models.tokens import TokenRow as TokenRow
from penstock.language_models.tokens import TokenRows as TokenRows
from penstock.language_models.tokens import batched_rows as batched_rows
from penstock.language_models.tokens import tokenise as tokenise
