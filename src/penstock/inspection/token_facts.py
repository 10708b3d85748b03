"""Facts about each token and the text before it, to compare a latent's firing with.

Tokens are turned into bytes one by one, through the tokenizer's byte-level alphabet. They are not decoded together,
because a token may end in the middle of a character. Everything that the scanner looks for is ASCII, which in UTF-8 is
never part of another character.
"""

import keyword
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from penstock.language_models.tokens import TokenRows
from penstock.shapes import Mask, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSES = (
    "whitespace",
    "indentation",
    "word",
    "continuation",
    "keyword",
    "number",
    "operator",
    "bracket",
    "quote",
    "other",
)
"""Classes of tokens, by the decoded string (see `token_class`)."""

REGIONS = ("code", "string", "comment")
"""Regions of Python source that a token can lie in."""

DEEPEST = 3
"""Indentations of this many levels or more count as one value."""

NO_TOKEN = -1
"""Stands for a token's id at the start of a document, or of its part in a row."""

_LEVEL = 4
"""Columns per level of indentation, and per tab."""

# A string ends at its closing quotes, at the end of the text, or (if quoted once) at the end of its line. Whatever
# follows a repetition always matches, so the search never backtracks and stays linear.
_LEXEME = re.compile(
    rb"(?P<string>"
    rb"'''(?:[^'\\]+|\\.?|'(?!''))*(?:''')?"
    rb'|"""(?:[^"\\]+|\\.?|"(?!""))*(?:""")?'
    rb"|'(?:[^'\\\r\n]+|\\(?:\r\n|.)?)*'?"
    rb'|"(?:[^"\\\r\n]+|\\(?:\r\n|.)?)*"?)'
    rb"|(?P<comment>#[^\r\n]*)"
    rb"|(?P<opening>[(\[{])"
    rb"|(?P<closing>[)\]}])"
    rb"|(?P<joined>\\\r?\n)"
    rb"|(?P<line>\n[ \t\f]*)",
    re.DOTALL,
)

PerToken = Int[Tensor, " tokens"]
PerState = Int[np.ndarray, " states"]


class TokenFacts(NamedTuple):
    """Facts about every position that counts, in row order; all int64 [tokens]."""

    row: PerToken
    position: PerToken
    """Column in the row, from 0; a BOS at the start of the row has column 0 and does not count."""
    token: PerToken
    previous: PerToken
    """The token before; NO_TOKEN after a position that does not count, and at the start of a row."""
    before_previous: PerToken
    """The token before the previous one, or NO_TOKEN."""
    token_class: PerToken
    """Index into CLASSES."""
    region: PerToken
    """Index into REGIONS at the token's last byte. Quotes belong to their string, # to its comment."""
    indentation: PerToken
    """Indentation levels of the line at the token's last byte, at most DEEPEST."""
    in_brackets: PerToken
    """1 if the token's last byte is in brackets or is one of a pair, otherwise 0."""


class CodeStates(NamedTuple):
    """The state of Python source before its first byte and after each byte; int64 [bytes + 1]."""

    region: PerState
    indentation: PerState
    in_brackets: PerState


def token_facts(rows: TokenRows, tokenizer: "PreTrainedTokenizerBase") -> TokenFacts:
    """Return the facts about every position of `rows` that counts.

    A segment is a run of positions that count: a document, or the part of it in the row. Every segment is read as
    Python from the state "code" at indentation 0, even if it begins in the middle of a document. If it begins inside a
    string, strings and code are confused until the quotes balance again. Rows that begin with their documents (packing
    "truncated") are read correctly. In packed rows these errors lower the F1 that a latent of strings, indentation or
    brackets can reach.

    Args:
        rows: Rows of tokens with the positions that count.
        tokenizer: The fast tokenizer that made the rows.

    Raises:
        ValueError: No position counts, the tokenizer is not a fast one, or it does not know a token.
    """
    tokens, mask = rows.tokens.long().cpu(), rows.mask.cpu()
    if not mask.any():
        raise ValueError("The mask leaves no position that counts, so there are no facts to find. Give rows of text.")
    row, position = mask.nonzero(as_tuple=True)
    previous = _previous(tokens, mask)
    before_previous = _previous(previous, mask)[mask]
    previous = previous[mask]
    ids, entry = tokens[mask].unique(return_inverse=True)
    pieces = token_bytes(ids.tolist(), tokenizer)
    begins = previous == NO_TOKEN
    classes = _token_classes(pieces, entry, begins)
    states = _code_states([pieces[i] for i in entry.tolist()], begins)
    return TokenFacts(row, position, tokens[mask], previous, before_previous, classes, *states)


def token_bytes(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[bytes]:
    """Return the UTF-8 bytes of each token, which need not be whole characters.

    Byte-level tokenizers (GPT-2, Pythia, Llama 3, the embedded model) write each byte as a character of their own
    alphabet. Others (Gemma, Llama 2) write a space as U+2581 and a single byte as `<0xE2>`. In both, tokens added to
    the vocabulary are plain text.

    Raises:
        ValueError: The tokenizer is not a fast one, or does not know an id.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so the bytes of its tokens are unknown. Load the "
            "tokenizer with AutoTokenizer, which returns a fast one if it exists."
        )
    fast: Any = tokenizer
    backend = fast.backend_tokenizer
    is_byte_level = "ByteLevel" in f"{backend.pre_tokenizer!r} {backend.decoder!r}"
    added = {token: entry.content for token, entry in backend.get_added_tokens_decoder().items()}
    alphabet = _byte_level_alphabet()

    def bytes_of(token: int) -> bytes:
        piece = backend.id_to_token(token)
        if piece is None:
            raise ValueError(
                f"The tokenizer has no token {token}; it knows {backend.get_vocab_size()}. Give the tokenizer that "
                "made the rows."
            )
        if token in added:
            return added[token].encode()
        if is_byte_level:
            return b"".join(alphabet[character] if character in alphabet else character.encode() for character in piece)
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        return piece.replace("\u2581", " ").encode()

    return [bytes_of(token) for token in ids]


def token_class(text: str, *, goes_on: bool) -> str:
    """Return the class of a token with this decoded string, one of CLASSES.

    Surrounding blanks do not matter. In a run of signs, quotes take precedence over brackets, and brackets over
    operators: `')` is a quote, `):` a bracket.

    Args:
        text: The token, decoded by itself.
        goes_on: Whether the character before the token is a letter, a digit or an underscore. A word without a leading
            blank is then a continuation, not a keyword.
    """
    body = text.strip()
    if not body:
        return "indentation" if text == "\t" or (len(text) > 1 and text[-1] in " \t") else "whitespace"
    if body.isidentifier():
        if goes_on and not text[0].isspace():
            return "continuation"
        return "keyword" if keyword.iskeyword(body) else "word"
    if body[0].isdigit() and all(character.isalnum() or character in "._" for character in body):
        return "number"
    if any(character.isalnum() for character in body):
        return "other"
    if set(body) & set("'\""):
        return "quote"
    if set(body) & set("()[]{}"):
        return "bracket"
    return "operator" if set(body) <= set("+-*/%@&|^~<>=!:.,;") else "other"


def scan_python(text: bytes) -> CodeStates:
    """Read Python source once, without a grammar, from the state "code" at indentation 0.

    A string begins at its quote (not at its prefix) and includes everything up to its end, also the replacement fields
    of an f-string. Indentation is that of the last non-blank line that began outside brackets and strings, in levels of
    4 columns or one tab, rounded up. Leading blanks belong to their line, and a line break to the line that it ends.
    Before the first line break the indentation is 0. Time is linear in the length of the text.
    """
    region, levels, brackets = [(0, 0)], [(0, 0)], [(0, 0)]
    depth = 0
    # A line break after a backslash ("joined") is matched so that it does not begin a line.
    for lexeme in _LEXEME.finditer(text):
        # Each state comes after its byte.
        start, end = lexeme.start() + 1, lexeme.end() + 1
        kind = lexeme.lastgroup
        if kind in REGIONS:
            region += [(start, REGIONS.index(kind)), (end, 0)]
        elif kind == "opening":
            depth += 1
            brackets.append((start, 1))
        elif kind == "closing":
            depth = max(0, depth - 1)
            brackets.append((end, min(depth, 1)))
        elif kind == "line" and depth == 0 and text[lexeme.end() : lexeme.end() + 1] not in (b"\n", b"\r"):
            columns = len(lexeme["line"][1:].replace(b"\f", b"").expandtabs(_LEVEL))
            levels.append((start + 1, min(DEEPEST, -(-columns // _LEVEL))))
    return CodeStates(*(_held(changes, len(text) + 1) for changes in (region, levels, brackets)))


def _held(changes: list[tuple[int, int]], length: int) -> PerState:
    """Return the value at each place, given changes (place, new value) in the order of their places."""
    places, values = np.array(changes, dtype=np.int64).T
    return np.repeat(values, np.diff(places, append=length))


def _previous(tokens: Tokens, mask: Mask) -> Tokens:
    """Return the token one position before if that position counts, otherwise NO_TOKEN."""
    shifted = torch.full_like(tokens, NO_TOKEN)
    shifted[:, 1:] = tokens[:, :-1].where(mask[:, :-1], NO_TOKEN)
    return shifted


def _token_classes(pieces: list[bytes], entry: PerToken, begins: Bool[Tensor, " tokens"]) -> PerToken:
    """Return the class of each token, from the bytes of the distinct tokens."""
    texts = [piece.decode(errors="replace") for piece in pieces]
    classes = torch.tensor(
        [[CLASSES.index(token_class(text, goes_on=goes_on)) for goes_on in (False, True)] for text in texts],
        device="cpu",
    )
    ends_in_word = torch.tensor([text[-1:].isalnum() or text.endswith("_") for text in texts], device="cpu")
    goes_on = ends_in_word[entry].roll(1) & ~begins
    return classes[entry, goes_on.long()]


def _code_states(pieces: list[bytes], begins: Bool[Tensor, " tokens"]) -> list[PerToken]:
    """Return region, indentation and brackets after each token's last byte, segment by segment."""
    starts = begins.nonzero().flatten().tolist()
    found = []
    for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True):
        segment = pieces[start:end]
        after = np.cumsum([len(piece) for piece in segment])
        found.append(np.stack(scan_python(b"".join(segment)))[:, after])
    return list(torch.from_numpy(np.concatenate(found, axis=1)))


def _byte_level_alphabet() -> dict[str, bytes]:
    """Return the byte of each character: printable Latin-1 stands for itself, the rest is mapped from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in printable]
    characters = [*printable, *range(0x100, 0x100 + len(rest))]
    return {chr(code): bytes([byte]) for code, byte in zip(characters, printable + rest, strict=True)}
