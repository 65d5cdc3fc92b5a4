#!/usr/bin/env python3
"""Some 45 MB of real English text for torch_parity.py, read once by 1,000 steps of 16,384 tokens.

    mkdir -p data/debs && (cd data/debs && apt-get download dict-gcide dict-foldoc dict-jargon perl-doc)
    for deb in data/debs/*.deb; do dpkg-deb -x "$deb" data/debs/all; done
    parity_text.py data/debs/all > data/parity.txt

Dictionaries and manuals of Debian. White space is made single blanks, since half of these files is indentation, and pieces of about
2,000 characters follow one another in an order drawn once, so that no stretch of the text is of one kind. No line is empty, so
`weft tokenize` sees one document.
"""

import glob
import gzip
import os
import random
import re
import sys


def texts(root):
    for name in ("gcide", "foldoc", "jargon"):
        with gzip.open(os.path.join(root, "usr/share/dictd", name + ".dict.dz")) as f:
            yield f.read().decode("utf-8", "replace")
    for path in sorted(glob.glob(os.path.join(root, "usr/share/perl/*/pod/*.pod"))):
        if not re.search("uniprops|toc", path):  # tables
            with open(path, encoding="utf-8", errors="replace") as f:
                yield f.read()


def pieces(text, size=2000):
    text = re.sub(r"\s*\[1913 Webster\]", "", text)  # after each sense of a word
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        piece += " ".join(paragraph.split()) + "\n"
        if len(piece) >= size:
            yield piece
            piece = ""
    yield piece


def main():
    all_pieces = [p for text in texts(sys.argv[1]) for p in pieces(text) if p.strip()]
    random.Random(1).shuffle(all_pieces)
    for p in all_pieces:
        sys.stdout.buffer.write(re.sub(r"\n+", "\n", p).lstrip("\n").encode())


if __name__ == "__main__":
    main()
