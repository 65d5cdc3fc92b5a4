# Writes tokenizer_parity.json: small tokenizers, and the ids that Hugging Face `tokenizers` gives with them.
#   pip install tokenizers==0.23.3 && python3 tests/training/data/tokenizer_parity.py
import json
import os

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and "
    "darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And God "
    "said, Let there be light: and there was light. And God saw the light, that it was good: and God divided "
    "the light from the darkness. It's 1234567 banana bananas; naïve café, aaaaaaaa.\n"
)
CASES = [
    "",
    " ",
    "\n",
    "the light and the darkness",
    "  And  God\n\n  said, \tLET there's it'S I'LL we'\u017f\r\n x ",
    "1234567 12 3½Ⅷ٣ a1b22",
    "na\u00efve nai\u0308ve caf\u00e9 e\u0301 \u212b \u1e9b\u0323",
    "\u4e2d\u6587 \ud55c\uad6d\uc5b4 \U0001f600\U0001f469\u200d\U0001f467 \u0928\u092e\u0938\u094d\u0924\u0947",
    "a<|endoftext|>b <mask> c<|endoftext|><|end",
    '...!!!\n\n"quote" --- x.y,z\n',
    "\u00a0\u2003\u3000x\u0085 y",
    "aaaaaaa bananabananas",
    "</s> the\u2581light \u2581",
    "tab\tthe\x00null",
]


def byte_level(use_regex, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def added(id, content, special=True, **more):
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
        **more,
    }


def template(name, id):
    token = {"SpecialToken": {"id": name, "type_id": 0}}
    a, b = ({"Sequence": {"id": s, "type_id": 0}} for s in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [token, a],
        "pair": [token, a, token, b],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}},
    }


def trained(pattern, size):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": sequence(split(pattern), byte_level(False)),
                "model": {"type": "BPE", "vocab": {}, "merges": []},
            }
        )
    ).pre_tokenizer
    t.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return json.loads(t.to_str())["model"]


def character_model():
    vocab, merges = {"<unk>": 0, "<s>": 1, "</s>": 2}, []
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    for c in "▁etaoinshrdlu.,\nbcfgkmpvwyAGIL":
        vocab[c] = len(vocab)
    for pair in [
        "▁ t",
        "h e",
        "▁t he",
        "▁ a",
        "n d",
        "▁a nd",
        "▁ ▁",
        "i g",
        "h t",
        "ig ht",
        "▁ l",
        "▁l ight",
        "▁▁ ▁▁",
        "\n \n",
    ]:
        merges.append(pair.split(" "))
        vocab["".join(merges[-1])] = len(vocab)
    return {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocab,
        "merges": merges,
    }


def variants(byte_model, character_model):
    end = len(byte_model["vocab"])
    eos, mask = added(end, "<|endoftext|>"), added(end + 1, "<mask>", special=False, lstrip=True, rstrip=True)
    bytes_decoder = byte_level(True)
    llama2 = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    llama2_decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    specials = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")]

    def byte_variant(name, pre_tokenizer, tokens=(eos,), normalizer=None, processor=None, **model):
        return (
            name,
            "byte",
            {
                "added_tokens": list(tokens),
                "normalizer": normalizer,
                "pre_tokenizer": pre_tokenizer,
                "post_processor": processor,
                "decoder": bytes_decoder,
            },
            model,
        )

    def character_variant(name, normalizer, pre_tokenizer):
        return (
            name,
            "character",
            {
                "added_tokens": specials,
                "normalizer": normalizer,
                "pre_tokenizer": pre_tokenizer,
                "post_processor": template("<s>", 1),
                "decoder": llama2_decoder,
            },
            {},
        )

    def metaspace(scheme, split):
        return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}

    return [
        byte_variant("gpt2", byte_level(True)),
        byte_variant("gpt2 with a prefix space", byte_level(True, prefix=True), tokens=(eos, mask)),
        byte_variant(
            "llama3",
            sequence(split(LLAMA3), byte_level(False)),
            tokens=(eos, mask),
            processor=template("<|endoftext|>", end),
            ignore_merges=True,
        ),
        byte_variant(
            "qwen2",
            sequence(split(LLAMA3.replace("{1,3}", "")), byte_level(False)),
            tokens=({**eos, "normalized": True},),
            normalizer={"type": "NFC"},
        ),
        byte_variant(
            "nfkd", byte_level(True), normalizer={"type": "Sequence", "normalizers": [{"type": "NFKD"}]}
        ),
        byte_variant("digits", sequence({"type": "Digits", "individual_digits": True}, byte_level(True))),
        byte_variant(
            "several splits",
            sequence(
                split(r"\p{N}{1,3}"),
                split(r"[一-龥぀-ゟ゠-ヿ]+"),
                split(r"\s+", "MergedWithPrevious"),
                byte_level(False),
            ),
        ),
        byte_variant(
            "merged with next", sequence(split(" ", "MergedWithNext", kind="String"), byte_level(False))
        ),
        byte_variant("contiguous", sequence(split(r"[ae]", "Contiguous"), byte_level(False))),
        byte_variant("removed", sequence(split(r"\s+", "Removed"), byte_level(False))),
        byte_variant("removed, inverted", sequence(split(r"\p{L}+|\d+", "Removed", True), byte_level(False))),
        byte_variant("empty matches", sequence(split(r"(?=(\d{3})+(?!\d))"), byte_level(False))),
        character_variant("llama2", llama2, None),
        character_variant("metaspace always", None, metaspace("always", True)),
        character_variant("metaspace first", None, metaspace("first", False)),
    ]


def main():
    patterns = {"gpt2": GPT2, "llama3": LLAMA3}
    models_ = {"byte": trained(GPT2, 310), "character": character_model()}
    out = {
        "text": TEXT,
        "texts": CASES,
        "models": models_,
        "variants": [],
        "training": [{"pattern": p, "merges": trained(p, 400)["merges"]} for p in patterns.values()],
    }
    for name, model, parts, change in variants(models_["byte"], models_["character"]):
        file = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            **parts,
            "model": {**models_[model], **change},
        }
        t = Tokenizer.from_str(json.dumps(file))
        parsed = [t.encode(s, add_special_tokens=False).ids for s in CASES]
        t.encode_special_tokens = True
        plain = [t.encode(s, add_special_tokens=False).ids for s in CASES]
        # Only what differs from the first variant of the same model.
        first = next((v for v in out["variants"] if v["model"] == model), None)
        ids = {str(i): p for i, p in enumerate(parsed) if not first or p != first["ids"][str(i)]}
        out["variants"].append(
            {
                "name": name,
                "model": model,
                "file": {**parts, "model": change},
                "ids": ids,
                "plain": {str(i): p for i, p in enumerate(plain) if p != parsed[i]},
            }
        )
    path = os.path.join(os.path.dirname(__file__), "tokenizer_parity.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


main()
